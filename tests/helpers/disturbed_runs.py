"""Fuses that are interrupted or disturbed, and what they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import write_model, write_recipe
from places import HELPERS

from taskmerge import recipes
from taskmerge.errors import OutputError
from taskmerge.merging import Written, execute, plan


def prepare(folder: Path, layers: int, size: int) -> Path:
    """Models of `layers` matrices, and a recipe that writes each into a shard of its own."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.weight" for i in range(layers)]
    for label in ("base", "image", "audio"):
        held = {name: torch.from_numpy(rng.standard_normal((size, size))).bfloat16() for name in names}
        write_model(folder / label, held)
    (folder / "base" / "tokenizer.json").write_text("{}")
    write_recipe(
        folder,
        base="base",
        specialists={"image": "image", "audio": {"model": "audio", "weight": 0.5}},
        merge={"method": "dare_ties", "density": 0.4},
        output={"path": "out", "shard_size": size * size * 2},
        seed=3,
    )
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HELPERS), "TASKMERGE_THREADS": "2"}


class StopsAfter:
    """Progress that is interrupted, as by Ctrl-C, once so many bytes are written."""

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


class Once:
    """Progress that changes something when the first bytes are written."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change: Callable[[], object] | None = change

    def __call__(self, count: int) -> None:
        change, self.change = self.change, None
        if change:
            change()


def run(folder: Path, **options: Any) -> Written:
    recipe = recipes.load(folder / "merge.yaml")
    return execute(plan(recipe), recipe, folder / "out", **options)


def change_recipe(folder: Path, **changes: Any) -> None:
    said = yaml.safe_load((folder / "merge.yaml").read_text())
    write_recipe(folder, **{**said, **changes})


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(OutputError) as caught:
        run(folder, **options)
    return str(caught.value)
