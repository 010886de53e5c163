"""Several sets of one specialist: drawn by share, noticed when they change, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_projects import TEXTS, new_project, run_quietly, running
from safetensors import safe_open

from taskmerge.errors import RecipeError
from taskmerge.pipeline import Places
from taskmerge.pipeline.planned import machine_of, planned
from taskmerge.pipeline.state import Run
from taskmerge.recipes import loads

RECIPE = """\
base: base
specialists:
  audio: {model: specialist-audio, weight: 0.5}
specialize:
  audio:
    data: {near: audio.jsonl, far: far.jsonl}
    balance: {shares: {far: 3}}
    graft: {encoder: log_mel, projector: linear}
    steps: 2
    batch_size: 4
output: {path: fused}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_project(tmp_path_factory.mktemp("sets") / "project")
    rows = [{"audio": f"{word}.wav", "text": f"the {word}"} for word in TEXTS]
    (folder / "far.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def until_trained(project: Path, text: str) -> tuple[Any, list[str]]:
    table, said = run_quietly(project, text, until="specialize")
    return table["stages"]["specialize-audio"], running(said)


def test_a_specialist_of_several_sets(project: Path) -> None:
    report, ran = until_trained(project, RECIPE)
    assert ran == ["specialize-audio"] and report["settings"]["shares"] == {"far": 3}
    with safe_open(project / "specialist-audio" / "model.safetensors", "np") as file:
        assert any(name.startswith("audio_projector") for name in file.keys())  # noqa: SIM118
    assert until_trained(project, RECIPE)[1] == []
    assert until_trained(project, RECIPE.replace("far: 3", "far: 2"))[1] == ["specialize-audio"]
    assert until_trained(project, RECIPE.replace("far: 3", "far: 2"))[1] == []
    far = project / "far.jsonl"
    far.write_text(far.read_text().replace("the dog", "my dog"))
    assert until_trained(project, RECIPE.replace("far: 3", "far: 2"))[1] == ["specialize-audio"]


def test_a_plan_counts_every_set(project: Path) -> None:
    run = Run(loads(RECIPE, str(project / "recipe.yaml"), project), Places(project / "planned"))
    (row, *_) = planned(run, machine_of("1x80GB"))
    assert row.stage == "specialize-audio" and row.pairs == {"near": 8, "far": 8}
    assert row.needs is not None and row.needs.trained > 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("far: 3", "fer: 3", r"recipe.yaml:7: balance: shares: 'fer' is not a set of `data`.*did you mean 'far'"),
        (
            "data: {near: audio.jsonl, far: far.jsonl}", "data: audio.jsonl",
            r"'far' is not a set of `data`.*data: \{NAME: PAIRS\}",
        ),
        ("balance: {shares: {far: 3}}", "balance: adaptive", "adaptive needs held-out pairs"),
        ("far: far.jsonl", "far: text.jsonl", "has several modalities: near contains audio, far contains text"),
        ("far: far.jsonl", "far: fur.jsonl", "fur.jsonl"),
        ("batch_size: 4", "batch_size: 9", r"near \(.*audio.jsonl\): 8 distinct texts are too few for batches of 9"),
        ("base: base", "base: base\nprompts: {tasks: {fra: {query: q}}}", "neither a training set.*mean 'far'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_runs(project: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(RecipeError, match="(?s)" + words):
        run_quietly(project, RECIPE.replace(old, new).replace("path: fused", "path: other"))
    assert not (project / "other-report").exists()


def test_prompts_of_a_set_that_is_trained_on_are_taken(project: Path) -> None:
    prompts = "base: base\nprompts: {tasks: {far: {query: 'hear '}}}"
    report, ran = until_trained(project, RECIPE.replace("base: base", prompts))
    assert ran == ["specialize-audio"] and report["settings"]["prompts"]["tasks"]["far"]["query"] == "hear "
