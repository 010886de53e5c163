"""A sweep: every point of a grid, from one opening of the models, in a table; the small form of a search."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.errors import RecipeError, UsageError
from taskmerge.merging.bench import Bench
from taskmerge.merging.fused import FusedStateDict
from taskmerge.numbers.rounding import decode
from taskmerge.recipes import Range, Recipe
from taskmerge.recipes.axes import Axis, axes_of, steps
from taskmerge.recipes.scores import DEFAULT, Objective, parse_objective
from taskmerge.recipes.varied import with_values
from taskmerge.searching.folder import SearchFolder
from taskmerge.searching.opening import live_model
from taskmerge.searching.pairs import read_sets, sources_of
from taskmerge.searching.scorer import Scorer, directions_of
from taskmerge.searching.setting import stripped
from taskmerge.words.places import output_path

MOST_POINTS = 1000


@dataclass(frozen=True)
class Swept:
    """One point. values: on the axes.  length: ‖merged - base‖ over ‖base‖, of all merged tensors.  cosines: of the
    merged task vector with each specialist's.  score: the objective, where there is one; scores: what it is made of."""

    values: Mapping[str, Any]
    recipe: Recipe
    length: float = math.nan
    cosines: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def read_sweeps(recipe: Recipe, texts: Sequence[str]) -> tuple[Axis, ...]:
    """Return the axes of `scale=0.1:1.0:0.1`, `method=ties,sum` and the like.

    Args:
        recipe: what is swept.
        texts: NAME=low:high:step or NAME=value,value; a bare name is one of `merge`'s.

    Raises:
        UsageError: for a text that cannot be read, a name that is nothing, and more points than `MOST_POINTS`.
    """
    vary = {}
    for text in texts:
        name, equals, said = text.partition("=")
        if not equals or not name or not said:
            raise UsageError(f"--sweep {text!r} cannot be read", next_move="write --sweep scale=0.1:1.0:0.1")
        target = name if "." in name else f"merge.{name}"
        vary[target] = _range(text, said)
    try:
        axes = axes_of(recipe, vary)
    except RecipeError as error:
        told = error.problems[0]
        raise UsageError(told.what.replace("search: vary: ", "--sweep "), next_move=told.next_move) from None
    count = math.prod(len(points_on(axis)) for axis in axes)
    if count > MOST_POINTS:
        raise UsageError(
            f"--sweep: {count:,} points are too many", next_move="take larger steps, or `taskmerge search`"
        )
    return axes


def _range(text: str, said: str) -> Range:
    if ":" in said:
        found = Range(values=(said,)).read()
        if found.bounds is None:
            raise UsageError(f"--sweep {text!r}: {said!r} has no steps", next_move="write low:high:step, 0.1:1.0:0.1")
        return found
    words = [part.strip() for part in said.split(",")]
    if len(set(words)) < 2 or not all(words):
        raise UsageError(f"--sweep {text!r} has only one value", next_move="write several values: density=0.1,0.2,0.5")
    values: list[Any] = [_value(word) for word in words]
    if len(values) == 2 and all(isinstance(value, float) for value in values):
        low, high = sorted(values)
        return Range(low=low, high=high, step=high - low)
    return Range(values=tuple(values))


def _value(word: str) -> float | bool | str:
    try:
        return float(word)
    except ValueError:
        return {"true": True, "false": False}.get(word, word)


def points_on(axis: Axis) -> list[Any]:
    """Return every value of an axis."""
    if axis.bounds is None:
        return list(axis.choices)
    step = axis.range.step
    assert step is not None, "a sweep has steps"
    return [axis.number(value) for value in steps(*axis.bounds, step)]


