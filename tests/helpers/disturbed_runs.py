"""Fuses that are interrupted or disturbed, and what they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import write_recipe
from places import HELPERS

from taskmerge import recipes
from taskmerge.errors import OutputError
from taskmerge.merging import Written, execute, plan


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
