"""What every embedder does, and that prompts, cuts and precisions are the model's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drift_models import sounds, tiny_grafted
from omni_models import tiny_backbone

from taskmerge.embedders import Embedder, open_embedder
from taskmerge.errors import UsageError

TEXTS = ["a dog", "sound of rain", "high tone"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sentence_transformers import SentenceTransformer

    folder = tiny_backbone(tmp_path_factory.mktemp("text") / "plain")
    return SentenceTransformer(str(folder), device="cpu", prompts={"query": "red ", "document": "blue left "})


@pytest.fixture(scope="module")
def grafted(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    tiny_grafted(folder := tmp_path_factory.mktemp("grafted"))
    return open_embedder(folder / "grafted")


def test_roles_are_the_models_own_prompts(model: Any) -> None:
    embedder = open_embedder(model)
    np.testing.assert_array_equal(embedder.encode(TEXTS, "text", "query"), model.encode_query(TEXTS))
    np.testing.assert_array_equal(embedder.encode(TEXTS, "text", "document"), model.encode_document(TEXTS))
    np.testing.assert_array_equal(embedder.encode(TEXTS), model.encode(TEXTS))
    assert np.abs(embedder.encode(TEXTS, "text", "query") - embedder.encode(TEXTS)).max() > 1e-3


def test_without_a_role_the_default_prompt_stands(model: Any) -> None:
    with_default = copy.deepcopy(model)
    with_default.default_prompt_name = "query"
    embedder = open_embedder(with_default)
    np.testing.assert_array_equal(embedder.encode(TEXTS), with_default.encode(TEXTS))
    np.testing.assert_array_equal(embedder.encode(TEXTS), open_embedder(model).encode(TEXTS, role="query"))


def test_embeddings_are_cut_where_the_model_says(model: Any) -> None:
    short = copy.deepcopy(model)
    short.truncate_dim = 5
    embedder = open_embedder(short)
    assert embedder.dimension == 5
    np.testing.assert_array_equal(embedder.encode(TEXTS), short.encode(TEXTS))


def test_batches_of_every_size_give_the_same(model: Any) -> None:
    embedder = open_embedder(model)
    np.testing.assert_allclose(embedder.encode(TEXTS, batch_size=2), embedder.encode(TEXTS), atol=1e-6)


def test_gradients_flow_but_not_in_inference(grafted: Embedder) -> None:
    features = grafted.prepare([pair["audio"] for pair in sounds(2)], "audio")
    grafted.embed(features).sum().backward()
    projector = grafted.state_dict.values["audio_projector.layers.0.weight"]
    assert projector.grad.abs().max() > 0
    grafted.module.zero_grad(set_to_none=True)
    grafted.module.train()
    with grafted.inference():
        assert not grafted.module.training
        assert not grafted.embed(features).requires_grad
    assert grafted.module.training
    grafted.module.eval()


def test_other_values_for_some_parameters(grafted: Embedder) -> None:
    """Embedding with doubled projector weights is embedding with a model that has them."""
    features = grafted.prepare([pair["audio"] for pair in sounds(2)], "audio")
    name = "audio_projector.layers.0.weight"
    value = (2 * grafted.state_dict.values[name].detach()).requires_grad_()
    swapped = grafted.embed_with({name: value}, features)
    (gradient,) = torch.autograd.grad(swapped.square()[:, 0].sum(), value)
    assert gradient.abs().max() > 0
    other = copy.deepcopy(grafted)
    with torch.no_grad():
        other.state_dict.values[name].mul_(2)
    torch.testing.assert_close(swapped, other.embed(features))
    assert not torch.equal(grafted.embed(features), swapped)


def test_a_copy_in_another_precision_leaves_the_first_alone(grafted: Embedder) -> None:
    before = grafted.encode(TEXTS)
    twin = copy.deepcopy(grafted).to(dtype=torch.bfloat16)
    assert twin.dtype == torch.bfloat16 and grafted.dtype == torch.float32
    assert {info.dtype for name, info in twin.state_dict.tensors.items() if "position_ids" not in name} == {"BF16"}
    np.testing.assert_array_equal(grafted.encode(TEXTS), before)
    assert twin.encode([pair["audio"] for pair in sounds(2)], "audio").dtype == np.float32


def test_what_it_does_not_take_is_told(model: Any) -> None:
    embedder = open_embedder(model)
    assert embedder.modalities == ("text",)
    with pytest.raises(UsageError, match="contains audio, for which the model has no encoder\n    the model takes"):
        embedder.prepare([np.zeros(400)], "audio")


def test_saved_it_opens_as_the_same(grafted: Embedder, tmp_path: Path) -> None:
    grafted.save(tmp_path / "again")
    again = open_embedder(tmp_path / "again")
    items = [pair["audio"] for pair in sounds(3)]
    np.testing.assert_array_equal(again.encode(items, "audio"), grafted.encode(items, "audio"))
    assert again.label == str(tmp_path / "again")
