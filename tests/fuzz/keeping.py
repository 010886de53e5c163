"""Cases that once were findings, kept as what they are: the files that differ from a template, and the commands.

A generator may change and then makes other cases from the same seed; a kept case stays. `python -m fuzz --case NAME:N
--seed S --keep TITLE` writes one.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import GENERATORS, Case, Command, Generator, command

KEPT = Path(__file__).parent / "kept"


def keep(case: Case, title: str, sandbox: Path, templates: Path) -> Path:
    """Writes what a case's generator makes of its template."""
    from fuzz.judging import prepare
    from fuzz.surroundings import differences, snapshot

    own = GENERATORS[case.generator]
    room = prepare(sandbox, templates / own.template)
    before = snapshot(room)
    os.chdir(room)
    commands = own.make(case.random(), room)
    changed = differences(before, snapshot(room))
    files = {path: _stored(room / path) for path, how in sorted(changed.items())}
    rows = [{"words": one.words, "writes": one.writes} for one in commands]
    path = KEPT / f"{title}.json"
    table = {"from": f"{case} of seed {case.seed}", "template": own.template, "commands": rows, "files": files}
    path.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    return path


def _stored(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        return {"link": str(path.readlink())}
    if not path.exists():
        return {"absent": True}
    if path.is_dir():
        return {"folder": True}
    if stat.S_ISFIFO(path.stat().st_mode):
        return {"pipe": True}
    data = path.read_bytes()
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _put(path: Path, row: dict[str, Any]) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir() and "folder" not in row:
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "link" in row:
        path.symlink_to(row["link"])
    elif "folder" in row:
        path.mkdir(exist_ok=True)
    elif "pipe" in row:
        os.mkfifo(path)
    elif "absent" not in row:
        path.write_bytes(row["text"].encode() if "text" in row else base64.b64decode(row["base64"]))


def register() -> None:
    """One generator a template, whose cases are the kept ones in order of their titles."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(KEPT.glob("*.json")):
        table = json.loads(path.read_text("utf-8"))
        kept.setdefault(table["template"], []).append(table)
    for template, rows in kept.items():
        name = f"kept_{template}"

        def make(rng: Random, room: Path, rows: list[dict[str, Any]] = rows) -> list[Command]:
            table = rows[rng.number]  # type: ignore[attr-defined]
            for path, row in table["files"].items():
                _put(room / path, row)
            return [command(*one["words"], writes=one["writes"]) for one in table["commands"]]

        GENERATORS[name] = Generator(name, template, make, 0, "cases that once were findings", len(rows))
