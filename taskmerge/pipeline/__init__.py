"""The recipe's stages in order: specialize, fuse, diagnose, recover, rehearse, evaluate, report. Nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskmerge.errors import UsageError, did_you_mean
from taskmerge.pipeline.checks import check
from taskmerge.pipeline.stages import BY_NAME, STAGES, report
from taskmerge.pipeline.state import Places, Run, Say
from taskmerge.recipes import Recipe

__all__ = ["BY_NAME", "STAGES", "Places", "Run", "check", "run"]


def run(
    recipe: Recipe,
    *,
    out: Path | None = None,
    start: str | None = None,
    until: str | None = None,
    say: Say = print,
    device: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """All stages that the recipe has, from `start` to `until` (both included); returns their results and the paths.

    device: where models run; default: the CPU, and for training the first GPU if there is one. Data and recipe are
    checked before the first stage runs. fresh: replace models made here that no earlier run of this recipe has left.
    Raises UsageError for an unknown stage, RecipeError for stages that contradict each other, OutputError for what
    stands in the way of an output, and what the stages raise.
    """
    for name in (start, until):
        if name is not None and name not in STAGES:
            raise UsageError(f"no stage {name!r}", next_move=did_you_mean(name, STAGES))
    current = Run(recipe, Places.of(recipe, out), say, device, fresh)
    first = STAGES.index(start) if start else 0
    last = STAGES.index(until) if until else len(STAGES) - 1
    wanted = STAGES[first : last + 1]
    check(current, wanted)
    for name in wanted:
        BY_NAME[name](current)
    current.recall()
    return report(current)
