"""A disk that fails is reported as that: not as a problem of the recipe's line, nor as a difference between models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import random_model, write_model

from taskmerge.errors import (
    CheckpointError,
    InputError,
    MergeError,
    OutputError,
    RecipeError,
    TaskmergeError,
    UsageError,
)
from taskmerge.merging import plan
from taskmerge.merging.algebra.comparison import differences
from taskmerge.pipeline.checks import check
from taskmerge.pipeline.presence import model_problems
from taskmerge.pipeline.state import Places, Run
from taskmerge.recipes import Recipe, loads

RECIPE = "base: base\nspecialists: {image: {model: image, weight: 0.5}}\noutput: {path: fused}\n"
DISK = OutputError("the disk reports an error", "model.safetensors", "repair it")


def running(recipe: Recipe) -> Run:
    return Run(recipe, Places(recipe.folder / "fused"))


ACTIONS: dict[str, Callable[[Recipe], Any]] = {
    "taskmerge.merging.inputs.open_stored": plan,
    "taskmerge.pipeline.presence.locate": lambda recipe: list(model_problems(running(recipe), ["fuse"])),
    "taskmerge.checkpoints.formats.reading.open_stored": lambda recipe: check(running(recipe), ["fuse"]),
    "taskmerge.merging.algebra.comparison.align_all": lambda recipe: differences(
        recipe.folder / "base", recipe.folder / "image"
    ),
}


@pytest.mark.parametrize("error", [DISK, CheckpointError("is damaged", "model.safetensors")], ids=["disk", "model"])
@pytest.mark.parametrize("place", ACTIONS)
def test_only_a_model_is_a_problem_of_the_recipe(
    place: str, error: TaskmergeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("base", "image")):
        write_model(tmp_path / name, random_model(seed))
    recipe = loads(RECIPE, "recipe.yaml", tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, fails)
    if error is DISK:
        with pytest.raises(OutputError) as told:
            ACTIONS[place](recipe)
        assert told.value is DISK
    else:
        try:
            ACTIONS[place](recipe)
        except RecipeError as told_so:
            assert "recipe.yaml:" in str(told_so)


def test_whatever_a_user_can_name_is_an_input() -> None:
    assert all(issubclass(one, InputError) for one in (CheckpointError, MergeError, RecipeError, UsageError))
    assert not issubclass(OutputError, InputError)
