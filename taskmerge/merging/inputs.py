"""Opening what a recipe names: the base and every specialist, headers only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.weights import Weights
from taskmerge.errors import Problem, RecipeError, TaskmergeError
from taskmerge.merging.steps import BASE
from taskmerge.recipes import Recipe, Specialist


def open_inputs(recipe: Recipe) -> dict[str, Weights]:
    """ "base" and each specialist by name. Relative paths start at the recipe's folder, then at the current one.

    Raises RecipeError with every input that cannot be opened.
    """
    problems: list[Problem] = []
    opened: dict[str, Weights] = {}

    def attempt(label: str, place: str, action: Callable[[], Weights]) -> None:
        try:
            opened[label] = action()
        except TaskmergeError as error:
            for problem in error.problems:
                what = f"{label}: {problem.what}" + (f" ({problem.place})" if problem.place else "")
                problems.append(Problem(what, place, problem.next_move))

    attempt(BASE, recipe.place, lambda: _open(recipe.base, recipe.folder))
    for name, specialist in recipe.specialists.items():
        attempt(name, specialist.place, partial(_open_specialist, specialist, recipe))
    if problems:
        raise RecipeError(problems)
    return opened


def _open_specialist(specialist: Specialist, recipe: Recipe) -> Weights:
    from taskmerge.checkpoints.lineage.adapters import adapted, is_adapter

    if specialist.adapter is None:
        place = locate(specialist.model, recipe.folder) if specialist.model != BASE else None
        if isinstance(place, Path) and is_adapter(place):
            return adapted(_open(recipe.base, recipe.folder), place)
    model = _open(recipe.base if specialist.model == BASE else specialist.model, recipe.folder)
    return model if specialist.adapter is None else adapted(model, specialist.adapter, recipe.folder)


def _open(text: str, folder: Path) -> Weights:
    return dequantized(open_stored(text, relative_to=folder))
