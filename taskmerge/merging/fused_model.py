"""The result of `fuse` for a base that is not live: the merged model, lazy, with its plan."""

from __future__ import annotations

from taskmerge.checkpoints.state_dict import BASE
from taskmerge.errors import few
from taskmerge.merging.algebra import Checkpoint
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.steps import Plan
from taskmerge.words.tables import counted


class FusedModel(Checkpoint):
    """A merged model: a `Checkpoint` whose tensors are merged when they are read or saved.

    >>> fused = taskmerge.fuse({"w": torch.zeros(2)}, {"one": {"w": torch.tensor([1.0, 2.0])}}, weights=0.5)
    >>> fused
    <FusedModel of base and one by task_arithmetic, 1 tensor, 2 entries, float32>
    >>> fused["w"]
    tensor([0.5000, 1.0000])
    >>> fused.plan
    <Plan of base and one: 1 tensor, 1 merged>
    """

    def __init__(self, fused: FusedStateDict) -> None:
        super().__init__(fused)
        self._plan = fused.plan

    def in_one_line(self) -> str:
        """Return the inputs, the methods and the sizes, see `TensorMapping.in_one_line`."""
        specialists = [label for label in self._plan.inputs if label != BASE]
        methods = list(dict.fromkeys(step.method for step in self._plan.steps if step.action == "merge"))
        said = f"base and {few(specialists, 3)}" if specialists else "base"
        how = f" by {few(methods, 3)}" if methods else ""
        warned = f"; {counted(len(self.warnings), 'warning')}" if self.warnings else ""
        return f"of {said}{how}, {super().in_one_line().partition(': ')[2]}{warned}"

    @property
    def plan(self) -> Plan:
        """The plan: the action for every tensor, and its reason."""
        return self._plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """The conflicts that did not stop the merge, one sentence each."""
        return self._plan.warnings

    @property
    def notes(self) -> tuple[str, ...]:
        """The decisions that were made without a setting of the user, one sentence each."""
        return self._plan.notes
