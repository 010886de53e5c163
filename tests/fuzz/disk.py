"""A full or failing disk at any write of a command: `python -m fuzz.disk --points 50`. Prints JSON.

Each time: a message with a next move and no traceback; nothing that was there touched; every output absent, or whole,
or what it was before; and the same command ends well when the disk is well, with the undisturbed result's bytes.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzz.disturbing import ENDED_WELL, WRITERS, Writer, others, outcome, taskmerge, undisturbed
from fuzz.judging import MOST_CHARACTERS, MOST_LINES, prepare
from fuzz.kills import half_made
from fuzz.system_calls import Disk, can_watch
from taskmerge.words.system_errors import UNTOLD

ERRORS = (errno.ENOSPC, errno.EIO)
_TRACES = ("Traceback", "Exception ignored", "a bug in taskmerge", "Exception in thread")


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.disk", description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="of each error, in each command")
    parser.add_argument("--only", action="append", default=[], choices=WRITERS, help="these commands; repeatable")
    options = parser.parse_args()
    if not can_watch():
        print(json.dumps({"skipped": "this system has no seccomp notifications"}))
        return 0
    from fuzz.session import load
    from fuzz.templates import make

    load()
    session = Path(tempfile.mkdtemp(prefix="taskmerge-disk-"))
    wanted = [name for name in WRITERS if not options.only or name in options.only]
    make(session / "templates", {WRITERS[name].template for name in wanted})
    counts: Counter[str] = Counter()
    findings: list[str] = []
    try:
        for name in wanted:
            for error in ERRORS:
                findings += disturb(session, name, error, options.points, counts)
    finally:
        os.chdir("/")
        shutil.rmtree(session, ignore_errors=True)
    print(json.dumps({"counts": counts, "findings": findings}, indent=1))
    return 1 if findings else 0


def disturb(session: Path, name: str, error: int, points: int, counts: Counter[str]) -> list[str]:
    """So many faults of one kind in one command, spread over its writes; returns what was wrong."""
    writer, disk = WRITERS[name], session / "disk"
    sandbox, template = disk / "sandbox", session / "templates" / writer.template
    undisturbed(writer, prepare(sandbox, template))  # whatever is built once is there from now on
    room, whole = prepare(sandbox, template), Disk(disk, number=error)
    before = outcome(room)
    undisturbed(writer, room, disk=whole)
    expected = outcome(room)
    every = [(point, sticky) for sticky in (True, False) for point in range(1, whole.seen + 1)]
    findings: list[str] = []
    for number in range(points):
        point, sticky = every[number * len(every) // points]
        failing = Disk(disk, point, error, sticky)
        room = prepare(sandbox, template)
        code, said = taskmerge(writer.words, room, failing)
        counts[f"{name}: {errno.errorcode[error]}"] += 1
        counts["refused" if code else "ended well"] += 1
        when = f"{'from' if sticky else 'at'} write {point} of {whole.seen}"
        told = f"{name}: {errno.errorcode[error]} {when} ({(failing.failed or ['not reached'])[0]})"
        wrong = judged(code, said, failing) + half_made(writer, outcome(room), before, expected)
        if code not in ENDED_WELL:
            wrong += again(writer, room, expected)
        elif other := others(outcome(room), expected):
            wrong.append(f"ends with {code} and another result: {other[:5]}")
        findings += [f"{told}: {what}" for what in wrong]
    return findings


def again(writer: Writer, room: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with the same command on a disk that is well."""
    code, said = taskmerge(writer.words, room)
    if code not in ENDED_WELL:
        return [f"the same command on a disk that is well ends with {code}: {said[-600:]}"]
    other = others(outcome(room), expected)
    return [f"on a disk that is well another result: {other[:5]}"] if other else []


def judged(code: int | None, said: str, disk: Disk) -> list[str]:
    """What is wrong with how a command told of its failure."""
    found = ["died by a signal"] if code is None else []
    found += [f"printed {trace!r}: {said[-1200:]}" for trace in _TRACES if trace in said]
    if code in ENDED_WELL:
        return found
    text = said[max(said.rfind("taskmerge:"), 0) :]
    if not text.strip() or len(text.splitlines()) > MOST_LINES or len(text) > MOST_CHARACTERS:
        found.append(f"no message, or a long one: {text[:200]!r}")
    elif code != 1 or (os.strerror(disk.number) not in text and UNTOLD not in text):
        found.append(f"exit code {code}, and the message does not name the error: {text[:600]!r}")
    elif not text.rstrip().splitlines()[-1].startswith("    "):
        found.append(f"no next move: {text[:600]!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
