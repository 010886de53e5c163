"""The disk fails under a command, from any call on: a clear message, nothing lost, and later it ends well."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import prepare
from faults import attempt, library
from places import ROOT

COMMANDS = {
    "fuse": ("fuse", "merge.yaml"),
    "extract": ("extract", "base", "image", "--out", "vector"),
    "apply": ("apply", "base", "given", "--out", "applied"),
}
BROKEN = pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])


@pytest.fixture
def room(tmp_path: Path) -> Path:
    try:
        library(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    (tmp_path / "in").mkdir()
    prepare(tmp_path / "in", layers=3, size=16)
    return tmp_path


def with_vector(room: Path) -> None:
    command = [sys.executable, "-m", "taskmerge", "extract", "base", "image", "--out", "given"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=room / "in", env=environment, check=True, capture_output=True)


@BROKEN
def test_some_points_of_a_fuse(room: Path, number: int) -> None:
    counts = attempt(room, number, 10, *COMMANDS["fuse"])
    assert counts["points"] == 10 and counts["failed"] >= 8


@pytest.mark.slow
@BROKEN
@pytest.mark.parametrize(("command", "least"), [("fuse", 50), ("extract", 40), ("apply", 50)])
def test_fifty_points(room: Path, number: int, command: str, least: int) -> None:
    if command == "apply":
        with_vector(room)
    counts = attempt(room, number, 60, *COMMANDS[command])
    assert counts["points"] >= least and counts["failed"] >= least - 3
