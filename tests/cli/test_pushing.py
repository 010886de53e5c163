"""push: what goes up, what stays, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_model, write_model
from hub_server import hub
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from taskmerge.checkpoints.output.record import read_record, weights_digest

MIT = "---\nlicense: mit\nbase_model: org/parent\n---\n# Its card\n"


def card(text: str) -> Any:
    """What a card's header holds: the hub's library makes its attributes from the keys."""
    return ModelCard(text).data


@pytest.fixture
def fused(tmp_path: Path, command: Callable[..., Any]) -> Path:
    base = random_model(0)
    for name, tensors in (("base", base), ("one", random_model(1, near=base))):
        write_model(tmp_path / name, tensors)
        (tmp_path / name / "README.md").write_text(MIT)
    (tmp_path / "merge.yaml").write_text("base: base\nspecialists: {one: one}\noutput: {path: out}\n")
    assert command("fuse", tmp_path / "merge.yaml").code == 0
    return tmp_path / "out"


def test_a_model_goes_up_with_its_card(fused: Path) -> None:
    """By the hub's own library, to a hub on this machine."""
    with hub() as there:
        env = {**os.environ, "HF_ENDPOINT": there.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x",
               "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        words = [sys.executable, "-m", "taskmerge", "push", str(fused), "owner/name", "--private"]
        ended = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)
        assert ended.returncode == 0, ended.stderr
        files = there.repositories["owner/name"]
    assert ended.stdout.startswith(f"{there.url}/owner/name/commit/") and there.private == ["owner/name"]
    assert files.keys() == {path.name for path in fused.iterdir()}
    assert files["model.safetensors"] == (fused / "model.safetensors").read_bytes()
    found = ModelCard(files["README.md"].decode())
    data = card(files["README.md"].decode())
    assert (data.license, data.base_model) == ("mit", ["org/parent"])
    assert "# `owner/name`" in found.text and "> # Its card" in found.text
    record = json.loads(files["taskmerge.json"])
    assert record["outputs"].keys() == files.keys() - {"taskmerge.json"}


