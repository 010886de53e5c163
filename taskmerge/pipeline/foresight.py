"""Check that the results of `specialize` can be fused, from names and shapes before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskmerge.errors import InputError, Problem
from taskmerge.pipeline.sets import grafted_modality
from taskmerge.pipeline.state import Run
from taskmerge.recipes import Specialize

if TYPE_CHECKING:
    from taskmerge.checkpoints.state_dict import StateDict

_SHOWN = 5


def fuse_problems(current: Run, stages: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for specialists that cannot be made, and for a fuse that would refuse them.

    Specialists that are there already are not looked at: the fuse itself does so.
    """
    sections = current.recipe.specialize or {}
    missing = {name: row for name, row in sections.items() if not current.specialist(name).exists()}
    if "specialize" not in stages or not missing or current.recipe.embedder is not None:
        return  # what a loader of the user's makes is known only when it has loaded it
    foreseen: dict[str, StateDict] = {}
    for name, section in missing.items():
        try:
            foreseen[name] = _foreseen(current, name, section)
        except InputError as error:
            yield from _told(error, f"specialize: {name}", section.place)
    if len(foreseen) == len(missing) and "fuse" in stages:
        yield from _fused(current, foreseen)


def _fused(current: Run, foreseen: dict[str, StateDict]) -> Iterator[Problem]:
    from taskmerge.merging import plan
    from taskmerge.merging.inputs import Inputs, open_inputs

    try:
        plan(current.recipe, open_inputs(current.recipe, Inputs(foreseen)))
    except InputError as error:
        yield from _told(error, "fuse, after all are trained", current.recipe.place)


def _foreseen(current: Run, name: str, section: Specialize) -> StateDict:
    """The names and shapes that a specialist will have, with the files of its base."""
    from taskmerge.checkpoints.memory import MemoryStateDict
    from taskmerge.embedders import open_embedder
    from taskmerge.embedders.grafting import graft_on_meta
    from taskmerge.embedders.loading import open_on_meta

    base = open_on_meta(current.base)
    found = base.state_dict
    if section.graft is not None:
        modality = grafted_modality(current, section)
        grafted = graft_on_meta(current.base, modality, current.encoder(section.graft), section.graft.projector)
        found = open_embedder(grafted).state_dict
        found.beside = replace(base.state_dict.beside, config=found.config)
    first = {id(tensor): stored for stored, tensor in reversed(list(found.values.items()))}  # tied ones are stored once
    kept = {stored: tensor for stored, tensor in found.values.items() if first[id(tensor)] == stored}
    foreseen = MemoryStateDict(kept, str(current.recipe.specialists[name].model))
    foreseen.beside = found.beside
    return foreseen


def _told(error: InputError, title: str, place: str) -> Iterator[Problem]:
    for told in error.problems[:_SHOWN]:
        where = f" ({told.place})" if told.place and told.place != place else ""
        yield Problem(f"{title}: {told.what}{where}", place, told.next_move)
    if (more := len(error.problems) - _SHOWN) > 0:
        yield Problem(f"{title}: and {more} more of this kind", place)
