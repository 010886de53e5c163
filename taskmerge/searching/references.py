"""The points that every search looks at first: each specialist alone, the recipe as it is, 1/N, MetaGPT's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskmerge.errors import InputError
from taskmerge.merging.bench import Bench, squared_lengths
from taskmerge.methods.weighting import metagpt_weights
from taskmerge.recipes import Recipe, from_dict
from taskmerge.recipes.axes import WEIGHT, Axis
from taskmerge.recipes.varied import current, with_values

OWN = "own"
EQUAL = "1/N"
METAGPT = "metagpt"


def alone(name: str) -> str:
    """Return the name of the point of one specialist alone."""
    return f"only {name}"


def references(bench: Bench, axes: Sequence[Axis]) -> dict[str, Recipe]:
    """Return the recipe of every reference point by name, in the order of scoring.

    1/N and MetaGPT's weights (arXiv 2406.11385: shares of the squared lengths, over the whole model) are there where
    several specialists' weights are varied.
    """
    recipe = bench.recipe
    found = {alone(name): lone(bench, name) for name in recipe.specialists}
    found[OWN] = with_values(recipe, (), {})
    if len(recipe.specialists) > 1 and any(axis.option == WEIGHT and axis.specialist for axis in axes):
        names = list(recipe.specialists)
        found[EQUAL] = with_weights(recipe, dict.fromkeys(names, 1 / len(names)))
        squares = squared_lengths(bench.fused(bench.plan))
        shares = metagpt_weights(np.diag([squares.get(name, 0.0) for name in names]))
        found[METAGPT] = with_weights(
            recipe, {name: round(float(one), 6) for name, one in zip(names, shares, strict=True)}
        )
    return found


def lone(bench: Bench, name: str) -> Recipe:
    """Return one specialist by itself: base + its task vector, even if rules of the recipe keep the base's tensors.

    Where that cannot be planned the rules stay.
    """
    table = with_weights(bench.recipe, {one: float(one == name) for one in bench.recipe.specialists}).to_dict()
    merge = table.get("merge", {})
    rules = merge.get("rules", [])
    kept = [rule for rule in rules if rule.get("drop") or rule.get("keep", "base") != "base"]
    plain = {**table, "merge": {"method": "task_arithmetic", **({"rules": kept} if kept else {})}}
    found = from_dict(plain, bench.recipe.folder)
    try:
        bench.planned(found)
    except InputError:
        return from_dict({**table, "merge": {"method": "task_arithmetic", "rules": rules}}, bench.recipe.folder)
    return found


def with_weights(recipe: Recipe, weights: Mapping[str, float]) -> Recipe:
    """Return the recipe with other weights of its specialists, and no `search`."""
    table = recipe.to_dict()
    table.pop("search", None)
    for name, weight in weights.items():
        said = table["specialists"][name]
        table["specialists"][name] = {**({"model": said} if isinstance(said, str) else said), WEIGHT: weight}
    if "merge" in table:
        table["merge"] = {key: value for key, value in table["merge"].items() if key != WEIGHT}
    return from_dict(table, recipe.folder)


def on_axes(recipe: Recipe, axes: Sequence[Axis]) -> dict[str, Any] | None:
    """Return a recipe as values on the axes; None if a value is not on its axis."""
    said = {axis.name: current(recipe, axis) for axis in axes}
    values = {axis.name: said[axis.name] for axis in axes if axis.applies(said, recipe)}
    return values if all(axis.holds(values[axis.name]) for axis in axes if axis.name in values) else None
