"""doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taskmerge.cli.app import app


def test_doctor_names_what_is_there() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["torch"]["state"] == "ok" and rows["torch"]["found"].startswith("2.")
    assert {"python", "cores", "memory", "free disk space", "devices"} <= set(rows)
    assert result.exit_code == int(any(row["state"] == "broken" for row in rows.values()))


def test_doctor_tells_a_broken_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.cli import machine

    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.28.0")
    what, found, state, text = machine._import_works("torchvision")
    assert (what, found, state) == ("torchvision", "0.28.0", "broken")
    assert "nms does not exist" in text and "install the version for your torch" in text
