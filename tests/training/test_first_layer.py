"""What fusing did to the first layer's reading is undone in the projector, from the weights alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import sounds, tiny_grafted

from taskmerge.embedders import open_embedder
from taskmerge.training.components import hashes, select
from taskmerge.training.first_layer import _map, _reading, first_layer_fit


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_grafted(tmp_path_factory.mktemp("models"))


def test_the_map_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    reads, read = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    pull = 0.1 * np.trace(reads.T @ reads) / 4
    rows = np.vstack([reads, np.sqrt(pull) * np.eye(4)])
    wanted = np.linalg.lstsq(rows, np.vstack([read, np.sqrt(pull) * np.eye(4)]), rcond=None)[0]
    found = _map(torch.from_numpy(reads), torch.from_numpy(read), 0.1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-10)


def test_the_readers_are_queries_keys_and_values(specialist: Any) -> None:
    model = open_embedder(specialist)
    found = _reading(model)
    values = model.state_dict.values
    own = [values[f"backbone.encoder.layer.0.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    gain = values["backbone.embeddings.LayerNorm.weight"]
    assert found is not None
    torch.testing.assert_close(found, (torch.cat(own) * gain).double())


def test_a_turned_first_layer_is_turned_back(specialist: Any) -> None:
    """An oracle: where the first layer's matrices are multiplied by a map, its inverse is found."""
    whole = open_embedder(copy.deepcopy(specialist))
    fused = open_embedder(copy.deepcopy(specialist))
    width = 32
    turn = torch.eye(width) + 0.2 * torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
    values = fused.state_dict.values
    with torch.no_grad():
        for part in ("query", "key", "value"):
            weight = values[f"backbone.encoder.layer.0.attention.self.{part}.weight"]
            weight.copy_(weight @ turn)
    names = select(fused, ["audio_projector"])
    before = hashes(values)
    found, note = first_layer_fit(fused, whole, names, "audio", ridge=1e-9)
    last = max(name for name in names if name.endswith(".weight") and values[name].ndim == 2)
    wanted = torch.linalg.inv(turn.double()) @ values[last].double()
    torch.testing.assert_close(found[last].double(), wanted, atol=1e-4, rtol=1e-4)
    assert hashes(values) == before and "weights alone" in note


def test_an_equal_backbone_asks_for_nothing(specialist: Any) -> None:
    model = open_embedder(copy.deepcopy(specialist))
    found, _ = first_layer_fit(model, open_embedder(specialist), select(model, ["audio_projector"]), "audio")
    for name, value in found.items():
        torch.testing.assert_close(value, model.state_dict.values[name], atol=1e-6, rtol=1e-5)


def test_a_projector_that_may_not_change_is_left(specialist: Any) -> None:
    model = open_embedder(copy.deepcopy(specialist))
    found, note = first_layer_fit(model, open_embedder(specialist), ["other"], "audio")
    assert found == {} and "ends in no linear layer that is trained" in note


def test_sounds_come_nearer_to_the_specialists_reading(specialist: Any, tmp_path: Path) -> None:
    """Through the real layer: what the first layer makes of the projected vectors is nearer to the specialist's."""
    fused = open_embedder(copy.deepcopy(specialist))
    turn = torch.eye(32) + 0.3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) / 32**0.5
    with torch.no_grad():
        for name, value in fused.state_dict.values.items():
            if "layer.0.attention.self" in name and name.endswith("weight"):
                value.copy_(value @ turn)
    names = select(fused, ["audio_projector"])

    def queries(model: Any) -> torch.Tensor:
        """(vectors, width): what the first layer makes of the projected vectors alone."""
        seen: list[torch.Tensor] = []
        layer = model.anatomy().layers[0].attention.self.query
        handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
        features = model.prepare([pair["audio"] for pair in sounds(6)], "audio")
        with model.inference():
            model.embed(dict(features))
        handle.remove()
        return seen[0][features["audio_mask"]]

    target, off = queries(open_embedder(specialist)), queries(fused)
    found, _ = first_layer_fit(fused, open_embedder(specialist), names, "audio")
    with torch.no_grad():
        for name, value in found.items():
            fused.state_dict.values[name].copy_(value)
    assert (queries(fused) - target).square().sum() < 0.8 * (off - target).square().sum()
