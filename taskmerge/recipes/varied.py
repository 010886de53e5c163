"""Values on the axes of a search, put into a recipe, and what a recipe itself says there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskmerge.errors import Problem, RecipeError, UsageError
from taskmerge.methods import find_method
from taskmerge.recipes.axes import METHOD, WEIGHT, Axis, axes_of
from taskmerge.recipes.recipe import Recipe, from_dict
from taskmerge.recipes.searching import Range


def value_problems(recipe: Recipe, axes: Sequence[Axis]) -> Iterator[Problem]:
    """Yield the problems of the recipe at the ends of every axis, each with the others unchanged."""
    told: set[str] = set()
    for axis in axes:
        for value in axis.ends:
            near = {one.name: one.ends[0] for one in axes if one.count > 1 and one.name.rpartition("[")[0] ==
                    axis.name.rpartition("[")[0]}  # fmt: skip
            values = {**_method_for(axis, recipe), **near, axis.name: value}
            try:
                with_values(recipe, axes, values)
            except UsageError as error:
                for problem in error.problems:
                    what = f"search: vary: {axis.target}: {problem.what}"
                    if what not in told:
                        told.add(what)
                        yield Problem(what, axis.range.place or None, problem.next_move)


def _method_for(axis: Axis, recipe: Recipe) -> dict[str, Any]:
    if not axis.methods or recipe.merge.method in axis.methods:
        return {}
    return {f"merge.{METHOD}": axis.methods[0]}


def current(recipe: Recipe, axis: Axis) -> Any:
    """Return the recipe's own value on an axis; None if it has none on it."""
    merge = recipe.merge
    if axis.option == METHOD:
        return merge.method
    if axis.pattern is not None:
        rule = next((rule for rule in merge.rules if rule.match == (axis.pattern,) and not rule.also), None)
        if axis.option == WEIGHT:
            said: Any = None if rule is None else rule.weight
            said = said.get(axis.specialist) if isinstance(said, Mapping) else said
            said = _own_weight(recipe, axis.specialist) if said is None else said
        else:
            said = None if rule is None else rule.options.get(axis.option)
            said = _own_option(recipe, axis.option) if said is None else said
    else:
        said = _own_weight(recipe, axis.specialist) if axis.option == WEIGHT else _own_option(recipe, axis.option)
    if axis.index is None:
        return None if isinstance(said, tuple | Mapping) else said
    if isinstance(said, tuple):
        return said[axis.index] if len(said) == axis.count else None
    return said


def _own_weight(recipe: Recipe, specialist: str | None) -> Any:
    weight = recipe.merge.weight
    if specialist is None:
        return weight
    if isinstance(weight, Mapping):
        weight = weight.get(specialist)
    return recipe.specialists[specialist].weight if weight is None else weight


def _own_option(recipe: Recipe, option: str) -> Any:
    method = recipe.merge.merge_method or find_method(recipe.merge.method, recipe.folder)
    return {**method.defaults, **recipe.merge.options}.get(option)


def with_values(recipe: Recipe, axes: Sequence[Axis], values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these values, without its `search`: an ordinary one.

    Args:
        recipe: where values are put.
        axes: what the names in `values` are.
        values: axis name -> value; axes that are left out stay as the recipe has them.

    Raises:
        RecipeError: for values that a recipe does not take.
    """
    table = recipe.to_dict()
    table.pop("search", None)
    merge = table["merge"] = dict(table.get("merge", {}))
    method = values.get(f"merge.{METHOD}")
    if method is not None:
        _take_method(recipe, merge, str(method))
    for axis in axes:
        if axis.option != METHOD and axis.name in values and axis.applies(values, recipe):
            _put(table, axis, axes, values)
    return from_dict(table, recipe.folder)


def _take_method(recipe: Recipe, merge: dict[str, Any], name: str) -> None:
    """Another method; of the parameters of the old one, in rules too, those that it has."""
    kept = {row.name for row in find_method(name, recipe.folder).recipe_parameters}
    merge[METHOD] = name
    for option in recipe.merge.options:
        if option not in kept:
            merge.pop(option, None)
    rules = []
    for said, rule in zip(merge.get("rules", []), recipe.merge.rules, strict=True):
        lost = set() if rule.method is not None else rule.options.keys() - kept
        left = {key: value for key, value in said.items() if key not in lost}
        if left.keys() - {"match", "also", "optional"}:
            rules.append(left)
    if rules or "rules" in merge:
        merge["rules"] = rules


def _put(table: dict[str, Any], axis: Axis, axes: Sequence[Axis], values: Mapping[str, Any]) -> None:
    value = values[axis.name]
    if axis.index is not None:
        if axis.index:
            return  # put with the first of them
        stem = axis.name.rpartition("[")[0]
        value = [values[f"{stem}[{index}]"] for index in range(axis.count)]
    if axis.pattern is not None:
        rule = _rule(table["merge"], axis.pattern)
        if axis.specialist is None:
            rule[axis.option] = value
        else:
            said = rule.get(WEIGHT)
            rule[WEIGHT] = {**(said if isinstance(said, Mapping) else {}), axis.specialist: value}
    elif axis.specialist is not None:
        said = table["specialists"][axis.specialist]
        table["specialists"][axis.specialist] = {**({"model": said} if isinstance(said, str) else said), WEIGHT: value}
    else:
        table["merge"][axis.option] = value


def _rule(merge: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The rule with just this pattern; made, before the first that merges, where there is none."""
    rules = merge["rules"] = [dict(rule) for rule in merge.get("rules", [])]
    for rule in rules:
        if rule["match"] in (pattern, [pattern]) and "also" not in rule and "keep" not in rule and "drop" not in rule:
            return rule
    place = next((at for at, rule in enumerate(rules) if "keep" not in rule and "drop" not in rule), len(rules))
    rules.insert(place, {"match": [pattern]})
    return rules[place]


def checked_axes(recipe: Recipe, vary: Mapping[str, Range] | None = None) -> tuple[Axis, ...]:
    """Return `axes_of` after a check of the ends of every range. Raises RecipeError with every invalid value."""
    axes = axes_of(recipe, vary)
    if problems := list(value_problems(recipe, axes)):
        raise RecipeError(problems)
    return axes
