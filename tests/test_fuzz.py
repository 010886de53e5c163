"""A short run of the fuzzer (`make fuzz` is the long one): every generator, the disk's faults, a few kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.disturbing import WRITERS
from places import ROOT, TESTS

CASES = 240


def fuzz(*words: str) -> str:
    paths = [str(ROOT), str(TESTS), str(TESTS / "helpers")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def test_generated_inputs(tmp_path: Path) -> None:
    table = fuzz("fuzz", "--cases", str(CASES), "--seed", "7").splitlines()
    names = [line.split()[0] for line in table[1:-2]]
    whole = table[-2].split()
    assert len(names) >= 30 and names == list(dict.fromkeys(names))
    cases, commands, accepted, compared = (int(number.replace(",", "")) for number in whole[1:5])
    assert cases >= CASES and commands > cases and accepted > commands // 10 and compared > accepted // 10


QUICK = ("fuse", "fuse --fresh", "extract", "apply", "soup")


def only(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def test_a_disk_that_fails() -> None:
    told = json.loads(fuzz("fuzz.disk", "--points", "4", *only(*QUICK)))
    assert "skipped" in told or told["counts"]["refused"] >= 3 * len(QUICK)


def test_kills_of_what_takes_tenths_of_a_second() -> None:
    told = json.loads(fuzz("fuzz.kills", "--kills", "20", *only(*QUICK)))
    assert told["counts"]["killed"] >= 20 and all(told["counts"][name] for name in QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fuse", "extract", "apply", "recover", "run"])
def test_fifty_faults_of_each_kind(command: str) -> None:
    told = json.loads(fuzz("fuzz.disk", "--points", "50", *only(command)))
    if "skipped" not in told:
        assert told["counts"][f"{command}: ENOSPC"] == told["counts"][f"{command}: EIO"] == 50
        assert told["counts"]["refused"] >= 60


@pytest.mark.slow
def test_kills_in_every_stage() -> None:
    told = json.loads(fuzz("fuzz.kills", "--kills", "60"))
    counts = told["counts"]
    assert counts["killed"] >= 60
    assert all(any(name.startswith(stage) for name in counts) for stage in WRITERS)
    assert sum(name.startswith("run, in ") for name in counts) >= 4, counts
