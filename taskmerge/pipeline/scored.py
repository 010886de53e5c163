"""Check that the sets and tasks that a recipe refers to are trained or scored on by one of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from taskmerge.errors import Problem, UsageError, did_you_mean
from taskmerge.pipeline.sets import trained_sets
from taskmerge.pipeline.state import Run
from taskmerge.words.places import output_path


def mteb_problems(current: Run) -> Iterator[Problem]:
    """Yield problems for unknown tasks of mteb, and for a place of its results that cannot be written."""
    from taskmerge.measuring.evaluation.mteb_adapter import check_tasks

    section = current.recipe.evaluate
    if section is None or not section.mteb:
        return
    for check in (partial(check_tasks, section.mteb), partial(results_place, current)):
        try:
            check()
        except UsageError as error:
            yield from (Problem(f"evaluate: {told.what}", section.place, told.next_move) for told in error.problems)


def results_place(current: Run) -> Path:
    """Return the folder of mteb's results. Raises UsageError for a path that is not on this disk."""
    section = current.recipe.evaluate
    if section is None or section.results is None:
        return current.places.report / "mteb"
    return output_path(section.results, current.recipe.folder)


def prompt_problems(current: Run, stages: Sequence[str]) -> Iterator[Problem]:
    """Prompts of sets and tasks that nothing is trained or scored on."""
    prompts, section = current.recipe.prompts, current.recipe.evaluate
    if prompts is None or not prompts.tasks or not stages:
        return
    known = list(section.retrieval) if section is not None else []
    if section is not None and section.mteb:
        if "evaluate" not in stages:
            return  # mteb knows its tasks, and need not be there
        from taskmerge.measuring.evaluation.mteb_adapter import tasks_of

        try:
            known += [task.metadata.name for task in tasks_of(section.mteb)]
        except UsageError:
            return  # told as a problem of `evaluate`
    known += trained_sets(current)
    for name, row in prompts.tasks.items():
        if name not in known:
            what = f"prompts: tasks: {name!r} is neither a training set nor a set or task of `evaluate`"
            yield Problem(what, row.place, did_you_mean(name, known))