def sweep(
    recipe: Recipe,
    axes: Sequence[Axis],
    *,
    scored: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[Swept]:
    """Return every point of a grid.

    Args:
        recipe: what is merged; its `search`, else its `evaluate`, says on which pairs points are scored.
        axes: what varies, see `read_sweeps`.
        scored: whether points are scored where there are pairs.
        device: where merges are computed and the model runs.
        say: is told of each point.

    Raises:
        RecipeError: for values that a recipe does not take, and pairs that cannot be read.
    """
    own = stripped(recipe)
    grid = [dict(zip([axis.name for axis in axes], values, strict=True))
            for values in itertools.product(*(points_on(axis) for axis in axes))]  # fmt: skip
    recipes = [with_values(own, axes, values) for values in grid]
    objective, sources, place = _objective(recipe) if scored else (None, {}, "")
    sets = read_sets(sources_of(sources, recipe.folder), "on", place)
    bench = Bench(own, device=device)
    plans = [bench.planned(one) for one in recipes]
    lengths = _geometry(bench, [bench.fused(plan) for plan in plans])
    found = [Swept(values, one, *row) for values, one, row in zip(grid, recipes, lengths, strict=True)]
    if objective is None:
        return found
    with tempfile.TemporaryDirectory(prefix=".taskmerge-sweep-", dir=_roomy(recipe)) as scratch:
        folder = SearchFolder(Path(scratch))
        folder.begin("a sweep", fresh=False)
        live = live_model(recipe, bench, None, folder, device)
        scorer = Scorer(live, sets, directions_of([objective], list(sets)), 32)
        for number, plan in enumerate(plans):
            scorer.moved(live.become(plan))
            result = scorer.score()
            one = found[number]
            found[number] = Swept(
                one.values, one.recipe, one.length, one.cosines, result.value(objective), result.means()
            )
            say(f"{', '.join(f'{name} {value}' for name, value in one.values.items())}: {found[number].score:.4f}")
    return found


def _roomy(recipe: Recipe) -> Path | None:
    """The place of a temporary model for scoring: on the disk of the output, if that is known."""
    if recipe.output.path is None:
        return None
    place = output_path(recipe.output.path, recipe.folder).parent
    return next((folder for folder in (place, *place.parents) if folder.is_dir()), None)


def _objective(recipe: Recipe) -> tuple[Objective | None, Mapping[str, Any], str]:
    """What points are scored by, on which pairs, and where that is said."""
    if recipe.search is not None and recipe.search.on:
        return parse_objective(recipe.search.maximize[0]), recipe.search.on, recipe.search.place
    if recipe.evaluate is not None and recipe.evaluate.retrieval:
        return parse_objective(DEFAULT), recipe.evaluate.retrieval, recipe.evaluate.place
    return None, {}, ""


def _geometry(bench: Bench, merged: Sequence[FusedStateDict]) -> list[tuple[float, dict[str, float]]]:
    """(relative length, cosine with each specialist) of every point; base and task vectors are read once."""
    base_square, squares = 0.0, [0.0] * len(merged)
    own: dict[str, float] = {}
    products: list[dict[str, float]] = [{} for _ in merged]
    for step in bench.plan.steps:
        if step.action != "merge":
            continue
        name, operands = step.info.name, merged[0].operands
        stored = operands.base(step)
        base = decode(stored.read(0, stored.count), stored.dtype)
        deltas = {source.label: operands.delta(step, source) for source in step.specialists}
        base_square += float(base @ base)
        for label, delta in deltas.items():
            own[label] = own.get(label, 0.0) + float(delta @ delta)
        for number, one in enumerate(merged):
            moved = decode(one.read(name), one.tensors[name].dtype) - base
            squares[number] += float(moved @ moved)
            for label, delta in deltas.items():
                products[number][label] = products[number].get(label, 0.0) + float(moved @ delta)
    return [
        (math.sqrt(square / base_square) if base_square else math.nan,
         {label: _cosine(row.get(label, 0.0), square, own[label]) for label in own})
        for square, row in zip(squares, products, strict=True)
    ]  # fmt: skip


def _cosine(product: float, one: float, two: float) -> float:
    return product / math.sqrt(one * two) if one and two else math.nan
