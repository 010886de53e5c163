"""Commands run inside a stranger's folder, as one does after a download: what lies there is not taken for a library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

NAMES = ("torch", "numpy", "json", "typer", "yaml", "rich", "torchvision", "torchaudio", "safetensors", "tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One full of files called like libraries, each of which makes `canary`."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'canary')!r}).touch()\n")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("words", ["--version", "inspect .", "methods", "doctor"])
def test_python_m_runs_nothing_of_the_current_folder(folder: Path, words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "taskmerge", *words.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not (folder / "canary").exists(), done
    assert "Traceback" not in done.stderr


def test_doctor_imports_libraries_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` tries torchvision in a process of its own, which looked in the current folder first."""
    from taskmerge.cli import machine

    monkeypatch.chdir(folder)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.28.0")
    assert machine._import_works("torchvision")[2] == "broken", "it is not installed"
    assert not (folder / "canary").exists()
