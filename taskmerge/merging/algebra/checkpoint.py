"""Models in the algebra: model - model is a task vector, model + task vector a model.

Whatever is written, and in which order, nothing is rounded before the end: a model that task vectors were added to is
planned as a fuse of their terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.components import Components, component_map
from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.lineage.adapters import is_adapter
from taskmerge.checkpoints.memory import is_live
from taskmerge.checkpoints.opening import open_state_dict
from taskmerge.checkpoints.output.saving import save_state_dict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.checkpoints.vectors.folder import is_task_vector
from taskmerge.declarations import Flag, Place, Size, Text, checked_arguments, optional
from taskmerge.errors import UnknownTensorError, UsageError, did_you_mean
from taskmerge.merging.algebra.mapping import TensorMapping
from taskmerge.merging.algebra.sums import Term, joined, plan_sum, same
from taskmerge.merging.algebra.task_vector import TaskVector
from taskmerge.merging.fused import FusedStateDict

if TYPE_CHECKING:
    import torch

    from taskmerge.checkpoints.opening import Openable


class Checkpoint(TensorMapping):
    """A model as a lazy mapping from tensor name to tensor.

    Tensors are read when they are used. Subtract two models to get a `TaskVector`; add a task vector to get a model.

    Args:
        underlying: the state dict, of a file or in memory, that the tensors are read from.

    >>> base = Checkpoint.open({"layer.weight": torch.ones(2, 3)}, label="mine")
    >>> base
    <Checkpoint mine: 1 tensor, 6 entries, float32>
    >>> "layer.weight" in base, len(base), list(base)
    (True, 1, ['layer.weight'])
    >>> away = Checkpoint.open({"layer.weight": torch.zeros(2, 3)}) - base
    >>> (base + 2 * away)["layer.weight"].sum()
    tensor(-6.)
    """

    def __init__(self, state_dict: StateDict) -> None:
        self.underlying = state_dict

    @cached_property
    def numbers(self) -> StateDict:
        """The tensors as numbers for arithmetic: scaled 8-bit floats are multiplied by their scales."""
        return dequantized(self.underlying)

    @property
    def start(self) -> Checkpoint:
        """The model that task vectors are counted from: this one, or the one that it was computed from."""
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """The task vectors that were added to `start`."""
        return ()

    @classmethod
    def open(cls, source: Openable | Checkpoint, *, label: str | None = None) -> Checkpoint:
        """Open a path, hub id[@revision], hf:// uri, dict of tensors, live module or `StateDict`.

        Only headers are read.

        Args:
            source: the model. A live module is opened as its library would save it: names, tied tensors, config and
                tokenizer are those of the saved folder.
            label: the name in messages; default: the path, or the type of a live module.

        Returns:
            The open model; a `Checkpoint` is returned unchanged.

        Raises:
            CheckpointError: if the source is not a checkpoint.
            UsageError: for a task vector.
        """
        if isinstance(source, TaskVector):
            raise UsageError("a task vector is not a model", next_move="add it to one: base + task_vector")
        if isinstance(source, Checkpoint):
            return source
        if is_live(source):
            from taskmerge.checkpoints.live.opening import open_live  # loaded where there is a live model

            return cls(open_live(source, label or type(source).__name__))
        return cls(open_state_dict(source, label))

    @property
    def label(self) -> str:
        """The name of the model in messages."""
        return self.underlying.label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The headers (dtype, shape, bytes) by tensor name."""
        return self.underlying.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of the model's config.json."""
        return self.underlying.config

    def components(self) -> Components:
        """Return a mapping from tensor name to component (backbone, audio_projector, …)."""
        return component_map(self.tensors, self.config)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor, whole, as torch.Tensor of its own dtype and shape (a copy)."""
        import torch

        info = self._info(name)
        flat = np.array(self.underlying.read(name))
        return torch.from_numpy(flat.view(np.uint8)).view(getattr(torch, info.format.torch_name)).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise UnknownTensorError(
                f"there is no tensor {name!r} in {self.label}", next_move=did_you_mean(name, self.tensors)
            )
        return self.tensors[name]

    @property
    def headers(self) -> Mapping[str, TensorInfo]:
        """The headers by tensor name, see `TensorMapping.headers`."""
        return self.tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read all tensors into memory, by name."""
        return {name: self[name] for name in self.tensors}

    def __sub__(self, other: object) -> TaskVector:
        if isinstance(other, Checkpoint):
            return difference(self, other)
        if isinstance(other, TaskVector):
            raise UsageError(
                "model - task vector is ambiguous", next_move="to remove a task, write model + (-1) * task_vector"
            )
        return NotImplemented

    def __add__(self, other: object) -> Checkpoint:
        if isinstance(other, TaskVector):
            return MovedCheckpoint(self.start, (*self.terms, *other.terms))
        if isinstance(other, Checkpoint):
            raise UsageError(
                f"two models cannot be added: {self.label} + {other.label}",
                next_move="subtract the base from each specialist first: base + (specialist - base)",
            )
        return NotImplemented

    __radd__ = __add__

    def __mul__(self, factor: object) -> Checkpoint:
        raise UsageError(
            f"a model times {factor!r} is not a model",
            next_move="scale task vectors: base + 0.3 * (specialist - base); the method linear averages models",
        )

    __rmul__ = __mul__

    @checked_arguments(path=Place(), dtype=optional(Text()), shard_size=Size(), fresh=Flag())
    def save(
        self, path: str | Path, *, dtype: str | None = None, shard_size: int | str = "5GB", fresh: bool = False
    ) -> Path:
        """Write the model to a new folder, with the base's config and tokenizer files; tensors are streamed.

        Args:
            path: the folder. It appears only when the model is complete.
            dtype: torch name ("bfloat16") for all floating-point tensors; None keeps each tensor's own.
            shard_size: maximum number of bytes per file, as a number or as text such as "500MB".
            fresh: replace an existing folder that taskmerge made.

        Returns:
            The folder.

        Raises:
            OutputError: if the folder cannot be written.
            MergeError: if a tensor cannot be computed.
        """
        return save_state_dict(self.underlying, path, dtype=dtype, shard_size=shard_size, fresh=fresh)


