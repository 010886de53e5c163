"""doctor and push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from taskmerge.cli.app import app
from taskmerge.errors import CheckpointError


def test_doctor_names_what_is_there() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(result.stdout)}
    assert rows["torch"]["state"] == "ok" and rows["torch"]["found"].startswith("2.")
    assert {"python", "cores", "memory", "disk here", "devices"} <= set(rows)
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
    assert "nms does not exist" in text and "install the one for your torch" in text


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "one")):
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(seed)
        save_file({"layer.weight": rng.normal(size=(4, 4)).astype(np.float32)}, tmp_path / name / "model.safetensors")
    (tmp_path / "merge.yaml").write_text("base: base\nspecialists: {one: one}\noutput: {path: out}\n")
    assert CliRunner().invoke(app, ["fuse", str(tmp_path / "merge.yaml")]).exit_code == 0
    return tmp_path / "out"


def test_push_uploads_what_the_record_says(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, repository: str, **keywords: Any) -> None:
            calls.append(("create", (repository, keywords["private"])))

        def upload_folder(self, **keywords: Any) -> Any:
            calls.append(("upload", sorted(path.name for path in keywords["folder_path"].iterdir())))
            return type("Commit", (), {"commit_url": "the commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    result = CliRunner().invoke(app, ["push", str(fused), "owner/name", "--private"])
    assert result.exit_code == 0 and "the commit" in result.stdout
    assert calls == [
        ("create", ("owner/name", True)), ("upload", ["README.md", "model.safetensors", "taskmerge.json"]),
    ]  # fmt: skip


def test_push_refuses_a_changed_model(fused: Path) -> None:
    path = fused / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result = CliRunner().invoke(app, ["push", str(fused), "owner/name"])
    assert isinstance(result.exception, CheckpointError) and "not the recorded one" in str(result.exception)
