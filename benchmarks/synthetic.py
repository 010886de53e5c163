"""Synthetic checkpoints that behave like real ones: a base, and specialists a small fine-tuning step away from it.

The base is normal with standard deviation 0.02; each specialist adds normal noise of its own size, rounded to bf16,
so that the deltas hold many zeros and ties, as those of real bf16 checkpoints do.

    python benchmarks/synthetic.py FOLDER --shape qwen2 --billions 0.494 --specialists 3
"""

from __future__ import annotations

import argparse
import json
import math
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

VOCABULARY = 151_936
NOISE = (1.0e-3, 2.0e-3, 5.0e-4, 1.5e-3, 7.0e-4, 2.5e-3, 3.0e-4, 1.2e-3)
_CHUNK, _CHUNKS = 1 << 22, 8
SIZES = {0.1: (384, 16, 2048), 0.494: (896, 24, 4864), 2.0: (1536, 38, 8960)}  # billions: hidden, layers, inner
MANY_TENSORS, LITTLE = 5_000, 4_096
HUGE = (151_936, 2_048)

Shapes = dict[str, tuple[int, ...]]


def qwen2(hidden: int, layers: int, inner: int) -> Shapes:
    """Tensor shapes of a Qwen2 model with tied embeddings and two key/value heads of 64."""
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        here = f"model.layers.{layer}."
        shapes[here + "input_layernorm.weight"] = (hidden,)
        shapes[here + "post_attention_layernorm.weight"] = (hidden,)
        for name, size in (("q", hidden), ("k", 128), ("v", 128)):
            shapes[here + f"self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[here + f"self_attn.{name}_proj.bias"] = (size,)
        shapes[here + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[here + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[here + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[here + "mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def shapes_of(kind: str, billions: float) -> tuple[Shapes, dict[str, object]]:
    """Tensor shapes and config.json. kind: "qwen2", "many" (5,000 tensors of 4,096) or "huge" (one embedding)."""
    if kind == "many":
        return {f"model.layers.{i}.weight": (LITTLE,) for i in range(MANY_TENSORS)}, {}
    if kind == "huge":
        return {"model.embed_tokens.weight": HUGE}, {}
    hidden, layers, inner = SIZES[billions]
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    return qwen2(hidden, layers, inner), config


def make(folder: Path, kind: str, billions: float, specialists: int) -> list[Path]:
    """Writes `base` and `specialist_1`, … into `folder` unless they are there; the paths, the base's first."""
    shapes, config = shapes_of(kind, billions)
    paths = [folder / "base", *(folder / f"specialist_{i + 1}" for i in range(specialists))]
    missing = [path for path in paths if not (path / "model.safetensors").exists()]
    if not missing:
        return paths
    files: dict[Path, BinaryIO] = {}
    for path in missing:
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config, indent=1))
        files[path] = (path / "model.safetensors.unfinished").open("wb")
        files[path].write(header(shapes))
    for number, shape in enumerate(shapes.values()):
        count = math.prod(shape)
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            for i, path in enumerate(paths):
                if path in files:
                    files[path].write(_entries(i, (number + chunk) % _CHUNKS)[: count - start].tobytes())
    for path, file in files.items():
        file.close()
        (path / "model.safetensors.unfinished").rename(path / "model.safetensors")
    return paths


@cache
def _entries(model: int, chunk: int) -> np.ndarray:
    """bf16 entries of the base (0) or a specialist, one of a few different chunks that the tensors are filled with."""
    random = np.random.default_rng((0, chunk))
    values = (random.standard_normal(_CHUNK, dtype=np.float32) * np.float32(0.02)).astype(np.float32)
    base = bfloat(values)
    if model == 0:
        return base
    noise = np.random.default_rng((model, chunk)).standard_normal(_CHUNK, dtype=np.float32)
    return bfloat((base.astype(np.uint32) << np.uint32(16)).view(np.float32) + np.float32(NOISE[model - 1]) * noise)


def bfloat(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits, to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def header(shapes: Shapes) -> bytes:
    """A safetensors header for bf16 tensors in this order, padded to eight bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("qwen2", "many", "huge"), default="qwen2")
    parser.add_argument("--billions", type=float, choices=sorted(SIZES), default=0.494)
    parser.add_argument("--specialists", type=int, default=3)
    arguments = parser.parse_args()
    for path in make(arguments.folder, arguments.shape, arguments.billions, arguments.specialists):
        print(path)


if __name__ == "__main__":
    main()
