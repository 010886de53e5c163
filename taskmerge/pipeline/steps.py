"""Inputs of each stage of a recipe in addition to the files that it opens, and its outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from taskmerge.merging.inputs import row_paths
from taskmerge.pipeline.state import Run, Step
from taskmerge.pipeline.variants import variants
from taskmerge.recipes import Recipe

_NOT_OF_THE_FUSE = ("specialize", "drift", "recover", "rehearse", "evaluate", "prompts", "embedder", "search")


def specialize_steps(run: Run) -> list[Step]:
    """Return one step for each specialist that is trained."""
    return [
        _step(run, f"specialize-{name}", section, [run.specialist(name)], base=run.recipe.base)
        for name, section in (run.recipe.specialize or {}).items()
    ]


def fuse_steps(run: Run) -> list[Step]:
    """Return the step of the fuse: it depends on everything in the recipe except the other stages."""
    recipe = run.recipe
    said: dict[str, Any] = {name: value for name, value in recipe.to_dict().items() if name not in _NOT_OF_THE_FUSE}
    soups = {name: row_paths(row, recipe.folder) for name, row in recipe.specialists.items() if row.is_soup}
    if soups:  # a checkpoint that was saved since was not opened, and yet the pattern names it
        said["checkpoints"] = {name: [str(path) for path in paths] for name, paths in soups.items()}
    return [Step("fuse", said, (run.places.fused,))]


def diagnose_steps(run: Run) -> list[Step]:
    """Return the step of the diagnosis of drift, if the recipe has one."""
    section, recipe = run.recipe.drift, run.recipe
    if section is None:
        return []
    trained_on = {name: row.data for name, row in (recipe.specialize or {}).items() if name in section.specialist}
    models = {name: recipe.specialists[name].model for name in section.specialist}
    return [_step(run, "diagnose", section, [], base=recipe.base, trained_on=trained_on, models=models)]


def recover_steps(run: Run) -> list[Step]:
    """Return the step of the recovery, if the recipe has one. A single specialist of `drift` is its teacher."""
    if run.recipe.recover is None:
        return []
    drift = run.recipe.drift
    teacher = drift.specialist[0] if drift and len(drift.specialist) == 1 else None
    model = run.recipe.specialists[teacher].model if teacher else None
    return [_step(run, "recover", run.recipe.recover, [run.places.recovered], teacher=model)]


def rehearse_steps(run: Run) -> list[Step]:
    """Return the step of the rehearsal, if the recipe has one."""
    if run.recipe.rehearse is None:
        return []
    start = "recovered" if run.recipe.recover else "fused"
    models = {"followed": {name: run.recipe.specialists[name].model for name in followed(run)}} if followed(run) else {}
    return [_step(run, "rehearse", run.recipe.rehearse, [run.places.rehearsed], start=start, **models)]


def followed(run: Run) -> list[str]:
    """Return the specialists whose scores are targets of adaptive shares: those with the names of the data."""
    section = run.recipe.rehearse
    if section is None or section.balance.follows != "adaptive":
        return []
    return [name for name, row in run.recipe.specialists.items() if name in section.data and not row.made_of_parts]


def evaluate_steps(run: Run) -> list[Step]:
    """Return the step of the evaluation, if the recipe has one: of the existing models."""
    if run.recipe.evaluate is None:
        return []
    models = {name: _place(run, path) for name, path in variants(run).items()}
    return [_step(run, "evaluate", run.recipe.evaluate, [], variants=models)]


STEPS: dict[str, Callable[[Run], list[Step]]] = {
    "specialize": specialize_steps,
    "fuse": fuse_steps,
    "diagnose": diagnose_steps,
    "recover": recover_steps,
    "rehearse": rehearse_steps,
    "evaluate": evaluate_steps,
}
STAGES = tuple(STEPS)
TRAINED = ("specialize", "recover", "rehearse")
"""Stages in which several processes take part."""


def stages_of(recipe: Recipe) -> list[str]:
    """Return the stages of a recipe, in order. Every recipe has a fuse."""
    sections = {"diagnose": "drift"}
    return [name for name in STAGES if name == "fuse" or getattr(recipe, sections.get(name, name)) is not None]


def stages_to_run(run: Run, stages: Iterable[str]) -> list[str]:
    """Return the stages that will not be skipped: the first without a valid note, and all later ones.

    Later stages continue from its results.
    """
    wanted = list(stages)
    for place, stage in enumerate(wanted):
        if not all(run.is_done(step) for step in STEPS[stage](run)):
            return wanted[place:]
    return []


def lost_stages(run: Run, stages: Iterable[str]) -> list[str]:
    """Return those of these stages whose model is missing."""
    return [stage for stage in stages if any(run.has_lost(step) for step in STEPS[stage](run))]


def _step(run: Run, stage: str, section: Any, outputs: list[Path], **decides: Any) -> Step:
    said = {"stage": section, "outputs": [_place(run, path) for path in outputs], **decides}
    if run.recipe.prompts is not None:
        said["prompts"] = run.recipe.prompts
    return Step(stage, said, tuple(outputs))


def _place(run: Run, path: Path) -> str:
    """As seen from the recipe, so that a project may be moved."""
    return os.path.relpath(path, run.recipe.folder)