def test_a_dry_run_says_all_and_sends_nothing(
    fused: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskmerge.checkpoints.hub.upload", lambda *_, **__: pytest.fail("uploaded"))
    (fused / "notes.txt").write_text("mine")
    (fused / "statistics").mkdir()
    before = {path: path.read_bytes() for path in fused.rglob("*") if path.is_file()}
    ran = command("push", fused, "owner/name", "--dry-run", "--json")
    said = json.loads(ran.out)
    assert ran.code == 0 and said["address"] is None and said["bytes"] == sum(said["files"].values())
    assert said["files"].keys() == {"README.md", "config.json", "model.safetensors", "taskmerge.json"}
    assert set(said["left"]) == {"notes.txt", "statistics/"} and "notes.txt" in ran.err
    assert card(said["card"]).license == "mit" and not said["licence_conflict"]
    assert before == {path: path.read_bytes() for path in fused.rglob("*") if path.is_file()}
    table = command("push", fused, "owner/name", "--dry-run")
    assert "model.safetensors" in table.out and "license:" in table.out and "nothing was uploaded" in table.err


def test_licences_that_differ_are_a_warning(tmp_path: Path, fused: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "one" / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert command("fuse", tmp_path / "merge.yaml", "--fresh").code == 0
    ran = command("push", fused, "owner/name", "--dry-run", "-q")
    assert "warning: the licences of the inputs differ (mit of base; gemma of one), so the card claims none" in ran.err
    assert card((fused / "README.md").read_text()).license is None


def test_a_card_of_the_users_own_goes_up_as_it_is(fused: Path, command: Callable[..., Any]) -> None:
    (fused / "README.md").write_text("---\nlicense: gpl-3.0\n---\n# Mine\n")
    said = json.loads(command("push", fused, "owner/name", "--dry-run", "--json").out)
    assert said["own_card"] and said["card"].endswith("# Mine\n")


def test_what_was_measured_with_a_model_stays(fused: Path, command: Callable[..., Any]) -> None:
    from taskmerge.checkpoints.output.record import add_to_record

    (fused / "statistics").mkdir()
    save_file({"one": torch.zeros(2, 2)}, fused / "statistics" / "input_covariances.safetensors")
    add_to_record(fused, "statistics/input_covariances.safetensors")
    said = json.loads(command("push", fused, "owner/name", "--dry-run", "--json").out)
    assert "statistics/input_covariances.safetensors" in said["left"]
    assert not any(name.startswith("statistics") for name in said["files"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda out: (out / "model.safetensors").write_bytes(b"x"), "its sha256 is not the recorded one"),
        (lambda out: (out / "model.safetensors").unlink(), "missing"),
        (lambda out: (out / "taskmerge.json").unlink(), "was not made by taskmerge"),
        (lambda out: (out / "link").symlink_to(out.parent / "base"), "links"),
        (lambda out: out.rename(out.with_name(".out.partial")), "an unfinished output"),
    ],
)
def test_what_is_not_whole_is_refused(
    fused: Path, command: Callable[..., Any], spoil: Callable[[Path], Any], words: str
) -> None:
    spoil(fused)
    ran = command("push", fused, "owner/name", "--dry-run")
    assert ran.code == 1 and words in ran.err and not ran.out
    if fused.with_name(".out.partial").exists():
        assert "an unfinished output" in command("push", fused.with_name(".out.partial"), "owner/name").err


@pytest.mark.parametrize("repository", ["name", "a/b/c", "owner/name@main", "hf://owner/name", "", "../x"])
def test_a_repository_that_cannot_be_one(fused: Path, command: Callable[..., Any], repository: str) -> None:
    ran = command("push", fused, repository, "--dry-run")
    assert ran.code == 2 and "owner/name" in ran.err


def test_a_report_is_no_model(tmp_path: Path, command: Callable[..., Any]) -> None:
    from taskmerge.pipeline.report_folder import claim_report

    claim_report(tmp_path / "out-report")
    ran = command("push", tmp_path / "out-report", "owner/name")
    assert ran.code == 1 and "kind 'report'" in ran.err


def test_scores_are_of_that_very_model(fused: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6, "count": 9}
    row = {"variant": "fused", "set_name": "dev", "modality": "audio", "direction": "to_text", "queries": 9,
           "gallery": 9, "intervals": {"recall_at_1": interval}}  # fmt: skip
    report: dict[str, Any] = {"retrieval": {"results": [row]}, "models": {"fused": weights_digest(fused)}}
    (tmp_path / "scores.json").write_text(json.dumps(report))
    ran = command("push", fused, "owner/name", "--dry-run", "--json", "--scores", tmp_path / "scores.json")
    (found,) = card(json.loads(ran.out)["card"]).eval_results or []
    assert (found.dataset_name, found.metric_type, found.metric_value) == ("dev", "recall_at_1", 0.5)
    report["models"] = {"fused": "0" * 64}
    (tmp_path / "scores.json").write_text(json.dumps(report))
    ran = command("push", fused, "owner/name", "--dry-run", "--scores", tmp_path / "scores.json")
    assert ran.code == 2 and "other weights were scored" in ran.err


def test_the_report_beside_a_model_is_found(fused: Path, command: Callable[..., Any]) -> None:
    from taskmerge.pipeline.report_folder import claim_report

    report = fused.with_name("out-report")
    claim_report(report)
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6, "count": 9}
    row = {"variant": "fused", "set_name": "dev", "modality": "audio", "direction": "to_text", "queries": 9,
           "gallery": 9, "intervals": {"mrr": interval}}  # fmt: skip
    evaluated = {"retrieval": {"results": [row]}, "models": {"fused": weights_digest(fused)}}
    (report / "report.json").write_text(json.dumps({"stages": {"evaluate": evaluated}}))
    said = json.loads(command("push", fused, "owner/name", "--dry-run", "--json").out)
    assert card(said["card"]).eval_results
    assert read_record(fused)["kind"] == "fused"
