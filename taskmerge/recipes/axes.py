"""Axes of a search: each is one number, or one word, of a recipe; values on all axes make another recipe.

| target                                   | axes                                                              |
|------------------------------------------|-------------------------------------------------------------------|
| `specialists.NAME.weight`                | the weight of each specialist that the glob NAME selects          |
| `merge.method`                           | the method; parameters it does not have are left out              |
| `merge.PARAMETER`                        | a parameter of the method, `scale` among them; `merge.weight`     |
| `rules.PATTERN.weight`                   | in a rule for the tensors of PATTERN, the weight of each specialist |
| `rules.PATTERN.NAME.weight`              | the same, of one specialist                                       |
| `rules.PATTERN.PARAMETER`                | in that rule, a parameter of the method                           |

A rule that is varied is placed before the recipe's first rule that merges, and after earlier ones that keep or drop; if
the recipe has a rule with exactly the same pattern, that one is varied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskmerge.declarations import Number, Parameter
from taskmerge.errors import Problem, RecipeError, UsageError, did_you_mean
from taskmerge.methods import MergeMethod, find_method
from taskmerge.recipes.recipe import Recipe
from taskmerge.recipes.searching import Choice, Range
from taskmerge.words.patterns import Pattern, PatternError

WEIGHT, METHOD = "weight", "method"


@dataclass(frozen=True)
class Axis:
    """One number or word that is varied.

    name: as tables and studies call it.  target: the key of `vary` that it comes from.  option: "weight", "method" or a
    parameter's name.  specialist: whose weight.  pattern: of the rule that it stands in.  index, count: which of how
    many numbers over depth.  bounds: of numbers; choices: else.  integer: whole numbers only.  methods: those that take
    it; () for all.
    """

    name: str
    target: str
    option: str
    range: Range
    specialist: str | None = None
    pattern: str | None = None
    index: int | None = None
    count: int = 1
    integer: bool = False
    methods: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lower and upper bound; None for an axis of choices."""
        return self.range.bounds

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices; () for an axis with bounds."""
        return self.range.choices

    @property
    def ends(self) -> tuple[Any, ...]:
        """The outermost values, or all that can be chosen."""
        return self.choices if self.bounds is None else tuple(self.number(value) for value in self.bounds)

    def number(self, value: float) -> float | int:
        """Return a number as a value of the axis: rounded for an axis of integers."""
        return round(value) if self.integer else float(value)

    def grid(self, most: int) -> list[Any]:
        """Return all values, or `most` of them evenly spread over the range."""
        if self.bounds is None:
            return list(self.choices)
        low, high = self.bounds
        if self.range.step is not None and (high - low) / self.range.step + 1 <= most:
            return [self.number(value) for value in steps(low, high, self.range.step)]
        between = [place / (most - 1) for place in range(most)] if most > 1 else [0.5]
        if self.range.log:
            found = [low * (high / low) ** share for share in between]
        else:
            found = [low + (high - low) * share for share in between]
        if self.range.step is not None:
            found = [low + round((value - low) / self.range.step) * self.range.step for value in found]
        rounded = (min(max(float(f"{value:.6g}"), low), high) for value in found)
        return list(dict.fromkeys(self.number(value) for value in rounded))

    def holds(self, value: Any) -> bool:
        """Return whether a value is on the axis."""
        if self.bounds is None:
            return value in self.choices
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        low, high = self.bounds
        on_step = self.range.step is None or math.isclose(
            (value - low) / self.range.step, round((value - low) / self.range.step), abs_tol=1e-9
        )
        return low <= value <= high and on_step

    def applies(self, values: Mapping[str, Any], recipe: Recipe) -> bool:
        """Return whether the axis matters with the method among `values`."""
        return not self.methods or values.get(f"merge.{METHOD}", recipe.merge.method) in self.methods


def steps(low: float, high: float, step: float) -> list[float]:
    """Return low, low + step, … up to high, without the rounding errors of additions."""
    return [float(f"{low + place * step:.10g}") for place in range(math.floor((high - low) / step + 1e-9) + 1)]


def axes_of(recipe: Recipe, vary: Mapping[str, Range] | None = None) -> tuple[Axis, ...]:
    """Return every axis of a recipe's `search`, or of other ranges.

    Raises:
        RecipeError: with every target that names nothing.
    """
    if vary is None:
        vary = {} if recipe.search is None else recipe.search.vary
    methods = _methods(recipe, vary)
    problems: list[Problem] = []
    found: dict[str, Axis] = {}
    for target, said in vary.items():
        try:
            for axis in _axes(recipe, target, said.read(), methods):
                if axis.name in found:
                    raise UsageError(
                        f"{axis.name} is varied twice, also as {found[axis.name].target!r}",
                        next_move="remove one of the two",
                    )
                found[axis.name] = axis
        except UsageError as error:
            what = f"search: vary: {target}: "
            problems += [Problem(what + told.what, said.place or None, told.next_move) for told in error.problems]
    if problems:
        raise RecipeError(problems)
    return tuple(found.values())


def _methods(recipe: Recipe, vary: Mapping[str, Range]) -> dict[str, MergeMethod]:
    """Name -> method, of every one that can be chosen. Unknown names are told as values."""
    said = vary.get(f"merge.{METHOD}")
    names = [recipe.merge.method] if said is None else [str(one) for one in said.values]
    found = {}
    for name in names:
        try:
            found[name] = find_method(name, recipe.folder)
        except UsageError as error:
            place = recipe.merge.place if said is None else said.place
            told = error.problems[0]
            raise RecipeError(f"search: vary: merge.method: {told.what}", place, told.next_move) from None
    return found


def _axes(recipe: Recipe, target: str, said: Range, methods: Mapping[str, MergeMethod]) -> Iterator[Axis]:
    head, _, rest = target.partition(".")
    inner, _, option = rest.rpartition(".")
    if head == "specialists" and option == WEIGHT and inner:
        if recipe.merge.weight is not None:
            raise UsageError("merge.weight replaces the specialists' own weights", next_move="leave out merge.weight")
        for name in _specialists(recipe, inner):
            yield from _over_depth(Axis(f"specialists.{name}.weight", target, WEIGHT, said, specialist=name))
    elif head == "merge" and rest == METHOD:
        if not said.choices:
            raise UsageError("methods must be a list of names", next_move="write [task_arithmetic, ties]")
        yield Axis(f"merge.{METHOD}", target, METHOD, said)
    elif head == "merge" and rest and not inner:
        yield from _over_depth(_option(f"merge.{rest}", target, rest, said, methods, None))
    elif head == "rules" and inner:
        yield from _rule_axes(recipe, target, inner, option, said, methods)
    else:
        known = ["specialists.*.weight", "merge.method", "merge.scale", "rules.PATTERN.weight"]
        known += [f"specialists.{name}.weight" for name in recipe.specialists]
        known += [f"merge.{row.name}" for method in methods.values() for row in method.recipe_parameters]
        raise UsageError("cannot be varied", next_move=did_you_mean(target, known))


def _rule_axes(
    recipe: Recipe, target: str, inner: str, option: str, said: Range, methods: Mapping[str, MergeMethod]
) -> Iterator[Axis]:
    pattern, _, last = inner.rpartition(".")
    one = last in recipe.specialists and bool(pattern)
    pattern = pattern if one else inner
    try:
        Pattern.parse(pattern)
    except PatternError as error:
        raise UsageError(error.problems[0].what, next_move=error.problems[0].next_move) from None
    if option != WEIGHT:
        if one:
            raise UsageError(
                f"{last!r} can have its own weight, but not its own {option!r}",
                next_move=f"write rules.{pattern}.{option}",
            )
        yield from _over_depth(_option(f"rules.{pattern}.{option}", target, option, said, methods, pattern))
        return
    for name in [last] if one else recipe.specialists:
        axis = Axis(f"rules.{pattern}.{name}.weight", target, WEIGHT, said, specialist=name, pattern=pattern)
        yield from _over_depth(axis)


def _option(
    name: str, target: str, option: str, said: Range, methods: Mapping[str, MergeMethod], pattern: str | None
) -> Axis:
    if option == WEIGHT:
        return Axis(name, target, WEIGHT, said)
    rows = {key: _row(method, option) for key, method in methods.items()}
    having = {key: row for key, row in rows.items() if row is not None}
    if not having:
        known = [f"merge.{row.name}" for method in methods.values() for row in method.recipe_parameters]
        who = ", ".join(methods)
        raise UsageError(f"{who} has no parameter {option!r}", next_move=did_you_mean(f"merge.{option}", known))
    whole = all(_is_whole(row) for row in having.values())
    takers = () if len(having) == len(methods) else tuple(having)
    return Axis(name, target, option, said, pattern=pattern, integer=whole, methods=takers)


def _row(method: MergeMethod, option: str) -> Parameter | None:
    return next((row for row in method.recipe_parameters if row.name == option), None)


def _is_whole(row: Parameter) -> bool:
    kinds = [row.kind, *getattr(row.kind, "alternatives", ())]
    return any(isinstance(kind, Number) and kind.integer for kind in kinds)


def _specialists(recipe: Recipe, glob: str) -> list[str]:
    try:
        found = Pattern.parse(glob).filter(recipe.specialists)
    except PatternError as error:
        raise UsageError(error.problems[0].what, next_move=error.problems[0].next_move) from None
    if not found:
        move = did_you_mean(glob, recipe.specialists)
        raise UsageError(f"{glob!r} matches none of the specialists", next_move=move)
    return found


def _over_depth(axis: Axis) -> Iterator[Axis]:
    count = axis.range.depth
    if count is None:
        yield axis
        return
    if axis.bounds is None or axis.integer:
        raise UsageError("depth is for numbers within a range", next_move="write {low: 0.1, high: 1.0, depth: 3}")
    for index in range(count):
        yield replace(axis, name=f"{axis.name}[{index}]", index=index, count=count)
