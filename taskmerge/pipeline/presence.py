"""Check that the models exist that the stages of a run read and that no stage makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskmerge.checkpoints.hub import HubPlace, locate, open_snapshot
from taskmerge.errors import InputError, Problem
from taskmerge.merging.inputs import row_paths
from taskmerge.pipeline.state import Run
from taskmerge.recipes import Specialist
from taskmerge.words.places import parse_place


def model_problems(current: Run, stages: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each missing model that the stages read and that no earlier one makes."""
    recipe = current.recipe
    probed = recipe.drift.specialist if recipe.drift and "diagnose" in stages else ()
    trained = recipe.specialize or {} if "specialize" in stages else {}
    if trained or probed or "fuse" in stages:
        yield from _absent(current, "base", recipe.base, recipe.place)
    for name, row in recipe.specialists.items():
        if name in probed and row.made_of_parts:
            what = f"drift: {name} is {row.made_of_parts}, but only complete models can be compared"
            yield Problem(what, row.place, _whole_first(row))
        elif row.is_soup:
            yield from _no_checkpoints(current, name, row)
        elif (name in probed or "fuse" in stages) and name not in trained and row.model != "base":
            yield from _absent(current, name, row.model, row.place)
    if "fuse" not in stages:
        yield from _unmade(current, stages)


def _whole_first(row: Specialist) -> str:
    way = f"taskmerge soup '{row.model}' --out FOLDER" if row.is_soup else "taskmerge apply BASE ADAPTER --out FOLDER"
    return f"write the complete model first: `{way}`"


def _no_checkpoints(current: Run, name: str, row: Specialist) -> Iterator[Problem]:
    try:
        row_paths(row, current.recipe.folder)
    except InputError as error:
        yield from (Problem(f"{name}: {told.what}", row.place, told.next_move) for told in error.problems)


def _absent(current: Run, name: str, text: str, place: str) -> Iterator[Problem]:
    if name in (current.recipe.specialize or {}) and not current.specialist(name).exists():
        yield Problem(f"{name}: {text!r} is not trained yet", place, "train it: `taskmerge specialize`")
        return
    try:
        if parse_place(text, "a model").kind == "store":
            what = f"{name}: {text!r} is in a store, but the stages of `run` need models on this disk"
            yield Problem(what, place, "copy it to this disk; `taskmerge fuse` alone can read it from the store")
            return
        found = locate(text, current.recipe.folder)
        if isinstance(found, HubPlace):
            open_snapshot(found)
    except InputError as error:
        yield from (Problem(f"{name}: {told.what}", place, told.next_move) for told in error.problems)


def _unmade(current: Run, stages: Sequence[str]) -> Iterator[Problem]:
    """The model that the first of these stages continues from."""
    recipe, places = current.recipe, current.places
    if (recipe.drift and "diagnose" in stages) or (recipe.recover and "recover" in stages):
        if not places.fused.exists():
            what = f"there is no fused model in {str(places.fused)!r}"
            yield Problem(what, recipe.place, "make it: `taskmerge fuse`")
    elif recipe.rehearse and "rehearse" in stages:
        start, maker = (places.recovered, "recover") if recipe.recover else (places.fused, "fuse")
        if not start.exists():
            what = f"there is no model to rehearse in {str(start)!r}"
            yield Problem(what, recipe.place, f"make it: `taskmerge {maker}`")
