"""The model that a search runs: one live model, whose tensors are merged into place for every point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.components import component_map, with_overrides
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.embedders.anatomy import components_of
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.putting import put
from taskmerge.errors import MergeError, UsageError, few
from taskmerge.merging.bench import Bench, changed
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn


class LiveModel:
    """An embedder, or any network, that becomes one merge after the other.

    Attributes:
        model: what an objective is given.
        values: its tensors by their names in the file, which are those of the merge.
        homes: name -> component.
        not_run: tensors of the merge that it does not run, heads for instance; they are not merged.
    """

    def __init__(self, bench: Bench, model: Embedder | nn.Module, own: bool) -> None:
        """Take a model as it is.

        Args:
            bench: what is merged.
            model: where it is merged into.
            own: whether the model holds the recipe's own merge already, so that only what moves is written.

        Raises:
            UsageError: for a model that runs none of the merged tensors, or that is one of those that are merged.
        """
        self.bench, self.model = bench, model
        state_dict = model.state_dict if isinstance(model, Embedder) else _of_module(bench, model)
        self.values: Mapping[str, Tensor] = state_dict.values
        info = {step.info.name: step.info for step in bench.plan.steps}
        self._shared = {
            name for name in self.values if name in info and tuple(self.values[name].shape) == info[name].shape
        }
        if odd := [name for name in self.values if name in info and name not in self._shared]:
            what = f"the shapes of the model differ from those of the merge: {few(odd, 3)}"
            raise UsageError(what, next_move="give a model with the class and config of the merge")
        if not self._shared:
            raise UsageError(
                "the model does not use any of the merged tensors", next_move="give a model of the base's class"
            )
        self._check_apart()
        self.homes = _homes(bench, state_dict, model)
        self.not_run = [name for name in info if name not in self._shared]
        self._holds: Plan | None = bench.plan if own else None
        self._torn: set[str] = set()

    def become(self, plan: Plan) -> list[str]:
        """Merge into place what a plan makes otherwise than the model has it.

        Returns:
            The tensors that were written.

        Raises:
            MergeError: NaN, infinities, or what a method refuses; the next call restores the model.
        """
        names = (
            [step.info.name for step in plan.steps]
            if self._holds is None
            else changed(self._holds, plan, self.bench.unmoved)
        )
        wanted = [name for name in dict.fromkeys([*names, *sorted(self._torn)]) if name in self._shared]
        fused = self.bench.fused(plan)
        written = [name for name in wanted if fused.tensors[name].format.mergeable or self._holds is None]
        self._torn |= set(written)
        self._holds = plan
        put(self.values, fused, written)
        self._torn.clear()
        return written

    def check(self, fused: FusedStateDict) -> None:
        """Raise MergeError unless the model holds just these bits, in every tensor of the merge's own format."""
        live = MemoryStateDict(self.values, "the live model")
        for name in self._shared:
            same_format = live.tensors[name].dtype == fused.tensors[name].dtype
            if same_format and (live.read(name) != fused.read(name)).any():
                raise MergeError(
                    f"the opened model stores {name!r} differently from its file, so trials cannot be loaded into it",
                    next_move="search with an objective and a model of your own (docs/search.md)",
                )

    def _check_apart(self) -> None:
        """The model must not be one of the inputs: it would change under the merge."""
        live = {tensor.data_ptr() for tensor in self.values.values()}
        for label, state_dict in self.bench.inputs.state_dicts.items():
            held = state_dict.live if isinstance(state_dict, WithLiveValues) else state_dict
            tensors = held.values.values() if isinstance(held, MemoryStateDict) else ()
            if any(tensor.data_ptr() in live for tensor in tensors if hasattr(tensor, "data_ptr")):
                what = f"the model for the trials is {label} itself"
                raise UsageError(what, next_move="give a copy: copy.deepcopy(model)")


def _of_module(bench: Bench, module: nn.Module) -> MemoryStateDict:
    """A network's live tensors under the names of the merge."""
    from taskmerge.embedders.file_names import names_in_file

    live: dict[str, Any] = module.state_dict(keep_vars=True)
    names = names_in_file(module, bench.plan.base)
    return MemoryStateDict({names.get(name, name): tensor for name, tensor in live.items()}, type(module).__name__)


def _homes(bench: Bench, state_dict: MemoryStateDict, model: Any) -> dict[str, str]:
    if isinstance(model, Embedder):
        parts = components_of(model.state_dict, model.components)
    else:
        found = component_map(state_dict.tensors, bench.plan.base.config)
        parts = with_overrides(found, bench.recipe.components, strict=False)
    return {name: parts.home(name) for name in parts}
