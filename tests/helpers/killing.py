"""Runs fuses in child processes and kills them: `python killing.py FOLDER SMALL SEED KILLS`. Prints counts as JSON.

FOLDER and SMALL each hold a merge.yaml and its models: one is killed at random moments, one before every change. The
parent imports everything once and never runs a kernel, so that children can be forked from it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint_files import digests

from taskmerge import recipes
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.kernels.compiled import backend as _backend  # noqa: F401
from taskmerge.merging import Written, execute, plan
from taskmerge.merging import fused as _fused  # noqa: F401 (imported before forking)

Child = Callable[[], "Written | None"]


def fuse(folder: Path, out: Path, **options: Any) -> Written:
    recipe = recipes.load(folder / "merge.yaml")
    return execute(plan(recipe), recipe, out, **options)


def in_child(action: Child, kill_after: float | None = None) -> dict[str, Any] | None:
    """What the action's `Written` says, run in a forked child; None when it was killed after so many seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            written = action()
            os.write(writing, json.dumps(list(written.resumed) if written else []).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return None
    assert os.WEXITSTATUS(status) == 0, status
    return {"resumed": json.loads(text)}


def published(out: Path) -> dict[str, str]:
    """The output's files; a lock file that a kill right after publishing leaves is none of them."""
    return {name: digest for name, digest in digests(out).items() if name != ".lock"}


def check_after_kill(out: Path, whole: dict[str, str], before: dict[str, str] | None = None) -> None:
    """The output is absent, as it was before, or whole; what the journal calls finished is the real thing."""
    if out.exists():
        assert published(out) in ([whole] if before is None else [whole, before]), sorted(digests(out))
    journal = out.parent / f".{out.name}.partial" / ".taskmerge-journal.json"
    if journal.exists():
        for name, digest in json.loads(journal.read_text())["finished"].items():
            assert digests(journal.parent)[name] == digest == whole[name], name


def at_random_moments(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Kills run after run, each run and each run that goes on from it, until so many were killed."""
    usual = 60.0
    for _ in range(2):
        began = time.monotonic()
        in_child(lambda: fuse(folder, folder / "undisturbed" / "out", fresh=True))
        usual = min(usual, time.monotonic() - began)
    whole = digests(folder / "undisturbed" / "out")
    counts = {"killed": 0, "finished": 0, "resumed": 0, "files": len(whole), "outputs": 0}
    while counts["killed"] < kills:
        counts["outputs"] += 1
        out = folder / f"run{counts['outputs']}" / "out"
        for attempt in range(6):
            if out.exists():  # killed after it was published
                break
            done = in_child(lambda: fuse(folder, out), rng.uniform(0, 1.1 * usual) if attempt < 5 else None)  # noqa: B023
            if done is not None:
                counts["finished"] += 1
                counts["resumed"] += bool(done["resumed"])
                break
            counts["killed"] += 1
            check_after_kill(out, whole)
        assert published(out) == whole
        assert not (out.parent / ".out.partial").exists()
        shutil.rmtree(out.parent)
    return counts


_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile")


def killed_at(event: int, action: Child) -> Child:
    """The action, killed right before the event-th time it changes something in the file system."""

    def run() -> Written | None:
        seen = 0

        def watch(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if name not in _WATCHED or (name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        return action()

    return run


def at_every_change(folder: Path) -> dict[str, int]:
    """Kills a replacing run (--fresh over an older output) before each change it makes to the file system, in turn."""
    in_child(lambda: fuse(folder, folder / "new" / "out"))
    whole = digests(folder / "new" / "out")
    out = folder / "replaced" / "out"
    counts = {"killed": 0, "before": 0, "absent": 0, "whole": 0}
    for event in range(1, 1000):
        with OutputFolder(out, identity="") as older:
            older.add_text("old.txt", "what was there before")
            older.publish()
        before = digests(out)
        if in_child(killed_at(event, lambda: fuse(folder, out, fresh=True))) is not None:
            break
        counts["killed"] += 1
        check_after_kill(out, whole, before)
        state = "absent" if not out.exists() else "before" if published(out) == before else "whole"
        counts[state] += 1
        in_child(lambda: fuse(folder, out, fresh=True))
        assert digests(out) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out.parent)
    return counts


def main() -> None:
    folder, small, seed, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    counts = {"random": at_random_moments(folder, kills, random.Random(seed)), "every": at_every_change(small)}
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
