"""The recipe's stages in order: specialize, fuse, diagnose, recover, rehearse, evaluate, report. Nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.errors import Problem, RecipeError, UsageError, did_you_mean
from taskmerge.pipeline.stages import BY_NAME, STAGES, report
from taskmerge.pipeline.state import Places, Run, Say
from taskmerge.recipes import Recipe

__all__ = ["BY_NAME", "STAGES", "Places", "Run", "check", "run"]


def run(
    recipe: Recipe, *, out: Path | None = None, start: str | None = None, until: str | None = None, say: Say = print
) -> dict[str, Any]:
    """All stages that the recipe has, from `start` to `until` (both included); returns their results and the paths.

    Data and recipe are checked before the first stage runs. Raises UsageError for an unknown stage, RecipeError for
    stages that contradict each other, and what the stages raise.
    """
    for name in (start, until):
        if name is not None and name not in STAGES:
            raise UsageError(f"no stage {name!r}", next_move=did_you_mean(name, STAGES))
    current = Run(recipe, Places.of(recipe, out), say)
    check(current)
    first = STAGES.index(start) if start else 0
    last = STAGES.index(until) if until else len(STAGES) - 1
    for name in STAGES[first : last + 1]:
        BY_NAME[name](current)
    current.recall()
    return report(current)


def check(current: Run) -> None:
    """What can be known before any stage: every data source is there and readable, stages have what they need.

    Raises RecipeError with every problem.
    """
    from taskmerge.pairs import read_pairs

    recipe, problems = current.recipe, []
    sections: list[tuple[str, Any, Any]] = []
    for name, section in (recipe.specialize or {}).items():
        sections.append((f"specialize: {name}", section.place, section.data))
        if recipe.specialists[name].adapter is not None:
            what = f"specialize: {name} is to be trained, but its specialist is an adapter"
            problems.append(Problem(what, section.place, "name the folder to write as specialists: NAME: {model: ...}"))
    if recipe.drift:
        sections.append(("drift: probes", recipe.drift.place, recipe.drift.probes))
    for title, stage in (("recover", recipe.recover), ("rehearse", recipe.rehearse)):
        if stage is not None:
            sections += [
                (f"{title}: data", stage.place, stage.data),
                (f"{title}: held_out", stage.place, stage.held_out),
            ]
    if recipe.evaluate:
        sections.append(("evaluate: retrieval", recipe.evaluate.place, recipe.evaluate.retrieval))
    for title, place, said in sections:
        for source in said.values() if isinstance(said, Mapping) else [said] if said else []:
            try:
                read_pairs(current.data(source)).check()
            except UsageError as error:
                problems += [Problem(f"{title}: {problem}", place, problem.next_move) for problem in error.problems]
    if problems:
        raise RecipeError(problems)
