"""The plan: what becomes of every tensor, by which rule; every check is behind it, no decision after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from taskmerge.checkpoints.output.layout import ShardLayout
from taskmerge.checkpoints.repacking import Unpacked
from taskmerge.checkpoints.state_dict import BASE, Beside, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import few
from taskmerge.kernels.program import Program
from taskmerge.methods.registry import MergeMethod
from taskmerge.words.tables import Shown, Table, counted

Action = Literal["merge", "keep", "copy"]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of one input. label: "base" or the specialist's name; name: as that input stores it."""

    label: str
    name: str


@dataclass(frozen=True, slots=True)
class TensorStep:
    """The plan for one output tensor.

    info: name, dtype and shape in the output. rule: the sentence that decides it. action "keep" and "copy" take
    `source` unchanged; "merge" combines the base's tensor with `specialists`, one weight each, by `method` with
    `options`. A "keep" with specialists is for integers, in which all must agree. protected: specialists whose input
    directions are removed from the deltas of the others. token_table: whether it has one row per token. as_is: the
    recipe itself names the model whose tensor is taken, so NaN in it is accepted.
    """

    info: TensorInfo
    component: str
    action: Action
    rule: str
    source: Source
    specialists: tuple[Source, ...] = ()
    weights: tuple[float | Fraction, ...] = ()
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    protected: tuple[str, ...] = ()
    token_table: bool = False
    as_is: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """An input tensor that does not reach the output, and why. asked: whether the recipe itself says so."""

    source: Source
    rule: str
    asked: bool = False


@dataclass(frozen=True)
class Streamed:
    """The form in which a step streams. sources: the specialists that affect it, one weight of the program each."""

    program: Program
    sources: tuple[Source, ...]


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """A planned merge: every decision is made, and no tensor has been read.

    Attributes:
        inputs: label -> state dict, "base" first.
        steps: one per output tensor, in output order.
        dropped: tensors that are left out, with the reason.
        methods: merge methods by the name used in the steps.
        shards: the exact layout of the output files.
        beside: config, tokenizer and other files of the output.
        side_folders: folders from which these files are copied; the first that has a file wins.
        texts: files that are rewritten, name -> content.
        seed: of random drops.
        protect_energy: share of the energy that `protected` preserves.
        warnings: conflicts that do not stop the merge, one sentence each.
        notes: decisions that were made without a setting of the user, one sentence each.
        deltas: specialists that are task vectors.
        adapters: specialists that are the base with an adapter.
        own_bases: bases of specialists that were fine-tuned from another model.
        bare: the output is the merged task vector, without the base.
        packing: the base, if the output stores weights in few bits as the base does.
    """

    inputs: Mapping[str, StateDict]
    steps: tuple[TensorStep, ...]
    dropped: tuple[Dropped, ...]
    methods: Mapping[str, MergeMethod]
    shards: tuple[ShardLayout, ...]
    beside: Beside
    side_folders: tuple[Path, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    protect_energy: float = 0.9
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    deltas: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()
    own_bases: Mapping[str, StateDict] = field(default_factory=dict)
    bare: bool = False
    packing: Unpacked | None = None

    @property
    def base(self) -> StateDict:
        """The base's tensors."""
        return self.inputs[BASE]

    @property
    def bytes_written(self) -> int:
        """The size of all weight files, in bytes."""
        return sum(shard.size for shard in self.shards)

    @property
    def bytes_read(self) -> int:
        """The bytes of the input tensors that the steps use, each counted once."""
        total = 0
        for step in self.steps:
            used: tuple[Source, ...] = (step.source,)
            if step.action == "merge":
                streamed = self.streamed(step)
                used = (Source(BASE, step.source.name), *(streamed.sources if streamed else step.specialists))
            total += sum(self.inputs[source.label].tensors[source.name].nbytes for source in used)
        return total

    @property
    def whole_tensor_bytes(self) -> int:
        """The maximum number of bytes of a step that needs a complete tensor; 0 if all steps stream."""
        return max((self._whole_bytes(step) for step in self._whole_steps()), default=0)

    def _whole_bytes(self, step: TensorStep) -> int:
        specialists, shape = len(step.specialists), step.info.shape
        shielded = 8 * step.info.count * (2 * specialists + 2) if step.protected else 0
        whole = self.methods[step.method].peak_bytes(specialists, shape) if self.program(step) is None else 0
        return max(whole, shielded)

    def program(self, step: TensorStep) -> Program | None:
        """Return the Program of a merging step, over all its specialists; None if it takes complete tensors."""
        program = self.methods[step.method].program(step.weights, step.options, step.info.shape, step.token_table)
        return replace(program, base="left_out") if program is not None and self.bare else program

    def streamed(self, step: TensorStep) -> Streamed | None:
        """Return the Program and the specialists that affect a merging step; None for complete tensors."""
        program = self.program(step)
        if program is None:
            return None
        idle = program.idle
        if not idle:
            return Streamed(program, step.specialists)
        sources = tuple(source for number, source in enumerate(step.specialists) if number not in idle)
        return Streamed(program.without(idle), sources)

    def _whole_steps(self) -> Iterator[TensorStep]:
        for step in self.steps:
            if step.action == "merge" and (step.protected or self.program(step) is None):
                yield step

    def in_one_line(self) -> str:
        """Return the inputs and the numbers of tensors that are merged, kept, copied and dropped, see `Shown`."""
        actions = Counter(step.action for step in self.steps)
        done: dict[Action, str] = {"merge": "merged", "keep": "kept", "copy": "copied"}
        counts = [f"{actions[action]:,} {word}" for action, word in done.items() if actions[action]]
        counts += [f"{len(self.dropped):,} dropped"] if self.dropped else []
        specialists = few([label for label in self.inputs if label != BASE], 3)
        warned = f"; {counted(len(self.warnings), 'warning')}" if self.warnings else ""
        return f"of base and {specialists}: {counted(len(self.steps), 'tensor')}, {', '.join(counts)}{warned}"

    def as_table(self) -> Table:
        """Return one row per tensor of the output, see `Shown`."""
        columns = (
            "tensor",
            "component",
            "action",
            "rule",
            "dtype",
            "shape",
            "source",
            "specialists",
            "method",
            "weights",
        )
        rows = (
            (
                step.info.name, step.component, step.action, step.rule, step.info.format.torch_name, step.info.shape,
                step.source.label, ", ".join(source.label for source in step.specialists), step.method,
                ", ".join(f"{float(weight):g}" for weight in step.weights),
            )
            for step in self.steps
        )  # fmt: skip
        return Table(columns, rows, len(self.steps))

    def table(self) -> dict[str, Counter[str]]:
        """Count the tensors that are merged, kept and copied, by component."""
        rows: dict[str, Counter[str]] = {}
        for step in self.steps:
            rows.setdefault(step.component, Counter())[step.action] += 1
        return rows
