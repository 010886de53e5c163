"""Kills every command that writes, at all its stages: `python -m fuzz.kills --kills 200`. Prints JSON.

A child is killed before a change that it makes to the file system, or at a random moment (native code writes too), and
so are those that go on from what it left. After each kill every model is absent, or whole, or what it was before; what
is resumed in the end has the hashes of a run that nobody disturbed, training on one thread of the CPU included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz.disturbing import ENDED_WELL, WRITERS, Writer, of_output, others, outcome, taskmerge, undisturbed
from fuzz.judging import prepare

_WATCHED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
_SHARES = {"run": 4, "specialize": 2, "recover": 2, "rehearse": 2}
_MOST_IN_A_ROW = 12


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="over all commands")
    parser.add_argument("--only", action="append", default=[], choices=WRITERS, help="of these commands; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from fuzz.session import load
    from fuzz.templates import make

    load()
    session = Path(tempfile.mkdtemp(prefix="taskmerge-kills-"))
    wanted = [name for name in WRITERS if not options.only or name in options.only]
    make(session / "templates", {WRITERS[name].template for name in wanted})
    counts: Counter[str] = Counter()
    findings: list[str] = []
    try:
        whole = sum(_SHARES.get(name, 1) for name in wanted)
        for name in wanted:
            kills = -(-options.kills * _SHARES.get(name, 1) // whole)
            found = kill(session, name, kills, Random(f"{options.seed}/{name}"), counts)
            findings += [f"{name}: {what}" for what in found]
    finally:
        os.chdir("/")
        shutil.rmtree(session, ignore_errors=True)
    print(json.dumps({"counts": counts, "findings": findings}, indent=1))
    return 1 if findings else 0


def kill(session: Path, name: str, kills: int, rng: Random, counts: Counter[str]) -> list[str]:
    """So many kills of one command, spread over the changes that it makes; returns what was wrong."""
    writer = WRITERS[name]
    sandbox, template = session / "disk" / "sandbox", session / "templates" / writer.template
    undisturbed(writer, prepare(sandbox, template))  # whatever is built once is there from now on
    room, noted = prepare(sandbox, template), session / "changes.txt"
    before = outcome(room)
    usual = undisturbed(writer, room, first=lambda: count_changes(noted))
    changes, whole = int(noted.read_text()), outcome(room)
    findings: list[str] = []
    killed = 0
    while killed < kills:
        room, began = prepare(sandbox, template), killed
        code, said = None, ""
        for _ in range(_MOST_IN_A_ROW):
            if killed == kills or (killed > began and rng.random() < 0.4):
                break
            change = 1 + killed * changes // kills if killed == began else rng.randint(1, changes)
            code, said = taskmerge(writer.words, room, first=_death(rng, change, usual))
            if code is not None:
                break
            killed += 1
            counts[f"{name}, in {stage_of(room)}" if name == "run" else name] += 1
            findings += [f"kill {killed}: {what}" for what in half_made(writer, outcome(room), before, whole)]
            if writer.outputs and not others(outcome(room), whole):  # killed when all was done
                code, said = 0, ""
                break
        if code is None:
            code, said = taskmerge(writer.words, room)
        counts["killed"] += killed - began
        counts["runs that ended"] += 1
        if code not in ENDED_WELL:
            findings.append(f"after kill {killed} the command ends with {code}: {said[-1500:]}")
        elif other := others(outcome(room), whole):
            findings.append(f"after kill {killed} another result than the undisturbed one: {other[:5]}")
        elif name == "run" and said and killed == kills:  # it has ended: nothing is left to do
            code, said = taskmerge(writer.words, room)
            if again := [line for line in said.splitlines() if line.endswith(": running")]:
                findings.append(f"a run that ended after kill {killed} is not skipped: {again}")
    return findings


def half_made(writer: Writer, found: dict[str, str], before: dict[str, str], whole: dict[str, str]) -> list[str]:
    """Models that are there and neither the whole ones nor what was there before; other files of which that is so."""
    wrong = []
    for name in writer.outputs:
        there = of_output(found, name)
        if there and there not in (of_output(whole, name), of_output(before, name)):
            wrong.append(f"{name} is there and not whole: {others(there, of_output(whole, name))[:4]}")
    made = tuple(f"{name}/" for name in writer.outputs)
    for path in sorted(before.keys() | (whole.keys() & found.keys())):
        if not path.startswith(made) and found.get(path) not in (before.get(path), whole.get(path)):
            wrong.append(f"{path} is neither what it was nor the new one")
    return wrong


def _death(rng: Random, change: int, usual: float) -> Callable[[], None]:
    """What kills the process that calls it: before one of its changes, or at some moment."""
    moment = rng.uniform(0.05, 1.0) * usual if rng.random() < 0.3 else None

    def begin() -> None:
        if moment is None:
            _watch(lambda seen: os.kill(os.getpid(), signal.SIGKILL) if seen == change else None)
        else:
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return begin


def count_changes(noted: Path) -> None:
    """Keeps how many changes this process makes in a file; the file itself is none of them."""
    number = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _watch(lambda seen: os.pwrite(number, b"%d" % seen, 0))


def _watch(told: Callable[[int], Any]) -> None:
    """Tells of every change that this process is going to make to the file system: the how manieth it is."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event not in _WATCHED:
            return
        seen += 1
        told(seen)

    sys.addaudithook(hook)


def stage_of(room: Path) -> str:
    """The stage of a run that had begun and was not done."""
    for path in sorted((room / "out-report").glob("*.json")):
        with contextlib.suppress(ValueError):
            if json.loads(path.read_text()).get("done") is False:
                return path.stem
    return "checks, or between stages"


if __name__ == "__main__":
    sys.exit(main())
