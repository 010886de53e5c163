"""Setting of a search, from a recipe or from a call: checked completely before a model is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.declarations import At, Section
from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import RecipeError, UsageError
from taskmerge.merging.inputs import Inputs
from taskmerge.recipes import Recipe, Search, from_dict, load
from taskmerge.recipes.axes import Axis
from taskmerge.recipes.scores import RETRIEVAL, Objective, parse_objective, score_names
from taskmerge.recipes.varied import checked_axes
from taskmerge.recipes.writing import plain
from taskmerge.searching.pairs import FEW, check_apart, kept_back, read_sets, sources_of

Say = Callable[[str], None]
OwnScore = Callable[[Any], Any]


@dataclass(frozen=True)
class Setting:
    """A search, decided but for the models.

    recipe: with its `search` section.  pairs: for the search; confirm: reserved.  own, own_confirm: functions of the
    user's own.  sources: what the pairs were read from, for the hash of the search.
    """

    recipe: Recipe
    axes: tuple[Axis, ...]
    objectives: tuple[Objective, ...]
    pairs: Mapping[str, Pairs]
    confirm: Mapping[str, Pairs]
    own: OwnScore | None
    own_confirm: OwnScore | None
    sources: tuple[Any, ...]

    @property
    def section(self) -> Search:
        """The `search` section of the recipe."""
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def can_confirm(self) -> bool:
        """True if the objective can be computed on data that the search does not use."""
        return bool(self.confirm) if self.own is None else self.own_confirm is not None


def recipe_of(models: Any) -> tuple[Recipe, Inputs | None]:
    """Return a recipe from a file, a recipe, or models by name with the base under "base"; and the open models.

    Raises:
        UsageError: for anything else.
    """
    from taskmerge.merging.api import said_by

    if isinstance(models, Recipe):
        return models, None
    if isinstance(models, str | Path):
        return load(models), None
    if not isinstance(models, Mapping) or "base" not in models or len(models) < 2:
        raise UsageError(
            f"{type(models).__name__} is neither a recipe nor models by name",
            next_move='give a recipe, its file, or {"base": …, "audio": …}',
        )
    specialists = {name: model for name, model in models.items() if name != "base"}
    return said_by(models["base"], specialists)


def with_section(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe with a call's arguments in place of its `search` values. Raises RecipeError."""
    said = {key: value for key, value in given.items() if value is not None}
    if not said:
        return recipe
    table = recipe.to_dict()
    table["search"] = {**({} if recipe.search is None else plain(recipe.search)), **said}
    problems: list[Any] = []
    at = At(lambda path: ".".join(map(str, path)), ("search",), recipe.folder, table)
    section = Section(Search).read(table["search"], at, problems)
    if problems:
        raise RecipeError(problems)
    return replace(recipe, search=section)


def decide(recipe: Recipe, own: OwnScore | None, on: Mapping[str, Any] | None, confirm: Any, say: Say) -> Setting:
    """Check everything that can be known without a model.

    Args:
        recipe: with its `search`.
        own: a function of the user's own that scores.
        on, confirm: pairs in place of the recipe's; confirm may be such a function too.
        say: is told what is assumed.

    Raises:
        RecipeError: with the place of all that is wrong.
    """
    section = recipe.search
    if section is None or not section.vary:
        raise RecipeError("the recipe has no `search` section", recipe.place or None, "search: {vary: …, on: …}")
    axes = checked_axes(recipe)
    own_confirm = confirm if callable(confirm) else None
    dev = dict(section.on) if on is None else dict(on)
    held = dict(section.confirm or {}) if confirm is None else {} if own_confirm else dict(confirm)
    if not dev and own is None:
        raise RecipeError(
            "search: there are no pairs to score on", section.place or None, "add on: {audio: data/audio_dev.jsonl}"
        )
    objectives = _objectives(section, own, dev, recipe)
    pairs = read_sets(sources_of(dev, recipe.folder), "on", section.place)
    confirming = read_sets(sources_of(held, recipe.folder), "confirm", section.place)
    if pairs and confirming:
        check_apart(pairs, confirming, say)
    elif pairs and own is None:
        pairs, confirming = kept_back(pairs, recipe.seed, say)
    for name, found in pairs.items():
        if len(found) < FEW:
            say(f"{name}: {len(found)} pairs are enough to distinguish only a few points; a few hundred are better")
    sources = tuple(sources_of(one, recipe.folder) for one in (dev, held))
    return Setting(recipe, axes, objectives, pairs, confirming, own, own_confirm, sources)


def _objectives(
    section: Search, own: OwnScore | None, sets: Mapping[str, Any], recipe: Recipe
) -> tuple[Objective, ...]:
    """What is maximised. Names of scores are known before any is measured, but for those of a user's own function."""
    if own is not None:
        unsaid = section.maximize == Search.maximize
        return tuple(parse_objective(text, ()) for text in (("score",) if unsaid else section.maximize))
    known = score_names(sets, [name for name in sets if name in recipe.specialists])
    found = []
    for text in section.maximize:
        try:
            found.append(parse_objective(text))
            found[-1].check(known)
        except UsageError as error:
            told = error.problems[0]
            raise RecipeError(f"search: maximize: {told.what}", section.place or None, told.next_move) from None
    return tuple(found)


def prunable(setting: Setting) -> bool:
    """Return whether trials can be stopped early: for one objective, made of retrieval scores."""
    patterns = [pattern for objective in setting.objectives for pattern in objective.patterns]
    retrieval = all(pattern.startswith(f"{RETRIEVAL}.") for pattern in patterns)
    return setting.section.prune and setting.own is None and len(setting.objectives) == 1 and retrieval


def stripped(recipe: Recipe) -> Recipe:
    """Return the recipe without its `search`, as it is fused."""
    table = recipe.to_dict()
    table.pop("search", None)
    return from_dict(table, recipe.folder)
