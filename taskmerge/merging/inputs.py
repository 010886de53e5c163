"""Opening what a recipe names: the base and every specialist, headers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.lineage.adapters import adapted, base_of, is_adapter
from taskmerge.checkpoints.lineage.inside_factors import factor_names, folded
from taskmerge.checkpoints.lineage.overlay import overlaid
from taskmerge.checkpoints.repacking import unpacked
from taskmerge.checkpoints.soups import Averaged, checkpoints_of, shares
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.vectors.folder import StoredDeltas, is_task_vector, open_task_vector
from taskmerge.errors import InputError, Problem, RecipeError
from taskmerge.recipes import Recipe, Specialist
from taskmerge.words.places import is_pattern


@dataclass(frozen=True)
class Inputs:
    """The open inputs of a merge. state_dicts: the base under "base", and each specialist by its label.

    own_bases: bases of specialists that were fine-tuned from another model than the base. deltas: the specialists that
    are task vectors themselves, with the tensors that each stores completely. adapters: specialists that are an adapter
    on the base.
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
        except InputError as error:
            for problem in error.problems:
                what = f"{label}: {problem.what}" + (f" ({problem.place})" if problem.place else "")
                problems.append(Problem(what, place, problem.next_move))

    def open_base() -> None:
        plain = _open(recipe.base, recipe.folder, recipe.output.quantized)
        opened[BASE] = adapted(plain, recipe.base_adapter, recipe.folder) if recipe.base_adapter else plain

    def open_specialist(name: str, specialist: Specialist) -> None:
        if specialist.base is not None:
            own_bases[name] = _open(specialist.base, recipe.folder, recipe.output.quantized)
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


def row_paths(specialist: Specialist, folder: Path) -> list[Path]:
    """Return the checkpoints of a soup, oldest first. Raises CheckpointError if they are missing."""
    text = specialist.adapter if specialist.adapter and is_pattern(specialist.adapter) else specialist.model
    return checkpoints_of(text, folder, specialist.last)


def _open_specialist(
    specialist: Specialist, recipe: Recipe, base: StateDict | None, own_base: StateDict | None
) -> tuple[StateDict, str]:
    """The tensors, and what they are: "model", "adapter" (over the base) or "task vector"."""
    several = specialist.is_soup and not _is_one(specialist, recipe.folder)
    found, kind = (_soup if several else _open_one)(specialist, recipe, base, own_base)
    if not specialist.also:
        return found, kind
    if kind == "task vector":
        raise RecipeError(
            f"{specialist.model!r} is a task vector, which cannot be combined with `also: {specialist.also[0]}`",
            next_move="give the model itself",
        )
    return overlaid(found, specialist.also, recipe.folder), kind


def _is_one(specialist: Specialist, folder: Path) -> bool:
    """Whether a text that looks like a pattern is the name of a folder: `run[1]`."""
    text = specialist.adapter if specialist.adapter and is_pattern(specialist.adapter) else specialist.model
    path = Path(text).expanduser()
    return (folder / path).exists() or path.exists()


def _soup(
    specialist: Specialist, recipe: Recipe, base: StateDict | None, own_base: StateDict | None
) -> tuple[Averaged, str]:
    """The mean of the checkpoints that a pattern names; what they are, all alike."""
    paths = row_paths(specialist, recipe.folder)
    of_adapters = specialist.adapter is not None and is_pattern(specialist.adapter)
    label = specialist.adapter if of_adapters else specialist.model

    def one(path: Path) -> Specialist:
        place = str(path.absolute())
        return replace(specialist, adapter=place) if of_adapters else replace(specialist, model=place)

    opened = [_open_one(one(path), recipe, base, own_base) for path in paths]
    kinds = {kind for _, kind in opened}
    if len(kinds) > 1 or "task vector" in kinds:
        raise RecipeError(
            f"{label!r} matches {' and '.join(sorted(f'{kind}s' for kind in kinds))}, which cannot be averaged",
            next_move="give checkpoints of one run that are all models or all adapters",
        )
    members = [state_dict for state_dict, _ in opened]
    return Averaged(members, shares(len(members), specialist.ema), str(label)), kinds.pop()


