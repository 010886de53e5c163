"""Tiny architectures that own their towers, as SentenceTransformers: real network classes, features made without files.

Processors of these models need a vocabulary and a template each; here sounds and pictures become the networks' own
input tensors in a few lines, so that what is tested is the network's component map, hooks and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import zoo
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule
from sentence_transformers.sentence_transformer.modules import Pooling

FRAMES, MELS = 100, 8


@dataclass(frozen=True)
class Native:
    """modality: of its items.  token, count: the placeholder and how many stand for one item.  config: changes."""

    modality: str
    token: int
    count: int
    mask: str | None = None
    mels: int = MELS
    frames: int = FRAMES
    config: Mapping[str, Any] | None = None


VOXTRAL_EARS = {"model_type": "voxtral_encoder", **zoo.AUDIO_ENCODER, "intermediate_size": 64} | {
    "max_source_positions": 48  # 4 states of 16 make a token of 64: whole tokens for each item
}
NATIVE = {
    "Qwen2-Audio": Native("audio", 61, 25, "feature_attention_mask"),
    "Qwen2.5-Omni thinker": Native("audio", 61, 25, "feature_attention_mask"),
    "Voxtral": Native("audio", 61, 12, frames=96, config={"audio_config": VOXTRAL_EARS}),
    "EmbeddingGemma 2": Native("audio", 61, 25, "input_features_mask", mels=128),
    "Qwen3-VL": Native("image", 60, 4),
}


class Prepared(InputModule):
    """First module: strings, or items of the one modality, to token embeddings of the network."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.own = NATIVE[name]
        kind = zoo.BY_NAME[name]
        if self.own.config:
            kind = replace(kind, config={**kind.config, **self.own.config})
        self.auto_model = kind.build(kind.classes[-1])

    @property
    def modalities(self) -> list[Any]:
        return ["text", self.own.modality]

    def get_embedding_dimension(self) -> int:
        return 32

    def preprocess(self, inputs: Any, prompt: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        inputs = list(inputs)
        if isinstance(inputs[0], str):
            ids = [[3 + sum(word.encode()) % 40 for word in text.split()] for text in inputs]
            return self._padded(ids)
        features = self._padded([[5, *[self.own.token] * self.own.count, 6]] * len(inputs))
        return features | (self._pictures(inputs, features) if self.own.modality == "image" else self._sounds(inputs))

    def _padded(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def _sounds(self, items: list[Any]) -> dict[str, torch.Tensor]:
        """Log power of FFT bands, (items, mels, frames), or (items, frames, mels) for a network with a frame mask."""
        waves = [np.resize(item["array"], (self.own.frames, 512)) for item in items]
        bands = np.stack([np.abs(np.fft.rfft(wave))[:, : self.own.mels].T for wave in waves])
        values = torch.from_numpy(np.log1p(bands)).float()
        given = {"input_features": values.mT if self.own.mask == "input_features_mask" else values}
        if self.own.mask:
            given[self.own.mask] = torch.ones(len(items), self.own.frames, dtype=torch.long)
        if self.own.mask == "input_features_mask":
            given[self.own.mask] = given[self.own.mask].bool()
        return given

    def _pictures(self, items: list[Any], features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """4 x 4 patches of 4 x 4 pixels, twice: Qwen's two frames of a still picture."""
        small = [np.asarray(item.resize((16, 16)), np.float32) / 255 for item in items]
        patches = [picture.reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(16, 48) for picture in small]
        values = torch.from_numpy(np.concatenate([np.concatenate([rows, rows], axis=1) for rows in patches]))
        kinds = (features["input_ids"] == self.own.token).int()
        return {
            "pixel_values": values, "image_grid_thw": torch.tensor([[1, 4, 4]] * len(items)),
            "mm_token_type_ids": kinds,
        }  # fmt: skip

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "input_features", "pixel_values", "image_grid_thw", "mm_token_type_ids")
        given = {name: features[name] for name in (*names, self.own.mask) if name in features}
        states = self.auto_model(**given, output_hidden_states=True).hidden_states
        return features | {"token_embeddings": states[-1]}

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        raise NotImplementedError


def native(name: str) -> SentenceTransformer:
    """The architecture of that name in `NATIVE` with random weights."""
    return SentenceTransformer(modules=[Prepared(name), Pooling(32, "mean")], device="cpu").eval()
