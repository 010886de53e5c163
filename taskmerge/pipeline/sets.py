"""The sets of pairs that stages of a recipe train on: what they are called, what they hold."""

from __future__ import annotations

from collections.abc import Mapping

from taskmerge.errors import RecipeError, UsageError
from taskmerge.pipeline.state import Run
from taskmerge.recipes import Specialize


def grafted_modality(run: Run, section: Specialize) -> str:
    """Return the modality that a specialist's encoder takes: the recipe's, or that of all sets of its data.

    Raises:
        RecipeError: for sets of several modalities, where the recipe does not say which.
        UsageError: for data that cannot be read.
    """
    from taskmerge.embedders.pairs import read_pairs

    if section.modality is not None:
        return section.modality
    sources = section.data if isinstance(section.data, Mapping) else {"data": section.data}
    found = {name: read_pairs(run.data(source)).modality for name, source in sources.items()}
    if len(set(found.values())) > 1:
        held = ", ".join(f"{name} contains {modality}" for name, modality in found.items())
        what = f"specialize: {section.name}: one encoder is grafted, but the data has several modalities: {held}"
        raise RecipeError(what, section.place, "set `modality`, or train one specialist per modality")
    return next(iter(found.values()))


def trained_sets(run: Run) -> list[str]:
    """Return the names of all sets that some stage of the recipe trains on; for a single source its column."""
    from taskmerge.embedders.pairs import read_pairs

    recipe, found = run.recipe, []
    stages = [*(recipe.specialize or {}).values(), recipe.recover, recipe.rehearse]
    for source in (stage.data for stage in stages if stage is not None):
        if isinstance(source, Mapping):
            found += list(source)
            continue
        try:
            found.append(read_pairs(run.data(source)).column)
        except UsageError:
            continue  # told as a problem of the data
    return list(dict.fromkeys(found))
