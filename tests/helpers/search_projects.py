"""A recipe to search on tiny models: two text specialists of one random backbone, pairs made of words."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from omni_models import WORDS, tiny_backbone
from safetensors.torch import load_file, save_file

RECIPE = """\
base: base
specialists:
  law: {model: law, weight: 0.3}
  code: {model: code, weight: 0.4}
output: {path: out/fused}
search:
  vary: {specialists.*.weight: [0.1, 1.0]}
  on: {law: law.jsonl, code: code.jsonl}
  confirm: {law: law_confirm.jsonl, code: code_confirm.jsonl}
  trials: 4
  sensitivity: 3
"""


def specialist(base: Path, folder: Path, seed: int, size: float = 0.3) -> Path:
    """The base moved at random, in tensors of real numbers."""
    import shutil

    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    moved = {
        name: tensor + size * tensor.std().nan_to_num(0.1) * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


def pairs(path: Path, count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows of three words that look for the same words in another order; also written to a file."""
    words = list(itertools.islice(itertools.permutations(WORDS[1:], 3), start * 7, None, 11))[:count]
    rows = [{"query": f"{a} {b} {c}", "text": f"{c} {a} {b}"} for a, b, c in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def new_project(folder: Path, recipe: str = RECIPE, count: int = 40) -> Path:
    """Models, pairs and the recipe; returns where that lies."""
    from sentence_transformers import SentenceTransformer

    folder.mkdir(parents=True, exist_ok=True)
    model = SentenceTransformer(str(tiny_backbone(folder / "plain")), device="cpu")
    model.save_pretrained(str(folder / "base"), create_model_card=False)
    specialist(folder / "base", folder / "law", 1)
    specialist(folder / "base", folder / "code", 2)
    for place, name in enumerate(("law", "code", "law_confirm", "code_confirm")):
        pairs(folder / f"{name}.jsonl", count, place)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def trials_of(outcome: Any) -> dict[str, tuple[dict[str, Any], tuple[float, ...]]]:
    """Name -> (values, results) of every point of an outcome."""
    return {point.name: (dict(point.values), tuple(point.results)) for point in outcome.points}
