"""Collecting what layers see: against hidden states of items run one by one, and stored beside the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import qwen2_audio, sounds, tiny_grafted

from taskmerge.checkpoints.covariances import FILE, InputCovariances, covariance_of, covariances_beside
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.embedders import open_embedder
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.measuring.covariances import collect_covariances

QUERY = "backbone.encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_grafted(folder)
    return folder / "grafted"


@pytest.fixture(scope="module")
def collected(folder: Path) -> InputCovariances:
    return collect_covariances(str(folder), sounds(9), batch_size=4)


def test_equals_the_hidden_states_of_items_run_alone(folder: Path, collected: InputCovariances) -> None:
    model: Any = open_embedder(folder).module

    def states(items: list[Any]) -> np.ndarray:
        rows = []
        for item in items:  # one at a time: nothing is padded
            with torch.no_grad():
                output = model(model.preprocess([item]), output_hidden_states=True)
            rows.append(output["hidden_states"][1][0].double().numpy())
        return np.concatenate(rows)

    pairs = sounds(9)
    heard = states([pair["audio"] for pair in pairs])
    read = states(sorted({pair["text"] for pair in pairs}))
    wanted = heard.T @ heard / len(heard) + read.T @ read / len(read)
    np.testing.assert_allclose(collected[QUERY], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert collected.counts == {"audio": len(heard), "text": len(read)}


def test_layers_of_one_input_share_a_matrix(collected: InputCovariances) -> None:
    key, value = (QUERY.replace("query", other) for other in ("key", "value"))
    assert collected.aliases[key] == collected.aliases[value] == collected.aliases[QUERY] == QUERY
    dense = "backbone.encoder.layer.1.output.dense.weight"
    assert collected.aliases[dense] == dense
    assert collected[dense].shape == (64, 64)
    assert not any("embedding" in name or "audio_projector" in name for name in collected)


def test_batches_do_not_matter(folder: Path, collected: InputCovariances) -> None:
    other = collect_covariances(str(folder), {"audio": sounds(9)}, batch_size=9)
    for name in (QUERY, "backbone.encoder.layer.0.output.dense.weight"):
        scale = np.abs(collected[name]).max()
        np.testing.assert_allclose(other[name], collected[name], atol=1e-5 * scale)


def test_a_set_called_text_is_a_group_of_its_own(folder: Path, collected: InputCovariances) -> None:
    other = collect_covariances(str(folder), {"text": sounds(9)}, batch_size=4)
    np.testing.assert_array_equal(other[QUERY], collected[QUERY])
    assert other.counts == {"text": sum(collected.counts.values())}


def test_stored_beside_the_model_and_found_again(folder: Path, collected: InputCovariances) -> None:
    assert covariances_beside(open_stored(folder)) is None
    with pytest.raises(CheckpointError, match="taskmerge stats"):
        InputCovariances.open(folder)
    assert collected.save(folder) == folder / FILE
    weights = open_stored(folder)  # the folder still opens as one model
    np.testing.assert_array_equal(covariance_of(weights, QUERY), collected[QUERY].astype(np.float32))
    assert covariance_of(weights, "backbone.embeddings.word_embeddings.weight") is None
    renamed = ViewedStateDict(weights, {"elsewhere": whole(weights.tensors[QUERY], "elsewhere")})
    np.testing.assert_array_equal(covariance_of(renamed, "elsewhere"), covariance_of(weights, QUERY))
    stored = InputCovariances.open(folder)
    assert (set(stored), stored.counts) == (set(collected), collected.counts)
    assert len(stored) == len(collected) == 12
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = (folder / FILE).with_name(f".{FILE.name}.{ended.pid}")
    others = [left.with_name(f".{FILE.name}.{name}") for name in ("1", "mine")]
    for path in (left, *others):
        path.write_bytes(b"half")
    collected.save(folder)
    assert not left.exists() and all(path.read_bytes() == b"half" for path in others)  # a living process's, a user's


def test_keyed_by_the_names_in_the_file(tmp_path: Path) -> None:
    qwen2_audio(tmp_path)
    found = collect_covariances(str(tmp_path), sounds(3), components=("backbone",))
    stored = open_stored(tmp_path).tensors
    assert len(found) == 14
    assert all(found[name].shape == (stored[name].shape[1],) * 2 for name in found)


def test_texts_of_ones_own(folder: Path) -> None:
    model: Any = open_embedder(folder).module
    without = collect_covariances(model, sounds(2), texts=[])
    assert without.counts["text"] == 0
    with_texts = collect_covariances(model, sounds(2), texts=["a dog"])
    extra = np.linalg.eigvalsh(with_texts[QUERY] - without[QUERY])
    assert extra.min() > -1e-6 * extra.max()


def test_what_cannot_be_measured_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty"):
        collect_covariances("no model", [{"audio": {"array": np.zeros(0), "sampling_rate": 16000}, "text": "a"}])
    with pytest.raises(UsageError, match="no linear layer in nothing"):
        collect_covariances(open_embedder(folder), sounds(1), components=("nothing",))
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        InputCovariances.open(tmp_path)
