"""Lets the disk fail under a command: `python faults.py FOLDER ERRNO POINTS COMMAND…` with faults.c preloaded.

FOLDER holds what the command needs, below `in`; it runs in `in`, writes beside its inputs, and has its cache and its
scratch files below FOLDER too. The command runs once undisturbed, then again and again, each time with every call that
changes a file refused from some call on (POINTS of them, spread evenly over all). After each: what was there is as it
was, the command has said what is wrong and where, and the same command ends well once the disk is well. Prints counts.

The parent imports everything once and never computes, so that children can be forked from it.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from checkpoint_files import digests
from places import HELPERS

LARGEST = 1 << 40
MOST_LINES = 20
SHAKY = ("-report/", "/work/")
"""Folders whose files say when something ran: they are there, but differ."""


@cache
def library(folder: Path) -> Path:
    """faults.c, compiled. Raises FileNotFoundError where there is no C compiler."""
    path = folder / "faults.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise FileNotFoundError("no C compiler")
    source = str(HELPERS / "faults.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(path), source, "-ldl"], check=True)
    return path


def attempt(folder: Path, number: int, points: int, *command: str, timeout: float = 900) -> dict[str, Any]:
    """What this file prints when it is run for a command: see above. Raises AssertionError with what went wrong."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library(folder)),
        "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder / "scratch"),
        "TASKMERGE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    (folder / "scratch").mkdir(exist_ok=True)
    script = [sys.executable, str(HELPERS / "faults.py"), str(folder), str(number), str(points), *command]
    done = subprocess.run(script, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counts


class Disk:
    """The workspace and the library that refuses."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.home, self.number = folder, folder / "in", number
        self.inputs = steady(digests(self.home), False)
        self.pristine = Path(tempfile.mkdtemp(prefix="pristine-", dir=folder.parent)) / "in"
        shutil.copytree(self.home, self.pristine, symlinks=True)
        self.calls = ctypes.CDLL(None)
        self.calls.faults_calls.restype = ctypes.c_long

    def clean(self) -> None:
        """Only the inputs are left, as they were."""
        shutil.rmtree(self.home)
        shutil.copytree(self.pristine, self.home, symlinks=True)

    def made(self) -> dict[str, str]:
        return {name: digest for name, digest in digests(self.home).items() if name not in self.inputs}

    def run(self, command: list[str], point: int) -> tuple[int, str, int]:
        """Exit code, what it said on stderr and how many calls there were; the disk fails from call `point` on."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(command, point, writing)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        assert os.WIFEXITED(status), f"ended by signal {os.WTERMSIG(status)}: {said}"
        count, _, text = said.partition("\n")
        return os.WEXITSTATUS(status), text, int(count or 0)

    def _child(self, command: list[str], point: int, pipe: int) -> None:
        code, text, seen = 99, "", 0
        faulthandler.dump_traceback_later(60, exit=True)  # a hang is a failure that says where
        try:
            from taskmerge.cli.app import app
            from taskmerge.cli.funnel import funnel

            os.chdir(self.home)
            sys.argv = ["taskmerge", *command]
            sys.stderr, sys.stdout = io.StringIO(), io.StringIO()
            self.calls.faults_arm(str(self.folder).encode(), ctypes.c_long(point), self.number)
            code = funnel(app)
            seen = self.calls.faults_calls()
            self.calls.faults_arm(b"/nowhere", ctypes.c_long(LARGEST), 0)
            text = sys.stderr.getvalue()
        except BaseException:
            text = traceback.format_exc()
        data = f"{seen}\n{text}".encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(pipe, data) :]
        os._exit(code)


def steady(made: dict[str, str], only_weights: bool) -> dict[str, str]:
    """What must be the same whenever the command ends well."""
    kept = {name: digest for name, digest in made.items() if not any(part in f"{name}/" for part in SHAKY)}
    kept = {name: digest for name, digest in kept.items() if not name.endswith("/.lock")}  # could not be removed
    return {name: one for name, one in kept.items() if name.endswith(".safetensors")} if only_weights else kept


def check_failure(disk: Disk, code: int, said: str, at: str) -> None:
    assert code in (0, 1), f"{at}: exit {code}: {said}"
    for word in ("Traceback", "Exception ignored", "a fault of taskmerge", "Exception in thread"):
        assert word not in said, f"{at}: {said}"
    if code:
        message = said[said.rindex("taskmerge:") :] if "taskmerge:" in said else said
        assert os.strerror(disk.number) in message and len(message.splitlines()) <= MOST_LINES, f"{at}: {said}"
        assert message.rstrip().splitlines()[-1].startswith("    "), f"{at}: no next move: {said}"


def main() -> None:
    folder, number, points, command = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]

    disk = Disk(folder, number)
    only_weights = command[0] not in ("fuse", "extract", "apply")
    disk.run(command, LARGEST)
    disk.clean()
    (folder / "cache" / "taskmerge" / "sha256.json").unlink(missing_ok=True)
    code, said, calls = disk.run(command, LARGEST)
    assert code == 0 and calls, f"undisturbed: exit {code}: {said}"
    whole = steady(disk.made(), only_weights)
    published = {name.split("/")[0] for name in whole}
    counts: Counter[str] = Counter(calls=calls)
    for point in sorted({1 + round(index * (calls - 1) / max(1, points - 1)) for index in range(points)}):
        disk.clean()
        (folder / "cache" / "taskmerge" / "sha256.json").unlink(missing_ok=True)  # kernels stay: they take seconds
        at = f"{errno.errorcode[number]} from call {point} of {calls}"
        code, said, _ = disk.run(command, point)
        check_failure(disk, code, said, at)
        now = digests(disk.home)
        assert {name: now.get(name) for name in disk.inputs} == disk.inputs, f"{at}: an input is lost"
        for name in published:
            part = {path: one for path, one in steady(disk.made(), only_weights).items() if path.split("/")[0] == name}
            kept = {path: one for path, one in whole.items() if path.split("/")[0] == name}
            assert part in ({}, kept), f"{at}: {name} is there in part: {sorted(part)}; {said}"
        counts["points"] += 1
        counts["failed" if code else "ended well"] += 1
        if not code:
            assert steady(disk.made(), only_weights) == whole, f"{at}: not whole: {sorted(disk.made())}"
            continue
        code, said, _ = disk.run(command, LARGEST)
        assert code == 0, f"{at}, then again on a well disk: exit {code}: {said}"
        assert steady(disk.made(), only_weights) == whole, f"{at}: another result: {sorted(disk.made())}"
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