def open_soup(
    text: str, *, last: int | None = None, ema: float | None = None, base: str | None = None
) -> tuple[Averaged, list[Path]]:
    """Return the mean of the checkpoints that match a pattern, and their places, oldest first.

    Args:
        text: the pattern.  last, ema: see `Specialist`.  base: of checkpoints that are adapters, the model they are of.

    Raises: CheckpointError, RecipeError or MergeError for what makes no soup.
    """
    row = Specialist(text, last=last, ema=ema)
    recipe = Recipe(base or "", {"soup": row})
    start = None if base is None else _open(base, Path())
    paths = row_paths(row, Path())
    if base is None and (adapter := next((path for path in paths if path.is_dir() and is_adapter(path)), None)):
        raise RecipeError(
            f"{str(adapter)!r} is an adapter", next_move="give the model that it belongs to: --base MODEL"
        )
    found, _ = _soup(row, recipe, start, None)
    return found, paths


def _open_one(
    specialist: Specialist, recipe: Recipe, base: StateDict | None, own_base: StateDict | None
) -> tuple[StateDict, str]:
    """As `_open_specialist`, of one checkpoint and what `also` does not change."""
    start = base if own_base is None else own_base
    place = locate(specialist.model, recipe.folder) if specialist.model != BASE else None
    if isinstance(place, Path) and specialist.adapter is None and start is not None:
        if is_adapter(place):
            return adapted(start, place), "adapter" if own_base is None else "model"
        if is_task_vector(place):
            if own_base is not None:
                raise RecipeError(
                    f"{specialist.model!r} is already a task vector, so that `base: {specialist.base}` "
                    "cannot be subtracted",
                    next_move="leave out `base` of this specialist",
                )
            stored = open_task_vector(place)
            if stored.tables:
                raise RecipeError(
                    f"the task vector {specialist.model!r} adds tokens to {stored.tables[0]!r}",
                    next_move="give the specialist itself, or add the task vector with `taskmerge apply`",
                )
            return stored, "task vector"
    of_base = specialist.model == recipe.base and specialist.adapter == recipe.base_adapter
    if of_base and base is not None:
        return base, "model"
    # With an adapter in the base, the base's own path is the model without it.
    same_model = specialist.model == BASE or (specialist.model == recipe.base and recipe.base_adapter is None)
    model = base if same_model and base is not None else _open(specialist.model, recipe.folder, recipe.output.quantized)
    if start is not None and not factor_names(start.tensors):
        model = folded(model)
    if specialist.adapter is None:
        return model, "model"
    kind = "adapter" if same_model and own_base is None else "model"
    return adapted(model, specialist.adapter, recipe.folder), kind


def _open(text: str, folder: Path, in_few_bits: bool = False) -> StateDict:
    """A whole model; of an adapter's folder, the adapter over the model that it names as its base.

    in_few_bits: the output is to be stored as the base is, so that packed weights are numbers too."""
    place = locate(text, folder)
    if isinstance(place, Path) and place.is_dir() and is_adapter(place):
        named = base_of(place)
        if named is None:
            raise RecipeError(
                f"{text!r} is an adapter, and its configuration does not name its model",
                next_move="set base_model_name_or_path in its adapter_config.json to the model that it was trained on",
            )
        model = _open(named, place, in_few_bits)
        said = f"{text} is an adapter: applied to {named}, the base in its configuration"
        model.beside = replace(model.beside, notes=(*model.beside.notes, said))
        return adapted(model, place)
    stored = open_stored(text, relative_to=folder)
    return unpacked(stored) if in_few_bits else dequantized(stored, keep_packed=True)
