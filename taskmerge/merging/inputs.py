"""Opening what a recipe names: the base and every specialist, headers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.lineage.adapters import adapted, is_adapter
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.vectors.folder import StoredDeltas, is_task_vector, open_task_vector
from taskmerge.errors import Problem, RecipeError, TaskmergeError
from taskmerge.recipes import Recipe, Specialist


@dataclass(frozen=True)
class Inputs:
    """What is merged, open. state_dicts: the base under "base", and each specialist by its label.

    own_bases: of specialists that were fine-tuned from another model than the base. deltas: the specialists that are
    task vectors themselves, and the tensors that each brings whole. adapters: those that are an adapter over the base.
    """

    state_dicts: Mapping[str, StateDict]
    own_bases: Mapping[str, StateDict] = field(default_factory=dict)
    deltas: Mapping[str, frozenset[str]] = field(default_factory=dict)
    adapters: frozenset[str] = frozenset()


def open_inputs(recipe: Recipe, given: Inputs | None = None) -> Inputs:
    """Open the base and each specialist. Relative paths start at the recipe's folder, then at the current one.

    given: those that are open already, whatever the recipe calls them.

    Raises: RecipeError with every input that cannot be opened.
    """
    problems: list[Problem] = []
    given = given or Inputs({})
    opened: dict[str, StateDict] = dict(given.state_dicts)
    own_bases: dict[str, StateDict] = dict(given.own_bases)
    kinds: dict[str, str] = {}

    def attempt(label: str, place: str, action: Callable[[], None]) -> None:
        try:
            action()
        except TaskmergeError as error:
            for problem in error.problems:
                what = f"{label}: {problem.what}" + (f" ({problem.place})" if problem.place else "")
                problems.append(Problem(what, place, problem.next_move))

    def open_base() -> None:
        opened[BASE] = _open(recipe.base, recipe.folder)

    def open_specialist(name: str, specialist: Specialist) -> None:
        if specialist.base is not None:
            own_bases[name] = _open(specialist.base, recipe.folder)
        opened[name], kinds[name] = _open_specialist(specialist, recipe, opened.get(BASE), own_bases.get(name))

    if BASE not in opened:
        attempt(BASE, recipe.place, open_base)
    for name, specialist in recipe.specialists.items():
        if name in given.state_dicts:
            opened[name] = opened.pop(name)  # in the recipe's order
        elif BASE in opened or specialist.model != BASE:
            attempt(name, specialist.place, partial(open_specialist, name, specialist))
    if problems:
        raise RecipeError(problems)
    return Inputs(
        opened,
        own_bases,
        {**given.deltas, **{name: one.own for name, one in opened.items() if isinstance(one, StoredDeltas)}},
        given.adapters | {name for name, kind in kinds.items() if kind == "adapter"},
    )


def _open_specialist(
    specialist: Specialist, recipe: Recipe, base: StateDict | None, own_base: StateDict | None
) -> tuple[StateDict, str]:
    """The tensors, and what they are: "model", "adapter" (over the base) or "task vector"."""
    start = base if own_base is None else own_base
    place = locate(specialist.model, recipe.folder) if specialist.model != BASE else None
    if isinstance(place, Path) and specialist.adapter is None and start is not None:
        if is_adapter(place):
            return adapted(start, place), "adapter" if own_base is None else "model"
        if is_task_vector(place):
            if own_base is not None:
                raise RecipeError(
                    f"{specialist.model!r} is a task vector already, and `base: {specialist.base}` would be subtracted",
                    next_move="leave out `base` of this specialist",
                )
            stored = open_task_vector(place)
            if stored.tables:
                raise RecipeError(
                    f"the task vector {specialist.model!r} adds tokens to {stored.tables[0]!r}",
                    next_move="name the specialist itself, or add it with `taskmerge apply`",
                )
            return stored, "task vector"
    same_model = specialist.model in (BASE, recipe.base)
    model = base if same_model and base is not None else _open(specialist.model, recipe.folder)
    if specialist.adapter is None:
        return model, "model"
    kind = "adapter" if same_model and own_base is None else "model"
    return adapted(model, specialist.adapter, recipe.folder), kind


def _open(text: str, folder: Path) -> StateDict:
    return dequantized(open_stored(text, relative_to=folder))
