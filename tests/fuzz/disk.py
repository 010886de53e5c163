"""A full or failing disk at every write of a command, in turn: `python -m fuzz.disk --points 120`. Prints JSON.

Each time: a message and no traceback; nothing outside the output touched; no output, or the whole one; and the same
command ends well when the disk is well, with the undisturbed result's bytes.
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
from random import Random

from fuzz.judging import MOST_CHARACTERS, MOST_LINES, prepare
from fuzz.known import is_known
from fuzz.surroundings import Snapshot, differences, snapshot
from fuzz.system_calls import Disk, can_watch, run_in_child

COMMANDS = {
    "fuse": ("tiny", "fuse recipe.yaml"),
    "fuse --fresh": ("fused", "fuse recipe.yaml --fresh"),
    "extract": ("tiny", "extract base one --out out"),
    "extract sign": ("tiny", "extract base one --out out --form sign"),
    "extract lora": ("tiny", "extract base one --out out --lora 2"),
    "apply": ("vectors", "apply base dense --out out"),
    "soup": ("tiny", "soup [bo]*e --out out"),
    "recover": ("repaired", "recover recipe.yaml"),
    "run": ("project", "run recipe.yaml"),
}
SLOW = ("recover", "run")


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.disk", description=__doc__)
    parser.add_argument("--points", type=int, default=120, help="faults, over all commands and both errors")
    parser.add_argument("--slow-points", type=int, default=24, help="of them in `recover` and `run`")
    parser.add_argument("--unknown", action="store_true", help="leave out what is in known.txt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not can_watch():
        print(json.dumps({"skipped": "this system has no seccomp notifications"}))
        return 0
    from fuzz.session import load
    from fuzz.templates import make

    load()
    session = Path(tempfile.mkdtemp(prefix="taskmerge-disk-"))
    commands = [name for name in COMMANDS if options.slow_points or name not in SLOW]
    make(session / "templates", {COMMANDS[name][0] for name in commands})
    counts: Counter[str] = Counter()
    findings: list[str] = []
    fast = len([name for name in commands if name not in SLOW])
    for name in commands:
        share = options.slow_points // len(SLOW) if name in SLOW else (options.points - options.slow_points) // fast
        try:
            disturb(session, name, share, Random(f"{options.seed}/{name}"), counts, findings)
        except Exception as error:
            findings.append(f"{name}: the fuzzer itself: {error!r}")
    os.chdir("/")
    shutil.rmtree(session)
    if options.unknown:
        findings = [what for what in findings if not is_known(what)]
    print(json.dumps({"counts": counts, "findings": findings}, indent=1))
    return 1 if findings else 0


def disturb(session: Path, name: str, points: int, rng: Random, counts: Counter[str], findings: list[str]) -> None:
    """So many faults in one command, spread over its writes."""
    template, words = COMMANDS[name]
    sandbox = session / "sandbox"
    room = prepare(sandbox, session / "templates" / template)
    before = snapshot(sandbox)
    whole = Disk(sandbox)
    code, said = once(words, room, whole)
    assert code in (0, 3, 4), said
    expected = results(snapshot(sandbox), before)
    for number in range(points):
        point = 1 + (number * whole.seen // points + rng.randrange(max(1, whole.seen // points))) % whole.seen
        error = errno.ENOSPC if number % 2 else errno.EIO
        sticky = rng.random() < 0.6
        disk = Disk(sandbox, point, error, sticky)
        room = prepare(sandbox, session / "templates" / template)
        code, said = once(words, room, disk)
        counts[f"{name}: {errno.errorcode[error]}"] += 1
        when = f"{'from' if sticky else 'at'} write {point} of {whole.seen}"
        told = f"{name}: {errno.errorcode[error]} {when} ({(disk.failed or ['not reached'])[0]})"
        for what in judged(code, said, sandbox, before, expected, disk):
            findings.append(f"{told}: {what}")
        if code in (0, 3, 4):
            continue
        again, said = once(words, room, None)
        if again not in (0, 3, 4):
            findings.append(f"{told}: the same command on a disk that is well ends with {again}: {said[-600:]}")
        elif other := differences(expected, results(snapshot(sandbox), before)):
            findings.append(f"{told}: afterwards another result: {dict(list(other.items())[:5])}")


def once(words: str, room: Path, disk: Disk | None) -> tuple[int | None, str]:
    output = room.parent.parent / "output.txt"

    def action() -> int:
        import taskmerge.cli

        os.chdir(room)
        os.environ |= {
            "HOME": str(room.parent.parent / "home"),
            "XDG_CACHE_HOME": str(room.parent.parent / "cache"),
            "TMPDIR": str(room.parent / "temporary"),
        }
        tempfile.tempdir = str(room.parent / "temporary")
        sys.argv = ["taskmerge", *words.split()]
        try:
            taskmerge.cli.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        except BaseException:
            import traceback

            traceback.print_exc()
            return 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    code = run_in_child(action, disk, output)
    return code, output.read_text("utf-8", "replace")


_VOLATILE = ("-report/", ".lock", "temporary/", "taskmerge_training.json", "taskmerge_recovery.json")
"""What holds times, and what is no result."""


def results(after: Snapshot, before: Snapshot) -> Snapshot:
    """The models that a command made: path -> what is there. Reports hold times and are left out."""
    made = {path: state for path, state in after.items() if before.get(path) != state}
    return {path: state for path, state in made.items() if not any(part in f"{path}/" for part in _VOLATILE)}


def judged(code: int | None, said: str, sandbox: Path, before: Snapshot, expected: Snapshot, disk: Disk) -> list[str]:
    found = []
    if code is None:
        found.append("died by a signal")
    if "Traceback" in said or code in (98, 99):
        found.append(f"traceback: {said[-1200:]}")
    if code == 0 and disk.failed and not disk.sticky:
        return found  # what failed was not needed: a cache, a lock
    if code == 0 and disk.failed:
        after = results(snapshot(sandbox), before)
        if differences(expected, after):
            found.append("ends with 0 and another result")
        return found
    text = said[max(said.find("taskmerge:"), 0) :]
    if disk.failed and (len(text.splitlines()) > MOST_LINES or len(text) > MOST_CHARACTERS or not text.strip()):
        found.append(f"no message, or a long one: {text[:200]!r}")
    after = snapshot(sandbox)
    room = "room/"
    for path, how in differences(before, after).items():
        if how == "changed" and path in expected:
            if after[path] != expected[path]:
                found.append(f"{path} is neither what it was nor the new one")
        elif how != "made":
            found.append(f"{how}: {path}")
        elif (
            path.startswith(room + "out/")
            and path.endswith((".safetensors", "config.json"))
            and after[path] != expected.get(path)
        ):
            found.append(f"half an output lies there: {path}")
    return found


if __name__ == "__main__":
    sys.exit(main())
