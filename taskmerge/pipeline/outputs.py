"""The models that the stages of a run leave, and whether they may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.output.record import is_made_here, read_record
from taskmerge.checkpoints.output.replacing import absolute
from taskmerge.checkpoints.output.writing import check_space
from taskmerge.errors import OutputError, Problem, TaskmergeError
from taskmerge.pipeline.report_folder import check_report
from taskmerge.pipeline.state import Run
from taskmerge.training.publishing import Destination
from taskmerge.training.work import check_work


def destination(run: Run, stage: str, out: Path, **made_from: Path) -> Destination:
    """Return the destination of a stage's model, which replaces an earlier model of the same stage only."""
    return Destination(
        absolute(out),
        fresh=run.fresh or _is_own(run, stage, out),
        keep=run.recipe.output.keep_previous,
        inputs=(run.recipe.folder, *_models(run)),
        made_from=made_from,
    )


def _models(run: Run) -> Iterator[Path]:
    """The recipe's models on this disk that no stage of it makes."""
    recipe = run.recipe
    made = recipe.specialize or {}
    said = [recipe.base, *(row.model for name, row in recipe.specialists.items() if name not in made)]
    said += [row.adapter for row in recipe.specialists.values() if row.adapter]
    for text in said:
        with suppress(TaskmergeError):
            place = locate(text, recipe.folder)
            if isinstance(place, Path):
                yield place


def _is_own(run: Run, stage: str, out: Path) -> bool:
    """Whether a folder is what this stage left: its note is there, or the record holds the very same recipe."""
    if not is_made_here(out):
        return False
    record: Any = read_record(out)
    return record["stage"] == stage.partition("-")[0] and (
        run.note_of(stage).is_file() or record.get("recipe") == run.recipe.text
    )


def check_outputs(run: Run, stages: Sequence[str]) -> None:
    """Check that these stages will overwrite no other data. Raises OutputError with every conflict.

    A model that a stage left and may not have to make again is not looked at before that is known.
    """
    problems: list[Problem] = []
    for stage, out in _outputs(run, stages):
        try:
            if not (run.note_of(stage).is_file() and is_made_here(out)):
                destination(run, stage, out).check()
            check_work(run.work(stage))
        except OutputError as error:
            problems += [_told(stage, told) for told in error.problems]
    try:
        check_report(run.places.report)
    except OutputError as error:
        problems += error.problems
    if problems:
        raise OutputError(problems)


def check_room(run: Run, stages: Sequence[str]) -> None:
    """Check the disk space for the models that these stages will make, each at least of the base's size.

    What training and a fuse need exactly is known, and looked at, when each begins. Raises OutputError.
    """
    made = [(stage, out) for stage, out in _outputs(run, stages) if not out.exists()]
    if run.recipe.output.dtype is not None:  # what is fused, and trained from that, may be smaller than the base
        made = [row for row in made if row[0].startswith("specialize-")]
    if made:
        size = sum(info.nbytes for info in open_stored(str(run.base)).tensors.values())
        check_space(absolute(made[-1][1]), len(made) * size, len(made), f"this run ({len(made)} models)")


def _told(stage: str, told: Problem) -> Problem:
    move = told.next_move
    if move and move.startswith("--fresh"):
        move = f"it was not written by an earlier run of this recipe's {stage}; {move}"
    return Problem(told.what, told.place, move)


def _outputs(run: Run, stages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(stage's name in its note, folder) of every model that these stages make."""
    recipe, places = run.recipe, run.places
    if "specialize" in stages:
        yield from ((f"specialize-{name}", run.specialist(name)) for name in recipe.specialize or {})
    if "fuse" in stages:
        yield "fuse", places.fused
    if "recover" in stages and recipe.recover is not None:
        yield "recover", places.recovered
    if "rehearse" in stages and recipe.rehearse is not None:
        yield "rehearse", places.rehearsed
