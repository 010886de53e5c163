"""Devices: one parser, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from taskmerge import fuse
from taskmerge.cli.app import app
from taskmerge.errors import UsageError
from taskmerge.merging.algebra import Checkpoint
from taskmerge.words.devices import parse_device


def test_devices_that_are_there() -> None:
    assert parse_device("cpu") == "cpu"
    assert parse_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:²", "cuda:99999", "CUDA", "cpu:1", None, 0])
def test_devices_that_are_none(text: object) -> None:
    with pytest.raises(UsageError, match="device"):
        parse_device(text)


@pytest.mark.parametrize("text", ["cuda", "cuda:7", "mps"])
def test_devices_that_this_machine_lacks(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no device"):
        parse_device(text)
    base = {"w": torch.ones(4)}
    with pytest.raises(UsageError, match="there is no device"):
        fuse(base, {"a": base}, device=text)
    Checkpoint.open(base).save(tmp_path / "base")
    (tmp_path / "r.yaml").write_text("base: base\nspecialists: {a: base}\noutput: {path: out}\n")
    told = CliRunner().invoke(app, ["fuse", str(tmp_path / "r.yaml"), "--device", text])
    assert isinstance(told.exception, UsageError) and "there is no device" in str(told.exception)
    assert not (tmp_path / "out").exists()


def test_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="this machine has 2 cuda devices"):
        parse_device("cuda:2")
