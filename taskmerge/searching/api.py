"""`search`: find weights, methods and their parameters by trying, in memory."""

from __future__ import annotations

import collections.abc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.output.replacing import absolute
from taskmerge.declarations import (
    COUNT,
    TEXTS,
    Either,
    Flag,
    Instance,
    Named,
    Number,
    Place,
    Text,
    checked_arguments,
    optional,
)
from taskmerge.merging.bench import MEMORY, Bench
from taskmerge.reporting import check_page
from taskmerge.searching.concluding import conclude
from taskmerge.searching.folder import SearchFolder, digest, folder_of
from taskmerge.searching.opening import live_model
from taskmerge.searching.outcome import Outcome
from taskmerge.searching.points import Goal
from taskmerge.searching.runner import Runner
from taskmerge.searching.scorer import Scorer, directions_of
from taskmerge.searching.setting import Setting, decide, prunable, recipe_of, stripped, with_section
from taskmerge.searching.study import JOURNAL, Study
from taskmerge.words.devices import device_or_default
from taskmerge.words.extras import require
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from torch import nn

    from taskmerge.embedders.interface import Embedder
    from taskmerge.embedders.takes import PairSource
    from taskmerge.merging.algebra.sources import Source
    from taskmerge.recipes import Recipe

BATCH_SIZE = 32


_FUNCTION = Instance(collections.abc.Callable, "a function")  # type: ignore[arg-type]  # a class without instances
_SETS = Named("sets of pairs")


