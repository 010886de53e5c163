"""Prompts by role reach every place that runs a model: training, drift, statistics, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import moved, sounds, tiny_grafted
from omni_models import picture

from taskmerge.embedders import Embedder, open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.embedders.prompts import Prompts
from taskmerge.errors import RecipeError
from taskmerge.measuring.covariances import collect_covariances
from taskmerge.measuring.drift import diagnose_drift
from taskmerge.recipes import loads
from taskmerge.training import TrainingSettings, recover, specialize
from taskmerge.training.items import TrainingItems

SAID = {"query": "red cat ", "document": "blue dog ", "modalities": {"audio": {"query": "high tone "}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_grafted(tmp_path_factory.mktemp("models"))


@pytest.fixture
def prompted(model: Any) -> Embedder:
    return open_embedder(model).prompted(SAID)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_most_special_prompt_stands() -> None:
    prompts = Prompts.of(
        {**SAID, "tasks": {"clotho": {"document": "rain "}, "esc": {"modalities": {"audio": {"query": ""}}}}}
    )
    assert prompts.text("query") == "red cat "
    assert prompts.text("query", "audio") == "high tone "
    assert prompts.text("document", "audio") == "blue dog "
    assert prompts.text(None, "audio") is None
    assert prompts.of_task("clotho").text("document", "text") == "rain "
    assert prompts.of_task("clotho").text("query", "audio") == "high tone "
    assert prompts.of_task("esc").text("query", "audio") == ""
    assert prompts.of_task("else").text("query", "audio") == "high tone "
    task = Prompts.of({**SAID, "tasks": {"all": {"query": "low "}}}).of_task("all")
    assert task.text("query", "audio") == "low "  # what a task says goes before what a modality says
    assert Prompts.of(prompts.as_dict()) == prompts
    both = Prompts.of({**SAID, "tasks": {"esc": {"modalities": {"audio": {"document": "rain "}}}}}).of_task("esc")
    assert (both.text("query", "audio"), both.text("document", "audio")) == ("high tone ", "rain ")


def test_training_prepares_items_and_texts_in_their_roles(prompted: Embedder) -> None:
    pairs = read_pairs(sounds(3))
    items = TrainingItems(prompted, {"audio": pairs})
    assert same(items.batch([0, 1]), prompted.prepare(pairs.load(0, 2), "audio", "query"))
    assert same(items.columns([0, 1], texts=True)["text"], prompted.prepare(pairs.texts[:2], "text", "document"))
    bank = items.bank()
    wanted = prompted.encode(items.sets["audio"].texts, "text", "document")
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.rows[bank.labels["audio"][:, 0]], wanted, atol=1e-6)
    assert np.abs(wanted - prompted.encode(pairs.texts, "text", "query")).max() > 1e-3


def test_a_page_is_looked_for(tmp_path: Path) -> None:
    from omni_models import tiny_backbone

    from taskmerge.embedders import graft

    eyes = graft(tiny_backbone(tmp_path / "plain"), "image", "patches", "linear", tmp_path / "eyes")
    embedder = open_embedder(eyes).prompted(SAID)
    pages = read_pairs([{"document": picture(20 * row), "text": f"dog {row}"} for row in range(3)])
    pictures = read_pairs([{"image": picture(20 * row), "text": f"dog {row}"} for row in range(3)])
    assert (pages.roles, pictures.roles) == (("document", "query"), ("query", "document"))
    items = TrainingItems(embedder, {"document": pages, "image": pictures})
    assert same(items.batch([0]), embedder.prepare(pages.load(0, 1), "image", "document"))
    assert same(items.batch([3]), embedder.prepare(pictures.load(0, 1), "image", "query"))
    assert same(items.columns([0], texts=True)["text"], embedder.prepare(["dog 0"], "text", "query"))
    bank = items.bank()  # the same texts in two roles are two texts
    assert len(bank.rows) == 6
    assert bank.labels["document"].tolist() == [[0], [1], [2]] and bank.labels["image"].tolist() == [[3], [4], [5]]


def test_trained_with_prompts_is_not_trained_without(model: Any, tmp_path: Path) -> None:
    def trained(prompts: Any) -> np.ndarray:
        other = moved(model, 0.0)
        settings = TrainingSettings(
            steps=2, batch_size=4, evaluate_every=2, warmup=0, learning_rate=1e-3, prompts=prompts
        )
        recover(other, sounds(12), settings=settings, held_out=sounds(6, seed=2), work=tmp_path / str(bool(prompts)))
        return open_embedder(other).state_dict.values["audio_projector.output.weight"].detach().numpy()

    names = open_embedder(model).state_dict.values
    assert "audio_projector.output.weight" in names or pytest.skip(", ".join(n for n in names if "projector" in n))
    assert np.abs(trained(None) - trained(SAID)).max() > 0


def test_a_backbone_learns_behind_prompts(model: Any, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=2, batch_size=4, warmup=0, prompts=SAID)
    report = specialize(moved(model, 0.0), sounds(12), settings=settings, work=tmp_path)
    assert report.steps == 2
    assert report.settings["prompts"] == SAID


def test_drift_and_statistics_are_measured_behind_prompts(model: Any) -> None:
    probes = sounds(6)
    other = moved(model, 0.5, names="backbone.encoder")
    plain = diagnose_drift(other, model, None, probes).modalities["audio"]
    behind = diagnose_drift(other, model, None, probes, prompts=SAID).modalities["audio"]
    assert plain.control.passed and behind.control.passed
    assert plain.intervals["cosine"] != behind.intervals["cosine"]
    assert (
        behind
        == diagnose_drift(
            open_embedder(other).prompted(SAID), open_embedder(model).prompted(SAID), None, probes
        ).modalities["audio"]
    )
    tokens = [collect_covariances(model, probes, prompts=said).counts for said in (None, SAID)]
    assert [tokens[1][name] - tokens[0][name] for name in ("audio", "text")] == [
        2 * 6,
        2 * len(read_pairs(probes).distinct()[0]),
    ]


RECIPE = """\
base: base
specialists: {audio: models/audio}
prompts:
  query: "red\\n"
  modalities: {audio: {query: "", document: "blue "}}
  tasks: {clotho: {query: "find: "}}
"""


def test_a_recipes_prompts() -> None:
    prompts = Prompts.of(loads(RECIPE).prompts)
    assert prompts.as_dict() == {
        "query": "red\n",
        "modalities": {"audio": {"query": "", "document": "blue "}},
        "tasks": {"clotho": {"query": "find: "}},
    }
    with pytest.raises(RecipeError, match="prompts: 'sound' is not a modality"):
        loads(RECIPE.replace("{audio: {query", "{sound: {query"))
    with pytest.raises(RecipeError, match="unknown key 'qury'"):
        loads(RECIPE.replace('query: "red', 'qury: "red'))
