"""Overlap of pairs for evaluation with pairs that a stage of the recipe trains on: the recipe knows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.pipeline.state import Run


def overlap_notes(run: Run, title: str, judging: Any, stages: Sequence[str] = ("specialize",)) -> list[str]:
    """Return sentences on the overlap of evaluation sets with the training data of these stages, set by set.

    judging: pairs, or {name: pairs}, as the recipe's data is read.
    """
    from taskmerge.embedders.overlap import overlap_note
    from taskmerge.training.stages import named_sets

    found: list[str] = []
    trained = [pairs for source in _sources(run, stages) for pairs in named_sets(source).values()]
    for name, pairs in named_sets(judging).items() if judging else ():
        alike = [others for others in trained if others.column == pairs.column]
        found += [said for others in alike if (said := overlap_note(f"{title}: {name}", pairs, others))]
    return list(dict.fromkeys(found))


def _sources(run: Run, stages: Sequence[str]) -> list[Any]:
    recipe = run.recipe
    said: dict[str, list[Any]] = {
        "specialize": [row.data for row in (recipe.specialize or {}).values()],
        "recover": [recipe.recover.data] if recipe.recover else [],
        "rehearse": [recipe.rehearse.data] if recipe.rehearse else [],
    }
    found: list[Any] = []
    for stage in stages:
        for source in said[stage]:
            found += list(source.values()) if isinstance(source, Mapping) else [source]
    return [run.data(source) for source in dict.fromkeys(found)]