@checked_arguments(
    objective=optional(_FUNCTION),
    maximize=optional(TEXTS),
    on=optional(_SETS),
    confirm=optional(Either((_SETS, _FUNCTION))),
    trials=optional(COUNT),
    sampler=optional(Text()),
    prune=optional(Flag()),
    sensitivity=optional(Number(0, None, integer=True)),
    fresh=Flag(),
    memory=Number(0, None, integer=True),
    batch_size=COUNT,
    page=optional(Place()),
    say=_FUNCTION,
)
def search(
    models: Recipe | str | Path | Mapping[str, Source],
    objective: Callable[..., float | Mapping[str, float]] | None = None,
    *,
    vary: Mapping[str, object] | None = None,
    maximize: Sequence[str] | str | None = None,
    on: Mapping[str, PairSource] | None = None,
    floor: Mapping[str, object] | None = None,
    confirm: Mapping[str, PairSource] | Callable[..., float | Mapping[str, float]] | None = None,
    trials: int | None = None,
    sampler: str | None = None,
    prune: bool | None = None,
    sensitivity: int | None = None,
    model: nn.Module | Embedder | Callable[[str], nn.Module | Embedder] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    device: str | None = None,
    memory: int = MEMORY,
    batch_size: int = BATCH_SIZE,
    page: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Find weights, methods and their parameters by trials.

        found = search("recipe.yaml")
        found = search({"base": base, "law": law, "code": code}, objective=accuracy, model=copy.deepcopy(base),
                       vary={"specialists.*.weight": [0.0, 1.0]}, trials=40)

    No model is written in a trial: tensors are merged in place into one live model, with the same bits as `fuse`
    writes.

    Args:
        models: a recipe, its file, or models by name with the base under "base"; all sources that `fuse` takes.
        objective: a function of the live model that returns its score, or scores by name, of which `maximize` names
            some; higher is better. Default: retrieval on the pairs of `on`.
        vary, maximize, on, floor, trials, sampler, prune, sensitivity: as in the `search` section of a recipe, whose
            values they replace; `on` takes all pairs that `read_pairs` takes.
        confirm: pairs that the search never uses, or a second objective on other data.
        model: the live model that is overwritten and scored: a network, or an `Embedder`, of the class of the merged
            model; or a function that makes one from a folder's path. Default: the recipe's merge is written once and
            opened as an embedder.
        out: folder of the study; default: the recipe's, or a temporary one for models in memory.
        fresh: discard the trials of another search in this folder.
        device: device that the model runs on and that computes the merges.
        memory: bytes kept of intermediate results that trials share.
        batch_size: items per batch.
        page: file for the report, in addition to the one in the study's folder.
        say: function that gets a line of text for every trial and every assumption.

    Returns:
        All points, the best one's recipe, and its scores.

    Raises:
        RecipeError: with every problem found before the first trial.
        TaskmergeError: if the recipe's own merge cannot be made or scored.
    """
    if page is not None:
        check_page(page)
    given = {"vary": vary, "maximize": maximize, "floor": floor, "trials": trials, "sampler": sampler, "prune": prune,
             "sensitivity": sensitivity}  # fmt: skip
    with (
        _begun(models, objective, on, confirm, given, out, fresh, device, memory, say) as begun,
        _worker(begun, model, device, batch_size) as (runner, study),
        begun.folder.alone(),
    ):
        return conclude(begun.setting, runner, study, batch_size, page)


@dataclass(frozen=True)
class _Begun:
    """A search whose folder was taken. say: see `search`."""

    setting: Setting
    bench: Bench
    folder: SearchFolder
    say: Callable[[str], None]


def begin(recipe: Path, *, out: Path | None, trials: int | None, fresh: bool, memory: int) -> Path:
    """Check a recipe's search and take its folder, as `search` does; no trial is run. Returns the folder."""
    with _begun(recipe, None, None, None, {"trials": trials}, out, fresh, None, memory, lambda _: None) as begun:
        return begun.folder.path


def contribute(
    recipe: Path, *, out: Path, trials: int | None, device: str | None, memory: int, say: Callable[[str], None]
) -> None:
    """Run trials of a study until there are enough, all processes together; as `search`, without its conclusions."""
    with (
        _begun(recipe, None, None, None, {"trials": trials}, out, False, device, memory, say) as begun,
        _worker(begun, None, device, BATCH_SIZE),
    ):
        pass


@contextmanager
def _begun(
    models: Any,
    objective: Any,
    on: Any,
    confirm: Any,
    given: Mapping[str, Any],
    out: str | Path | None,
    fresh: bool,
    device: str | None,
    memory: int,
    say: Callable[[str], None],
) -> Iterator[_Begun]:
    require("optuna", "scipy")
    recipe, inputs = recipe_of(models)
    setting = decide(with_section(recipe, given), objective, on, confirm, say)
    with ExitStack() as stack:
        if out is None and inputs is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskmerge-search-")))
        else:
            place = absolute(folder_of(setting.recipe, None if out is None else Path(out)))
        folder = SearchFolder(place)
        chosen = str(device_or_default(device) or "cpu")
        bench = Bench(stripped(setting.recipe), inputs, device=chosen, memory=memory)
        for line in bench.plan.warnings:
            say(f"warning: {line}")
        if inputs is not None and (folder.path / JOURNAL).exists():
            say("models in memory: if this folder is resumed, it cannot be checked whether they are the same")
        folder.claim()
        with folder.alone():
            folder.begin(_said(setting, bench), fresh)
        yield _Begun(setting, bench, folder, say)


@contextmanager
def _worker(begun: _Begun, model: Any, device: str | None, batch_size: int) -> Iterator[tuple[Runner, Study]]:
    """Run references and trials until there are enough; what is left is done while this process counts as working."""
    setting, bench, folder, say = begun.setting, begun.bench, begun.folder, begun.say
    section = setting.section
    with folder.alone():
        live = live_model(setting.recipe, bench, model, folder, device)
    if live.not_run:
        say(f"the model does not use {counted(len(live.not_run), 'tensor')} of the merge, not merged in trials")
    scorer = None
    if setting.pairs:
        ways = directions_of(setting.objectives, list(setting.pairs))
        scorer = Scorer(live, setting.pairs, ways, batch_size)
    goal = Goal(setting.objectives, section.floor)
    runner = Runner(bench, setting.axes, goal, live, scorer, setting.own, folder, say)
    study = Study(folder.path, bench.recipe, setting.axes, len(setting.objectives), section.sampler, section.trials,
                  prunable(setting))  # fmt: skip
    say(
        f"{counted(len(setting.axes), 'number')} to vary, {section.trials} trials proposed by {study.sampler}, "
        f"in {folder.path}"
    )
    with study.working():
        with folder.alone():
            runner.references()
            runner.teach(study)
        runner.trials(study)
        yield runner, study


def _said(setting: Setting, bench: Bench) -> str:
    section = setting.section
    floors = {name: (floor.change, floor.metric) for name, floor in section.floor.items()}
    own = [getattr(one, "__qualname__", repr(one)) for one in (setting.own, setting.own_confirm) if one is not None]
    return digest(bench, bench.recipe, section.vary, section.maximize, [*setting.sources, floors, *own])
