"""Projectors, layers and placeholders of architectures that own their towers, and capturing inside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zoo

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.embedders.anatomy import Anatomy, native_anatomy
from taskmerge.embedders.interface import Embedder
from taskmerge.measuring.drift.capture import capture

# class -> modality -> where one of its projector modules stands
PROJECTORS = {
    "LLaVA": {"image": "multi_modal_projector"},
    "Qwen2-VL": {"image": "visual.merger"},
    "Qwen2.5-VL": {"image": "visual.merger"},
    "Qwen3-VL": {"image": "visual.deepstack_merger_list.1"},
    "Gemma 3": {"image": "multi_modal_projector"},
    "Qwen2-Audio": {"audio": "multi_modal_projector"},
    "Voxtral": {"audio": "multi_modal_projector"},
    "AudioFlamingo 3": {"audio": "multi_modal_projector"},
    "Qwen2.5-Omni thinker": {"audio": "model.audio_tower.proj", "image": "model.visual.merger"},
    "Qwen3-Omni-MoE thinker": {"audio": "model.audio_tower.proj2", "image": "model.visual.merger_list.0"},
    "EmbeddingGemma 2": {"audio": "embed_audio", "image": "embed_vision"},
}
KINDS = {kind.name: kind for kind in zoo.KINDS}


class Network(Embedder):
    """An embedder of one's own: prepared inputs in, the mean of the network's last states out."""

    modalities = ("text", "image", "audio")

    def __init__(self, kind: zoo.Kind) -> None:
        self.kind, self.label = kind, kind.name
        self.module = kind.build(kind.classes[-1]).eval()

    @property
    def state_dict(self) -> MemoryStateDict:
        return MemoryStateDict.of_module(self.module)

    def prepare(self, items: Any, modality: Any = None, role: Any = None) -> dict[str, Any]:
        return self.kind.inputs()

    def embed(self, features: dict[str, Any]) -> torch.Tensor:
        return self.module(**features).last_hidden_state.mean(dim=1)

    def anatomy(self, components: Any = None) -> Anatomy:
        parts = component_map(self.state_dict.tensors, self.state_dict.config, components)
        return native_anatomy(self.module, {name: parts.home(name) for name in parts})

    def save(self, path: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("name", PROJECTORS)
def test_parts_are_found(name: str) -> None:
    embedder = Network(KINDS[name])
    network: Any = embedder.module
    anatomy = embedder.anatomy()
    assert list(anatomy.layers) == list(network.get_decoder().layers)
    for modality, place in PROJECTORS[name].items():
        assert network.get_submodule(place) in anatomy.projectors[modality]
        assert anatomy.placeholders[modality] == getattr(network.config, f"{modality}_token_id")
    assert anatomy.token_table is not None
    assert anatomy.token_table.shape == (network.config.get_text_config().vocab_size, 32)


@pytest.mark.parametrize("name", ["LLaVA", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Gemma 3", "Qwen2-Audio"])
def test_states_are_caught_at_the_projected_tokens(name: str) -> None:
    embedder = Network(KINDS[name])
    (modality,) = PROJECTORS[name]
    anatomy = embedder.anatomy()
    caught = capture(embedder, [None, None], anatomy, modality)
    features = embedder.prepare([])
    with torch.no_grad():
        states = embedder.module(**features, output_hidden_states=True).hidden_states
    mask = features["input_ids"] == anatomy.placeholders[modality]
    assert len(caught.hidden) == 3
    for depth in (0, 1):
        np.testing.assert_allclose(caught.hidden[depth], states[depth][mask].numpy(), rtol=1e-5, atol=1e-6)
    assert len(caught.projected) == len(anatomy.projectors[modality])  # every one of them ran, and was heard
    assert caught.fed is not None
    assert caught.fed.shape == caught.hidden[0].shape
