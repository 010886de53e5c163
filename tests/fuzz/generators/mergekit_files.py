"""mergekit's configurations, damaged."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.generators.recipe_files import TEXTS, _dumped
from fuzz.mutation import damaged_value, odd_value

CONFIGS: tuple[dict[str, Any], ...] = (
    {
        "merge_method": "linear",
        "models": [{"model": "base", "parameters": {"weight": 0.4}}, {"model": "image", "parameters": {"weight": 0.6}}],
        "dtype": "float32",
    },
    {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "image", "parameters": {"weight": [0.1, 0.9], "density": 0.5}}, {"model": "base"}],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "bfloat16",
    },
    {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [{"sources": [{"model": "base", "layer_range": [0, 4]}, {"model": "image", "layer_range": [0, 4]}]}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]},
        "dtype": "float32",
    },
    {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "base", "layer_range": [0, 3]}]},
            {"sources": [{"model": "image", "layer_range": [1, 4]}]},
        ],
    },
    {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "image", "parameters": {"weight": 0.3}}],
        "tokenizer_source": "union",
        "chat_template": "auto",
        "out_dtype": "float16",
    },
)
METHODS = (
    "dare_ties",
    "dare_linear",
    "della",
    "breadcrumbs",
    "model_stock",
    "nuslerp",
    "sce",
    "arcee_fusion",
    "karcher",
    "multislerp",
    "passthrough",
    "x",
)


@generator("mergekit", share=4)
def mergekit_configs(rng: Random, room: Path) -> list[Command]:
    """Configurations of mergekit: values, keys, slices, filters and methods damaged."""
    names = sorted(path.name for path in room.iterdir() if path.is_dir())
    tree = damaged_value(rng, rng.choice(CONFIGS), rng.choice((0, 1, 1, 2)) or 1)
    if isinstance(tree, dict) and rng.random() < 0.3:
        tree["merge_method"] = rng.choice(METHODS)
    if isinstance(tree, dict) and rng.random() < 0.3:
        tree[
            rng.choice(
                (
                    "base_model",
                    "dtype",
                    "parameters",
                    "tokenizer_source",
                    "tokenizer",
                    "chat_template",
                    "slices",
                    "modules",
                )
            )
        ] = odd_value(rng)
    data = _dumped(tree)
    for old, new in zip((b"base", b"image"), names, strict=False):
        data = data.replace(b" " + old + b"\n", b" " + new.encode() + b"\n")
    if rng.random() < 0.1:
        lines = data.split(b"\n")
        lines.insert(rng.randrange(len(lines)), rng.choice(TEXTS).encode())
        data = b"\n".join(lines)
    (room / "mergekit.yaml").write_bytes(data)
    return [
        command("fuse", "mergekit.yaml", "--out", "out", *(["--dry-run"] if rng.random() < 0.3 else []), writes=["out"])
    ]
