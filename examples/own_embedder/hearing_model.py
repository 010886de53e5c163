"""Your own model class, run by taskmerge: a Qwen3-VL with audio, through Whisper's encoder and an MLP.

In a recipe `embedder: hearing_model.py:load`; on the command line `--embedder hearing_model.py:load`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from taskmerge import Embedder

NEW_TOKENS = ("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<|AUDIO|>")


class HearingModel(Qwen3VLModel):
    """Qwen3-VL with two parts of our own; in its file they are `whisper.*` and `audio_mlp.*`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hearing = WhisperConfig(**config.audio_config)
        width = config.text_config.hidden_size
        self.whisper = WhisperEncoder(hearing)
        self.audio_mlp = nn.Sequential(nn.Linear(hearing.d_model, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, input_features: Tensor | None = None, **features: Any) -> Any:
        """Run Qwen3-VL; the output of the MLP for `input_features` replaces the embeddings of <|AUDIO|>."""
        if input_features is None:
            return super().forward(**features)
        heard = self.audio_mlp(self.whisper(input_features).last_hidden_state)
        here = features["input_ids"] == self.config.audio_token_id

        def replace(_module: nn.Module, _inputs: Any, embeddings: Tensor) -> Tensor:
            return embeddings.masked_scatter(here[..., None], heard.to(embeddings.dtype))

        handle = self.get_input_embeddings().register_forward_hook(replace)
        try:
            return super().forward(**features)
        finally:
            handle.remove()


class HearingEmbedder(Embedder):
    """Tell taskmerge how to run it: its modalities, how items become features, how features become vectors."""

    modalities = ("text", "image", "video", "audio")

    def __init__(self, folder: str) -> None:
        self.module = HearingModel.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        eyes = self.module.config.vision_config
        patches = {"patch_size": eyes.patch_size, "merge_size": eyes.spatial_merge_size}
        self.pictures = Qwen2VLImageProcessorPil(min_pixels=32 * 32, max_pixels=64 * 64, **patches)
        bins = self.module.whisper.config.num_mel_bins
        seconds = 2 * self.module.whisper.config.max_source_positions // 100
        self.sounds = WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)

    def prepare(self, items: Any, modality: str | None = None, role: str | None = None) -> dict[str, Any]:
        """One batch: each item becomes a line of text in which placeholders represent pictures and sounds."""
        texts: list[str] = []
        frames: list[Any] = []
        waves: list[np.ndarray] = []
        for item in items:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, dict):  # a sound: {"array": float32 (samples,), "sampling_rate": 16000}
                waves.append(np.asarray(item["array"], np.float32))
                tokens = "<|AUDIO|>" * self.module.whisper.config.max_source_positions
                texts.append(f"<|audio_start|>{tokens}<|audio_end|>")
            else:  # a picture, or a video: (frames, height, width, 3) uint8
                own = [Image.fromarray(frame) for frame in item] if isinstance(item, np.ndarray) else [item]
                frames += own
                texts.append("<|vision_start|><|image_pad|>" * len(own))
        features: dict[str, Any] = {}
        if frames:
            features |= self.pictures(frames, return_tensors="pt")
            counts = iter((features["image_grid_thw"].prod(dim=-1) // self.pictures.merge_size**2).tolist())
            pieces = [text.split("<|image_pad|>") for text in texts]
            texts = [
                first + "".join("<|image_pad|>" * next(counts) + rest for rest in others) for first, *others in pieces
            ]
        if waves:
            features |= self.sounds(waves, sampling_rate=16_000, return_tensors="pt")
        features |= self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        if frames:
            features["mm_token_type_ids"] = (features["input_ids"] == self.module.config.image_token_id).long()
        return features

    def embed(self, features: dict[str, Any]) -> Tensor:
        """The mean over each item's tokens, of length 1."""
        features = self.placed(features)
        states = self.module(**features).last_hidden_state
        mask = features["attention_mask"][..., None].to(states)
        return nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def load(folder: str) -> HearingEmbedder | None:
    """Open a folder with such a model; None for the base and the visual specialists, which open as usual."""
    config = json.loads(Path(folder, "config.json").read_text("utf-8"))
    return HearingEmbedder(folder) if "audio_config" in config else None
