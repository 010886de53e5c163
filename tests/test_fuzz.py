"""A short run of the fuzzer (`make fuzz` is the long one): every generator, the disk's faults, a few kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, TESTS

CASES = 240


def fuzz(*words: str) -> str:
    paths = [str(ROOT), str(TESTS), str(TESTS / "helpers")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def test_generated_inputs(tmp_path: Path) -> None:
    table = fuzz("fuzz", "--cases", str(CASES), "--seed", "7", "--unknown").splitlines()
    names = [line.split()[0] for line in table[1:-2]]
    whole = table[-2].split()
    assert len(names) >= 30 and names == list(dict.fromkeys(names))
    cases, commands, accepted, compared = (int(number.replace(",", "")) for number in whole[1:5])
    assert cases >= CASES and commands > cases and accepted > commands // 10 and compared > accepted // 10


def test_a_disk_that_fails() -> None:
    told = json.loads(fuzz("fuzz.disk", "--points", "28", "--slow-points", "0", "--unknown"))
    assert "skipped" in told or sum(told["counts"].values()) == 28


@pytest.mark.slow
def test_kills_in_every_stage() -> None:
    told = json.loads(fuzz("fuzz.kills", "--kills", "20"))
    assert told["counts"]["killed"] >= 20 and told["counts"]["finished"] == told["counts"]["runs"]
