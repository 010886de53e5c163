"""sha256 of files, remembered while a file stays as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from checkpoint_files import write_model

from taskmerge import Checkpoint
from taskmerge.checkpoints import hashing
from taskmerge.checkpoints.hashing import sha256_of
from taskmerge.errors import OutputError


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read whole for their hash."""
    files: list[Path] = []
    whole = hashing.content_sha256

    def noted(path: Path) -> str:
        files.append(path)
        return whole(path)

    monkeypatch.setattr(hashing, "content_sha256", noted)
    return files


def _saved(folder: Path, value: float, fresh: bool = False) -> Path:
    write_model(folder / "in", {"a.weight": torch.full((64, 8), value)})
    Checkpoint.open(folder / "in").save(folder / "out: of a run", fresh=fresh)
    return folder / "out: of a run" / "model.safetensors"


def test_a_file_just_written_is_known(tmp_path: Path, read: list[Path]) -> None:
    path = _saved(tmp_path, 1.0)
    read.clear()
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not read


def test_replacing_an_output_reads_none_of_its_weights(tmp_path: Path, read: list[Path]) -> None:
    path = _saved(tmp_path, 1.0)
    read.clear()
    _saved(tmp_path, 2.0, fresh=True)
    assert path not in read
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_changed_since_it_was_written_is_read_and_kept(tmp_path: Path, read: list[Path]) -> None:
    path = _saved(tmp_path, 1.0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    with pytest.raises(OutputError, match="changed since"):
        _saved(tmp_path, 2.0, fresh=True)
    assert path.read_bytes() == data
