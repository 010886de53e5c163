"""The recipe's stages in order: specialize, fuse, diagnose, recover, rehearse, evaluate, report. Nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskmerge.embedders.encodings import Keeping
from taskmerge.errors import UsageError, did_you_mean
from taskmerge.pipeline.checks import check
from taskmerge.pipeline.stages import BY_NAME, report
from taskmerge.pipeline.state import Places, Run, Say
from taskmerge.pipeline.steps import STAGES, STEPS, TRAINED, lost_stages, stages_of
from taskmerge.recipes import Recipe
from taskmerge.words.processes import is_first, leave, say_to_all

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
    keep_checkpoints: bool = False,
    encodings: Keeping | None = None,
) -> dict[str, Any]:
    """Run all stages that the recipe has, from `start` to `until` (both included).

    Inputs of all stages that will run are checked before the first of them does. A stage before `start` whose model is
    missing is run again.

    Args:
        recipe: the recipe.
        out: folder of the fused model; default: the recipe's `output.path`.
        start, until: names of the first and the last stage; default: all.
        say: function that gets lines of progress.
        device: device that models run on; default: the CPU, and for training the first GPU if there is one.
        fresh: replace models made here that no earlier run of this recipe has left.
        keep_checkpoints: keep those of complete training stages.
        encodings: folder and size limit for the outputs of frozen encoders.

    Returns:
        The results of the stages and the paths. Of several processes (`accelerate launch`), the first does everything,
        and the others take part in training; they return nothing.

    Raises:
        UsageError: for an unknown stage.
        RecipeError: for stages that contradict each other.
        OutputError: for conflicts with an output. The errors of the stages are raised too.
    """
    for name in (start, until):
        if name is not None and name not in STAGES:
            raise UsageError(f"unknown stage {name!r}", next_move=did_you_mean(name, STAGES))
        if name is not None and name not in (there := stages_of(recipe)):
            what = f"the recipe has no stage {name!r}"
            raise UsageError(what, recipe.place or None, f"it has: {', '.join(there)}")
    if start and until and STAGES.index(start) > STAGES.index(until):
        what = f"{start!r}, the first stage to run, comes after {until!r}, the last one"
        raise UsageError(what, next_move=f"the order is: {', '.join(STAGES)}")
    current = Run(recipe, Places.of(recipe, out), say, device, fresh, keep_checkpoints, encodings or Keeping())
    if not is_first():
        _follow(current)
        leave()
        return {}
    first = STAGES.index(start) if start else 0
    last = STAGES.index(until) if until else len(STAGES) - 1
    wanted = STAGES[first : last + 1]
    lost = lost_stages(current, STAGES[:first])
    for name in lost:
        say(f"{name}: its output is missing; the stage runs again")
    wanted = (*lost, *wanted)
    check(current, wanted)
    for name in wanted:
        BY_NAME[name](current)
    say_to_all(None)
    leave()
    current.recall(step for name in STAGES for step in STEPS[name](current))
    return report(current)


def _follow(current: Run) -> None:
    """Takes part in every training stage that the first process begins."""
    current.say = _nothing
    while (step := say_to_all(None)) is not None:
        stage = step.partition("-")[0]
        if stage in TRAINED:
            current.followed = step
            BY_NAME[stage](current)


def _nothing(_: str) -> None:
    """The first process speaks."""
