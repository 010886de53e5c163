"""Opening what a recipe names: the base and every specialist, headers only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from taskmerge.checkpoints.reading import open_stored
from taskmerge.checkpoints.weights import Weights
from taskmerge.errors import Problem, RecipeError, TaskmergeError
from taskmerge.fusion.steps import BASE
from taskmerge.recipes import Recipe


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
        source = recipe.base if specialist.model == BASE else specialist.model
        adapter = specialist.adapter
        if adapter is None:
            attempt(name, specialist.place, lambda source=source: _open(source, recipe.folder))
        else:
            attempt(
                name,
                specialist.place,
                lambda source=source, adapter=adapter: _adapted(_open(source, recipe.folder), adapter, recipe.folder),
            )
    if problems:
        raise RecipeError(problems)
    return opened


def _adapted(model: Weights, adapter: str, folder: Path) -> Weights:
    from taskmerge.checkpoints.adapters import adapted

    return adapted(model, adapter, folder)


def _open(text: str, folder: Path) -> Weights:
    return open_stored(text, relative_to=folder)