class MovedCheckpoint(Checkpoint):
    """A model plus task vectors, each output entry rounded once, whatever the order in which they were added."""

    def __init__(self, start: Checkpoint, terms: Sequence[Term]) -> None:
        self._start, self._terms = start, joined(terms)
        fused = FusedStateDict(plan_sum(start.numbers, self._terms))
        fused.label = " + ".join([start.label, *(term.label for term in self._terms)])
        super().__init__(fused)

    @property
    def start(self) -> Checkpoint:
        """See `Checkpoint.start`."""
        return self._start

    @property
    def terms(self) -> tuple[Term, ...]:
        """See `Checkpoint.terms`."""
        return self._terms


def difference(specialist: Checkpoint, base: Checkpoint) -> TaskVector:
    """Return specialist - base, tensor by tensor under the base's names, with scaled 8-bit floats as numbers.

    For a model that was computed from the same base, the result is the task vectors that were added to it. Tensors that
    only the specialist has become the task vector's own.

    Args:
        specialist, base: open models.

    Returns:
        The task vector, lazy.

    Raises:
        MergeError: as for a plan: if shapes differ, or if the base has a tensor that the specialist lacks and that is
            neither a head nor a buffer, nor of a component that it lacks completely.
    """
    if specialist.terms and same(specialist.start.numbers, base.numbers):
        return TaskVector(base.numbers, specialist.terms, specialist.label)
    folder = specialist.underlying.beside.folder
    if folder is not None and is_task_vector(folder):
        raise UsageError(
            f"{specialist.label} is already a task vector", next_move="open it with TaskVector.load(path, base)"
        )
    model = specialist.numbers.in_dtype("float64") if specialist.terms else specialist.numbers
    return TaskVector(base.numbers, [Term(model, base.numbers, Fraction(1), specialist.label)], specialist.label)


def task_vector(source: Openable | Checkpoint | TaskVector, base: Checkpoint, label: str | None = None) -> TaskVector:
    """Return the task vector of a specialist's source: a model, an adapter's folder, a task vector or its folder."""
    if isinstance(source, TaskVector):
        return source
    if isinstance(source, str | Path):
        place = locate(str(source), None)
        if isinstance(place, Path) and (is_adapter(place) or is_task_vector(place)):
            return TaskVector.load(place, base)
    return Checkpoint.open(source, label=label) - base
