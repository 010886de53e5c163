"""Kills a whole run, stage after stage: `python -m fuzz.kills --kills 200`. Prints JSON.

Each child goes on from what the one before left, and is killed before a change that it makes to the file system, or at
a random moment (native code writes too). After each kill every model is absent or whole; what is resumed in the end has
the hashes of a run that nobody disturbed, training on one thread of the CPU included, and so have the scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from fuzz.disk import once
from fuzz.judging import prepare
from fuzz.system_calls import run_in_child

STAGES = ("specialize-audio", "specialize-text", "fuse", "diagnose", "recover", "rehearse", "evaluate")
MODELS = ("specialist-audio", "specialist-text", "out", "out-recovered", "out-rehearsed")
_TIMES = ("taskmerge_training.json", "taskmerge_recovery.json", ".lock")
"""Files of a model that say how long it took, and no result."""
_WATCHED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from fuzz.session import load
    from fuzz.templates import make

    load()
    session = Path(tempfile.mkdtemp(prefix="taskmerge-kills-"))
    make(session / "templates", {"project"})
    try:
        counts, findings = kill_runs(session, options.kills, Random(options.seed))
    finally:
        os.chdir("/")
        shutil.rmtree(session, ignore_errors=True)
    print(json.dumps({"counts": counts, "findings": findings}, indent=1))
    return 1 if findings else 0


def kill_runs(session: Path, kills: int, rng: Random) -> tuple[Counter[str], list[str]]:
    sandbox, template = session / "sandbox", session / "templates" / "project"
    room = prepare(sandbox, template)
    began = time.monotonic()
    code, said = once("run recipe.yaml", room, None)
    usual = time.monotonic() - began
    assert code in (0, 3, 4), said
    whole, scores = models(room), scored(room)
    assert whole.keys() == set(MODELS), whole.keys()
    counts: Counter[str] = Counter()
    findings: list[str] = []
    while counts["killed"] < kills:
        room = prepare(sandbox, template)
        counts["runs"] += 1
        for _ in range(60):
            before = stage_of(room)
            code, said = attempt(session, room, rng, usual)
            if code is not None:
                break
            counts["killed"] += 1
            stage = stage_of(room)
            counts[f"killed in {stage if stage != 'done' else before}"] += 1
            findings += [f"kill {counts['killed']} in {stage}: {what}" for what in half_made(room, whole)]
        else:
            code, said = once("run recipe.yaml", room, None)
        if code not in (0, 3, 4):
            findings.append(f"run {counts['runs']}: ends with {code}: {said[-1500:]}")
            continue
        counts["finished"] += 1
        for name, other in models(room).items():
            if changed := sorted(
                path for path in whole[name].keys() | other.keys() if whole[name].get(path) != other.get(path)
            ):
                findings.append(f"run {counts['runs']}: {name} is not the undisturbed one: {changed[:4]}")
        if scored(room) != scores:
            findings.append(f"run {counts['runs']}: other scores than the undisturbed run's")
        left = [path.name for path in room.iterdir() if path.name.startswith(".")]
        if left:
            findings.append(f"run {counts['runs']}: left {left}")
    return counts, findings


def attempt(session: Path, room: Path, rng: Random, usual: float) -> tuple[int | None, str]:
    """One child: killed before one of its changes, or at a random moment, or not at all. Code None: it was killed."""
    by_event = rng.random() < 0.6
    event, moment = (
        rng.randint(1, rng.choice((5, 15, 40, 100))),
        rng.uniform(0.2, 1.0) * usual * rng.choice((0.2, 0.5, 1.0)),
    )
    output = session / "output.txt"

    def action() -> int:
        if by_event:
            kill_at(event)
        else:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            import threading

            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        import taskmerge.cli

        os.chdir(room)
        os.environ |= {
            "HOME": str(session / "home"),
            "XDG_CACHE_HOME": str(session / "cache"),
            "TMPDIR": str(room.parent / "temporary"),
        }
        sys.argv = ["taskmerge", "run", "recipe.yaml"]
        try:
            taskmerge.cli.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        return 0

    code = run_in_child(action, None, output)
    return code, output.read_text("utf-8", "replace")


def kill_at(event: int) -> None:
    """Kills this process right before the event-th time that it changes something in the file system."""
    seen = 0

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
        elif name not in _WATCHED:
            return
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def stage_of(room: Path) -> str:
    """The first stage that has left no note yet."""
    done = {path.stem for path in (room / "out-report").glob("*.json")}
    return next((stage for stage in STAGES if stage not in done), "done")


def models(room: Path) -> dict[str, dict[str, str]]:
    """Model -> file -> sha256, of those that are there."""
    return {name: hashes(room / name) for name in MODELS if (room / name).exists()}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _TIMES
    }


def half_made(room: Path, whole: dict[str, dict[str, str]]) -> list[str]:
    """Models that are there after a kill and are not the whole ones."""
    found = []
    for name, there in models(room).items():
        other = sorted(path for path in whole[name].keys() | there.keys() if whole[name].get(path) != there.get(path))
        if other:
            found.append(f"{name} is there and not whole: {other[:4]}")
    return found


def scored(room: Path) -> Any:
    """What the evaluation found, without its times."""
    table = json.loads((room / "out-report" / "evaluate.json").read_text())
    return [{key: value for key, value in row.items() if "second" not in key} for row in _rows(table)]


def _rows(value: Any) -> list[dict[str, Any]]:
    """Every row of results in a note, wherever it stands."""
    if isinstance(value, dict):
        own = [value] if "variant" in value and "set_name" in value else []
        return own + [row for one in value.values() for row in _rows(one)]
    return [row for one in value for row in _rows(one)] if isinstance(value, list) else []


if __name__ == "__main__":
    sys.exit(main())
