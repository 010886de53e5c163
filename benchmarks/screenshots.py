"""Pictures of pages for the docs: real pages, of the demo's models, as a browser shows them.

    python benchmarks/screenshots.py --work .demo-pages            # a few minutes; `--work` may be a finished demo

Makes the pages of `compare`, `fuse` and `diagnose-drift` on the demo's models, takes the page of its run where the demo
has been told to the end (`taskmerge demo --out .demo-pages`), and writes docs/images/page-*.webp, light at 1280 pixels
and dark at 390. Needs Chromium, and what the demo needs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from browser import Browser, find_browser  # noqa: E402

from taskmerge.demo.story import set_stage  # noqa: E402
from taskmerge.demo.unpacking import SHIPPED  # noqa: E402
from taskmerge.pipeline import Places  # noqa: E402
from taskmerge.recipes import load  # noqa: E402

WIDE, NARROW = (1280, 1000), (390, 844)
SHOWN = {
    "fuse": ("fuse", "Cosine of the task vectors"),
    "compare": ("compare", ""),
    "diagnose-drift": ("diagnose-drift", ""),
    "diagnose-drift-items": ("diagnose-drift", "Items whose neighbours changed"),
    "run": ("run", ""),
}
"""Picture -> its page, and the card from which on that is shown; "" for its beginning."""
_TOP = """
(() => { const found = [...document.querySelectorAll('h3')].find(one => one.textContent === %r);
  return found ? Math.max(0, window.scrollY + found.getBoundingClientRect().top - 80) : 0; })()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo-pages"), help="Folder of the demo.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="Folder of the pictures.")
    parser.add_argument("--only", nargs="*", choices=SHOWN, help="These pictures alone.")
    said = parser.parse_args()
    program = find_browser()
    if program is None:
        raise SystemExit("no Chromium: install it, or name one in TASKMERGE_BROWSER")
    work = said.work.resolve()
    set_stage(work, SHIPPED, print)
    wanted = said.only or list(SHOWN)
    pages = made(work, [SHOWN[name][0] for name in wanted])
    with Browser(program) as browser:
        for name in (one for one in wanted if SHOWN[one][0] in pages):
            page, card = pages[SHOWN[name][0]], SHOWN[name][1]
            for (width, height), scheme in ((WIDE, "light"), (NARROW, "dark")):
                browser.open(page, width, scheme)
                if found := browser.complaints():
                    raise SystemExit(f"{page}: {found[0]}")
                top = int(browser.evaluate(_TOP % card))
                target = said.out / f"page-{name}-{'wide' if width > 600 else 'narrow'}.webp"
                browser.picture(target, top, height, "webp")
                print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def made(work: Path, names: list[str]) -> dict[str, Path]:
    """The pages of the commands, made unless they are there; the run's if there is one."""
    words = {
        "compare": ["compare", "models/base", "image=models/image", "audio=models/audio"],
        "fuse": ["fuse", "recipe.yaml", "--compare", "--fresh", "--out", "page-fuse"],  # the run's own keeps its stages
        "diagnose-drift": ["diagnose-drift", "recipe.yaml"],
    }
    found = {}
    reports = sorted(work.glob("**/*-report/report.html"))
    if "run" in names and reports:  # before a diagnosis alone writes it again
        found["run"] = Path(shutil.copyfile(reports[0], work / "page-run.html"))
    for name in (name for name in words if name in names):
        found[name] = work / f"{name}.html"
        if not found[name].exists():
            if name == "diagnose-drift" and not Places.of(load(work / "recipe.yaml")).fused.exists():
                subprocess.run([sys.executable, "-m", "taskmerge", "fuse", "recipe.yaml"], cwd=work, check=True)
            command = [sys.executable, "-m", "taskmerge", *words[name], "--html", found[name].name]
            ended = subprocess.run(command, cwd=work, stdout=subprocess.DEVNULL)
            if not found[name].exists():
                raise SystemExit(f"taskmerge {name} ended with {ended.returncode} and left no page")
    return found


if __name__ == "__main__":
    main()
