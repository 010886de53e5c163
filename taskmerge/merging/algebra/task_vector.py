"""Task vectors, lazy: differences of models, to be scaled, added, cut into parts, measured and saved.

A task vector is specialist - base (Ilharco et al., arXiv 2212.04089), and here a sum of such terms. Nothing is read
until a delta, a statistic or a saved file asks for it, and then in chunks; what is written is rounded once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from taskmerge.checkpoints.components import component_map
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.lineage.adapters import adapted, is_adapter
from taskmerge.checkpoints.output.record import Kind
from taskmerge.checkpoints.output.saving import SHARD_SIZE, output_dtype, save_state_dict
from taskmerge.checkpoints.output.sharing import Saving
from taskmerge.checkpoints.selector import Selector
from taskmerge.checkpoints.state_dict import Beside, Output, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.checkpoints.vectors.compressed import CompressedDeltas, Form
from taskmerge.checkpoints.vectors.folder import VECTOR_FILE, open_task_vector
from taskmerge.checkpoints.vectors.lora_extraction import Extraction, extract_lora
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.declarations import (
    COUNT,
    TEXTS,
    Flag,
    Number,
    Place,
    Size,
    Text,
    checked_arguments,
    optional,
    plain,
    shown,
)
from taskmerge.errors import MergeError, UnknownTensorError, UsageError, did_you_mean
from taskmerge.merging.algebra import statistics
from taskmerge.merging.algebra.mapping import TensorMapping
from taskmerge.merging.algebra.sums import Part, Term, joined, plan_sum
from taskmerge.merging.algebra.trimmed import sparsified
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.identity import identity_of
from taskmerge.numbers.rounding import decode
from taskmerge.words.places import StoreUri, output_path

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20
_MADE: tuple[Kind, str] = ("task vector", "extract")


class HasNumbers(Protocol):
    """A model, as far as a task vector must know it."""

    @property
    def numbers(self) -> StateDict:
        """The tensors as numbers for arithmetic."""


class TaskVector(TensorMapping):
    """A lazy mapping from tensor name to delta: a sum of the task vectors of models, each multiplied by a factor.

    Args:
        base: the model that the deltas start from.
        terms: the task vectors in the sum, with their factors.
        label: the name in messages.
        beside: other task vectors, whose added rows of token tables this one has too.

    >>> base = taskmerge.Checkpoint.open({"w": torch.zeros(4)})
    >>> moved = taskmerge.Checkpoint.open({"w": torch.tensor([3.0, 0.0, -4.0, 0.0])}, label="moved") - base
    >>> moved
    <TaskVector moved: 1 tensor, 4 entries, float32>
    >>> moved.norm(), moved.cosine(-0.5 * moved)
    (5.0, -1.0)
    >>> moved.sparsify(0.25)["w"]
    tensor([ 0.,  0., -4.,  0.])
    """

    __array_ufunc__ = None  # numpy's numbers leave a product with a task vector to it

    def __init__(
        self, base: StateDict, terms: Sequence[Term], label: str = "task vector", beside: Sequence[Term] = ()
    ) -> None:
        self.base, self.terms, self._label = base, joined(terms), label
        self._plan = plan_sum(base, self.terms, bare=True, beside=beside)
        self._fused = FusedStateDict(self._plan)

    @property
    def label(self) -> str:
        """The name of the task vector in messages."""
        return self._label

    @cached_property
    def headers(self) -> Mapping[str, TensorInfo]:
        """The headers of the deltas, float32; see `TensorMapping.headers`."""
        return {name: TensorInfo(name, "F32", shape) for name, shape in self.shapes.items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A mapping from tensor name to the shape of its delta."""
        return {step.info.name: step.info.shape for step in self._plan.steps if step.action == "merge"}

    @cached_property
    def own(self) -> Mapping[str, StateDict]:
        """The tensors that only the specialist has: name -> state dict.

        A model gets copies of them, whatever the factor.
        """
        copied = [step for step in self._plan.steps if step.action == "copy"]
        return {step.info.name: self._plan.inputs[step.source.label] for step in copied}

    @cached_property
    def grown(self) -> list[str]:
        """The token tables to which the specialist adds rows."""
        own = self.base.tensors
        return [name for name, shape in self.shapes.items() if name in own and shape != own[name].shape]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings: settings in which the models' configs differ, and tokens that are left out."""
        return self._plan.warnings

    def _cannot_grow(self, what: str) -> MergeError:
        return MergeError(
            f"{self.label} adds tokens to {self.grown[0]!r}; {what} cannot represent them",
            next_move=f"write a dense task vector, or leave the table out: without({self.grown[0]!r})",
        )

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return the entries [start, stop) of the flattened delta as float64, rounded once."""
        step = self._fused.steps[name]
        if len(step.specialists) == 1 and step.weights == (1,):  # x - b: the same, without the wider arithmetic
            operand, base = self._fused.operands.specialist(step, step.specialists[0]), self._fused.operands.base(step)
            values = decode(operand.read(start, stop), operand.dtype)
            return values if operand.is_delta else values - decode(base.read(start, stop), base.dtype)
        return self._fused.read(name, start, stop)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One delta, whole, as a float32 torch.Tensor."""
        import torch

        if name not in self.shapes:
            raise UnknownTensorError(
                f"there is no delta {name!r} in {self.label}", next_move=did_you_mean(name, self.shapes)
            )
        flat = self.read(name, 0, self.count(name)).astype(np.float32)
        return torch.from_numpy(flat).reshape(self.shapes[name])

    def count(self, name: str) -> int:
        """Return the number of entries of one delta."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """Yield the flattened delta in parts of at most CHUNK float64 entries."""
        for start in range(0, self.count(name), CHUNK):
            yield self.read(name, start, min(start + CHUNK, self.count(name)))

    def __mul__(self, factor: object) -> TaskVector:
        factor = plain(factor)
        if not isinstance(factor, int | float | Fraction) or isinstance(factor, bool):
            return NotImplemented
        if not math.isfinite(factor):
            raise UsageError(f"{self.label} cannot be multiplied by {factor}", next_move="give a finite number")
        scaled = [term.times(Fraction(factor)) for term in self.terms]
        return TaskVector(self.base, scaled, f"{factor} * {self.label}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> TaskVector:
        divisor = plain(divisor)
        if not isinstance(divisor, int | float | Fraction) or isinstance(divisor, bool):
            return NotImplemented
        if divisor == 0:
            raise UsageError(f"{self.label} cannot be divided by 0", next_move="give another number")
        return self * (1 / Fraction(divisor))

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __add__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return TaskVector(self.base, (*self.terms, *other.terms), f"{self.label} + {other.label}")

    def __radd__(self, other: object) -> TaskVector:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # what sum() begins with

    def __sub__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return self + (-other)

    def norm(self) -> float:
        """Compute the Euclidean norm over all deltas."""
        return statistics.norm(self)

    def norms(self) -> dict[str, float]:
        """Compute the Euclidean norm of each delta, by tensor name."""
        return statistics.norms(self)

    def cosine(self, other: TaskVector) -> float:
        """Compute the cosine of the angle to another task vector, over the tensors that both have."""
        return statistics.cosine(self, _task_vector(other))

    def sign_conflict(self, other: TaskVector) -> float:
        """Compute the share of entries with different signs, among those that are non-zero in both task vectors."""
        return statistics.sign_conflict(self, _task_vector(other))

    @checked_arguments(density=Number(), how=Text(), seed=Number(0, 2**63 - 1, integer=True))
    def sparsify(self, density: float, how: str = "magnitude", *, seed: int = 0) -> TaskVector:
        """Return the task vector with a share of the entries of each delta; the other entries are zero.

        Args:
            density: the share that is kept, 0 to 1.
            how: "magnitude" keeps the largest entries, ties included (trimming of TIES); "random" keeps each entry with
                probability `density` and divides it by `density` (DARE).
            seed: of the random choice; the same seed gives the same entries.

        Returns:
            A new task vector, lazy.

        Raises:
            UsageError: for a density or a choice that is not valid.

        Source:
            TIES: Yadav et al., arXiv 2306.01708. DARE: Yu et al., arXiv 2311.03099.
        """
        deltas = sparsified(self, density, how, seed)
        label = f"{self.label} at density {density}"
        return TaskVector(self.base, [Term(deltas, None, Fraction(1), label, own=frozenset(self.own))], label)

    def aligned_with(self, *others: TaskVector) -> TaskVector:
        """Return the same task vector, with the rows of token tables that it and the others have together."""
        return TaskVector(self.base, self.terms, self.label, [term for other in others for term in other.terms])

    def as_state_dict(self) -> StateDict:
        """Return the deltas as a float64 `StateDict`, with the specialist's own tensors unchanged."""
        return _Deltas(self, "F64")

    @checked_arguments(
        path=Place(),
        dtype=Text(),
        form=Text(),
        density=optional(Number(0, 1, low_open=True)),
        rank=optional(COUNT),
        shard_size=Size(),
        fresh=Flag(),
    )
    def save(
        self,
        path: str | Path,
        *,
        dtype: str = "float32",
        form: str = "dense",
        density: float | None = None,
        rank: int | None = None,
        shard_size: int | str = SHARD_SIZE,
        fresh: bool = False,
    ) -> Path:
        """Write the deltas and the specialist's own tensors to a folder that `load` reads; tensors are streamed.

        Token tables to which the specialist adds rows are stored completely, with its tokenizer: a new row has no
        counterpart in the base.

        Args:
            path: the folder.
            dtype: torch name of the stored number format.
            form: "dense", "sparse" (the largest `density` of each delta), "low_rank" (`rank`) or "sign" (one bit per
                entry and a scale per row). The loss of each form is in the folder's task_vector.json, under "report".
            density: share of entries that the form "sparse" keeps.
            rank: rank of the form "low_rank".
            shard_size: maximum number of bytes per file, as a number or as text such as "500MB".
            fresh: replace an existing folder that taskmerge made.

        Returns:
            The folder.

        Raises:
            UsageError: for a density or a rank that does not belong to the form.
            OutputError: if the folder cannot be written.
        """
        for name, given, needed in (("density", density, "sparse"), ("rank", rank, "low_rank")):
            if given is not None and form != needed:
                move = f"give form={needed!r}, or leave out {name}"
                raise UsageError(f"{name} belongs to the form {needed}, not to {form}", next_move=move)
        marks: dict[str, Any] = {"task_vector": 1, "label": self.label, "own": sorted(self.own), "form": form}
        if self.grown and form == "dense":
            marks["tables"] = self.grown
        elif self.grown:
            raise self._cannot_grow(f"the form {form}")
        if form == "dense":
            extra = {VECTOR_FILE: json.dumps(marks) + "\n"}
            dense = _Deltas(self, output_dtype(dtype))
            return save_state_dict(
                dense, path, shard_size=shard_size, fresh=fresh, extra=extra, made=_MADE, sources=self._plan.inputs
            )
        small = CompressedDeltas(
            self.read, self.shapes, cast(Form, form), self.own, density, rank,
            dtype=output_dtype(dtype), label=self.label, beside=self.beside,
        )  # fmt: skip
        marks["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        written = {VECTOR_FILE: lambda: json.dumps(marks | {"report": small.report()}) + "\n"}
        return save_state_dict(
            small, path, shard_size=shard_size, fresh=fresh, extra=written, made=_MADE, sources=self._plan.inputs
        )

    def shared(
        self, place: Path | StoreUri, *, dtype: str = "float32", shard_size: int = SHARD_SIZE, fresh: bool = False
    ) -> Saving:
        """Return the dense form, to be written in parts or into a store; see `checkpoints.output.sharing`.

        Args:
            place: folder or store.
            dtype, shard_size, fresh: as for `save`; `shard_size` in bytes.
        """
        marks: dict[str, Any] = {"task_vector": 1, "label": self.label, "own": sorted(self.own), "form": "dense"}
        if self.grown:
            marks["tables"] = self.grown
        began = identity_of(self._plan, f"extract {dtype} {shard_size} {self.label}")
        return Saving(
            _Deltas(self, output_dtype(dtype)), place, began, shard_size, _MADE, self._plan.inputs,
            {VECTOR_FILE: json.dumps(marks) + "\n"}, fresh,
        )  # fmt: skip

    @checked_arguments(
        path=Place(), rank=COUNT, seed=Number(0, 2**63 - 1, integer=True), base_name=optional(Text()), fresh=Flag()
    )
    def save_lora(
        self, path: str | Path, rank: int, *, seed: int = 0, base_name: str | None = None, fresh: bool = False
    ) -> Extraction:
        """Write the deltas as a PEFT adapter.

        Args:
            path: the folder.
            rank: maximum rank of each update.
            seed: of the randomised decomposition.
            base_name: the base's name in the adapter's config.
            fresh: replace an existing folder that taskmerge made.

        Returns:
            A report of the loss.

        Raises:
            MergeError: if the specialist has tensors of its own or additional token rows, which an adapter cannot
                contain.
        """
        if self.own:
            raise MergeError(
                f"{self.label} has tensors of its own, e.g. {next(iter(self.own))!r}; an adapter cannot represent them",
                next_move="select a part: only('backbone'), or write a task vector",
            )
        if self.grown:
            raise self._cannot_grow("an adapter")
        return extract_lora(
            self.base, self.read, self.shapes, output_path(path), rank,
            seed=seed, base_name=base_name, fresh=fresh, sources=self._plan.inputs,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, base: HasNumbers) -> TaskVector:
        """Read a saved task vector or a PEFT adapter.

        Args:
            path: folder of the task vector or of the adapter.
            base: the open model that it belongs to; the task vector can be added to models of its shapes.

        Returns:
            The task vector, lazy.

        Raises:
            CheckpointError: if the folder is neither.
            UsageError: if `base` is not an open model.
        """
        if not hasattr(base, "numbers"):
            raise UsageError(f"base: {shown(base)} is not an open model", next_move="give Checkpoint.open(…)")
        place = locate(str(path))
        if isinstance(place, Path) and place.is_dir() and is_adapter(place):
            term = Term(adapted(base.numbers, path), base.numbers, Fraction(1), str(path), adapter=True)
        else:
            stored = open_task_vector(path)
            term = Term(stored, None, Fraction(1), str(path), own=stored.own)
            if stored.tables:
                tables = ViewedStateDict(stored, {name: whole(stored.tensors[name], name) for name in stored.tables})
                deltas = replace(term, parts=(Part(stored.tables, False),))
                grown = Term(tables, base.numbers, Fraction(1), str(path), (Part(stored.tables, True),))
                return cls(base.numbers, [deltas, grown], str(path))
        return cls(base.numbers, [term], str(path))

    @checked_arguments(patterns=TEXTS)
    def only(self, *patterns: str) -> TaskVector:
        """Return the part whose tensors are in the named components or match the globs.

        Args:
            patterns: components or globs ("backbone", "*.layers.{0..7}.*").

        Raises:
            UsageError: for a pattern that selects no tensor.
        """
        return self._select(patterns, keep=True)

    @checked_arguments(patterns=TEXTS)
    def without(self, *patterns: str) -> TaskVector:
        """Return the task vector without the named components and the tensors that match the globs.

        Args:
            patterns: as for `only`.

        Raises:
            UsageError: for a pattern that selects no tensor.
        """
        return self._select(patterns, keep=False)

    def _select(self, patterns: tuple[str, ...], keep: bool) -> TaskVector:
        everything = {**self.base.tensors, **{name: state_dict.tensors[name] for name, state_dict in self.own.items()}}
        selector = Selector(component_map(everything, self._plan.beside.config))
        selector.require(patterns, "only" if keep else "without", among=(*self.shapes, *self.own), of=self.label)
        terms = [replace(term, parts=(*term.parts, Part(patterns, keep))) for term in self.terms]
        return TaskVector(self.base, terms, self.label)

    @property
    def beside(self) -> Beside:
        """The files next to its tensors: the model's config, if the specialist has tensors of its own."""
        return Beside(config=self._plan.beside.config if self.own else {})


def _task_vector(other: object) -> TaskVector:
    if not isinstance(other, TaskVector):
        move = "subtract a base: Checkpoint.open(model) - base"
        raise UsageError(f"a task vector is compared with another one, not with {shown(other)}", next_move=move)
    return other


class _Deltas(StateDict):
    """`StateDict` of the deltas in one float format, rounded once, and of the specialist's own tensors as they are.

    Token tables that have grown are those of the model that the task vector makes of its base.
    """

    def __init__(self, vector: TaskVector, dtype: str) -> None:
        self.label, self.beside, self._own = vector.label, vector.beside, vector.own
        self.tensors = {name: TensorInfo(name, dtype, shape) for name, shape in vector.shapes.items()}
        self.tensors |= {name: state_dict.tensors[name] for name, state_dict in vector.own.items()}
        format_ = str(TensorInfo("", dtype, ()).format.torch_name)
        self._deltas = vector._fused.in_dtype(format_)
        self._moved = FusedStateDict(plan_sum(vector.base, vector.terms)).in_dtype(format_) if vector.grown else None
        self._tables = frozenset(vector.grown)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        if self._moved is not None and name in self._tables:
            return self._moved.read(name, start, stop)
        return self._own.get(name, self._deltas).read(name, start, stop)

    def write_side_files(self, output: Output, dtype: str | None) -> bool:
        """See `StateDict.write_side_files`: the joined tokenizer, where rows were added."""
        return self._moved is not None and self._moved.write_side_files(output, dtype)
