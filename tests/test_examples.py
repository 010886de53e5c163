"""The programs in examples/ run, on a smaller cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import ROOT


def test_two_text_specialists(tmp_path: Path) -> None:
    command = [sys.executable, "examples/two_text_specialists.py", "--out", str(tmp_path), "--steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in ("base", "specialist: numbers", "specialist: typos", "fused: sum", "fused: ties", "fused: dare_linear"):
        assert row in done.stdout
    for method in ("sum", "ties", "dare_linear"):
        assert (tmp_path / f"fused-{method}" / "model.safetensors").is_file()
