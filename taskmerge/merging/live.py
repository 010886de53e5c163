"""Live models merged as their saved folders are, and the result as a live model of the base's class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.live.adapters import adapted_network
from taskmerge.checkpoints.live.modules import bare, check_mergeable
from taskmerge.checkpoints.live.opening import saved_without_adapter, with_adapter
from taskmerge.checkpoints.live.saved import temporary_folder
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.memory import is_live
from taskmerge.checkpoints.output.saving import save_state_dict
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.embedders.returned import SETTINGS, no_place, opened_like, places, settle, transfer, with_values
from taskmerge.errors import Problem, TaskmergeError, UsageError
from taskmerge.merging.algebra import Checkpoint
from taskmerge.merging.algebra.comparison import differences
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import Plan

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LiveSources:
    """The sources of a merge, live models among them opened as the folders that they would be saved as.

    sources: label -> what `fuse` takes otherwise. adapters: labels of those that are the base with an adapter. modules:
    the live models by label, out of their wrappers. saved: each as its folder.
    """

    sources: Mapping[str, Any]
    adapters: frozenset[str] = frozenset()
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    saved: Mapping[str, WithLiveValues] = field(default_factory=dict)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Replace the folders that stand for models by the models' names in errors of the block."""
        try:
            yield
        except TaskmergeError as error:
            texts = {str(one.beside.folder): one.label for one in self.saved.values()}
            raise type(error)([_in_words(problem, texts) for problem in error.problems]) from error


def _in_words(problem: Problem, texts: Mapping[str, str]) -> Problem:
    said = []
    for text in (problem.what, problem.place, problem.next_move):
        for folder, label in texts.items():
            text = text and text.replace(folder, label)
        said.append(text)
    return Problem(said[0] or "", said[1], said[2])


def open_live(sources: Mapping[str, Any]) -> LiveSources:
    """Open the live models among the sources of a merge; the others stay what they are.

    Args:
        sources: label -> source, the base under "base".

    Raises:
        UsageError: for a model that is sharded, quantized or not loaded, or whose adapters are not as they are saved.
        CheckpointError: for one that its library cannot save.
    """
    modules = {label: bare(source, label) for label, source in sources.items() if is_live(source)}
    problems: list[Problem] = []
    for label, module in modules.items():
        try:
            check_mergeable(module, label)
            if adapted_network(module, label) is not None and label == BASE:
                raise UsageError(
                    "the base contains an adapter that is not merged",
                    next_move="call model.merge_and_unload() to merge the adapter, or model.unload() to remove it",
                )
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return _opened(sources, modules)


def _opened(sources: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> LiveSources:
    opened: dict[str, Any] = dict(sources)
    saved: dict[str, WithLiveValues] = {}
    adapters = set()
    for label, module in modules.items():
        said = f"{label} ({type(module).__name__} in memory)"
        saved[label] = saved_without_adapter(module, said)
        opened[label] = saved[label]
        if adapted_network(module, label) is not None:
            start = Checkpoint.open(opened[BASE]).numbers
            of_base = _holds_the_same(saved[label], start)
            opened[label] = with_adapter(module, start if of_base else saved[label], said)
            adapters |= {label} if of_base else set()
    return LiveSources(opened, frozenset(adapters), modules, saved)


def _holds_the_same(one: StateDict, base: StateDict) -> bool:
    """Whether all that a model has is the base's, bit for bit."""
    return all(row["difference"] == "only in the second" for row in differences(one, base))


def as_live_model(fused: FusedStateDict, live: LiveSources, in_place: bool) -> nn.Module:
    """Return the merged model as a live one.

    Args:
        fused: the merge.
        live: its sources; the base is a live model.
        in_place: whether the base itself becomes the result.

    Raises:
        UsageError: where the result is not a model of the base's class and config, and must be in place, or no library
            makes it.
        MergeError: what a method or the values refuse.
    """
    base, saved = live.modules[BASE], live.saved[BASE]
    for line in fused.plan.warnings:
        warnings.warn(line, stacklevel=4)
    fused.check_integers()
    where = places(base, saved) if _is_as_the_base(fused.plan, saved) else None
    if where is not None:
        names = [step.info.name for step in fused.plan.steps if not _is_the_bases(step)]
        found = with_values(base, where, fused, names)
        if in_place:
            transfer(found, base)
            found = base
    elif in_place:
        raise UsageError(
            "the result does not have the tensors and settings of the base: it cannot replace the base in place",
            next_move="leave out in_place: a new model is returned",
        )
    else:
        found = _through_a_folder(fused, live, base)
    settle(found, fused.beside.prompts)
    return found


def _is_the_bases(step: Any) -> bool:
    """Integers and the like that are the base's own: its copy has them."""
    return step.action == "keep" and step.source.label == BASE and not step.info.format.mergeable


def _is_as_the_base(plan: Plan, base: StateDict) -> bool:
    """Whether the result is the base with other values: the same tensors, config, tokenizer and settings."""
    shapes = {step.info.name: step.info.shape for step in plan.steps}
    prompts, own = (
        {key: value for key, value in one.beside.prompts.items() if key not in SETTINGS} for one in (plan, base)
    )
    return (
        shapes == {name: info.shape for name, info in base.tensors.items()}
        and plan.beside.config == base.beside.config
        and not plan.texts
        and plan.beside.tokenizer_folder in (None, base.beside.tokenizer_folder)
        and prompts == own
    )


def _other_settings(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a live model does not take from the merge."""
    return {key: value for key, value in prompts.items() if key not in SETTINGS}


def _through_a_folder(fused: FusedStateDict, live: LiveSources, base: nn.Module) -> nn.Module:
    """The result written into a temporary folder and opened by the base's library."""
    if not hasattr(base, "save_pretrained"):
        new = [name for name in fused.tensors if name not in live.saved[BASE].tensors]
        raise no_place(base, new or fused.tensors)
    folder, remove = temporary_folder()
    try:
        written = save_state_dict(fused, folder / "merged")
        return opened_like(base, live.modules.values(), Path(str(written)))
    finally:
        remove()
