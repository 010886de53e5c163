"""Task-vector algebra over any two sets of weights, lazy: model - model, model + task vector, and what lies between.

A task vector is specialist - base (Ilharco et al., arXiv 2212.04089). Nothing is read until a delta, a statistic or a
saved file asks for it, and then in chunks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from taskmerge.checkpoints.components import BUFFERS, HEAD, Components, component_map
from taskmerge.checkpoints.formats.quantized import dequantized
from taskmerge.checkpoints.formats.reading import load_json, open_stored
from taskmerge.checkpoints.lineage.adapters import adapted, is_adapter
from taskmerge.checkpoints.lineage.names import align
from taskmerge.checkpoints.memory import MemoryWeights
from taskmerge.checkpoints.output.saving import output_dtype, save_weights
from taskmerge.checkpoints.vectors.compressed import CompressedDeltas, Form, restore
from taskmerge.checkpoints.vectors.lora_extraction import Extraction, extract_lora
from taskmerge.checkpoints.weights import TensorInfo, Weights
from taskmerge.errors import CheckpointError, MergeError, UsageError, did_you_mean
from taskmerge.merging.algebra import statistics
from taskmerge.merging.algebra.weights import DeltaWeights, MovedWeights
from taskmerge.numbers.rounding import decode
from taskmerge.words.patterns import matches

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20
VECTOR_FILE = "task_vector.json"
Reader = Callable[[str, int, int], np.ndarray]


class Checkpoint:
    """A model: a lazy mapping from tensor name to tensor, whatever holds it.

    weights: what is underneath. Subtract two to get a `TaskVector`; add a task vector to get a model again.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @classmethod
    def open(cls, source: Any, *, label: str | None = None) -> Checkpoint:
        """Opens a path, hub id[@revision], hf:// uri, dict of tensors, live module or anything with `Weights`' methods.

        Reads headers only. Raises CheckpointError when there is no checkpoint there.
        """
        if isinstance(source, Checkpoint):
            return source
        if isinstance(source, str | Path):
            return cls(open_stored(source, label=label))
        if isinstance(source, Mapping):
            return cls(MemoryWeights(source, label or "in memory"))
        if hasattr(source, "state_dict"):
            return cls(MemoryWeights.of_module(source, label))
        if isinstance(source, Weights):
            return cls(source)
        raise UsageError(
            f"cannot open a {type(source).__name__} as a checkpoint",
            next_move="give a path, a hub id, a dict of tensors or a module",
        )

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.weights.label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Headers by name."""
        return self.weights.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json."""
        return self.weights.config

    def components(self) -> Components:
        """Tensor name -> component (backbone, audio_projector, …)."""
        return component_map(self.tensors, self.config)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor, whole, as torch.Tensor of its own dtype and shape (a copy)."""
        import torch

        info = self._info(name)
        flat = np.array(self.weights.read(name))
        return torch.from_numpy(flat.view(np.uint8)).view(getattr(torch, info.format.torch_name)).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise MergeError(f"no tensor {name!r} in {self.label}", next_move=did_you_mean(name, self.tensors))
        return self.tensors[name]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors, whole."""
        return {name: self[name] for name in self.tensors}

    def __sub__(self, other: object) -> TaskVector:
        if isinstance(other, Checkpoint):
            return difference(self, other)
        if isinstance(other, TaskVector):
            raise UsageError(
                "model - task vector is ambiguous", next_move="to forget a task write model + (-1) * task_vector"
            )
        return NotImplemented

    def __add__(self, other: object) -> Checkpoint:
        if isinstance(other, TaskVector):
            return Checkpoint(MovedWeights(Checkpoint(dequantized(self.weights)), other))
        if isinstance(other, Checkpoint):
            raise UsageError(
                f"model + model: {self.label} + {other.label}",
                next_move="did you mean base + (specialist - base)? Subtract the base from each specialist first",
            )
        return NotImplemented

    __radd__ = __add__

    def __mul__(self, factor: object) -> Checkpoint:
        raise UsageError(
            f"a model times {factor!r} is not a model",
            next_move="scale task vectors: base + 0.3 * (specialist - base); the method linear averages models",
        )

    __rmul__ = __mul__

    def save(
        self, path: str | Path, *, dtype: str | None = None, shard_size: int | str = "5GB", fresh: bool = False
    ) -> Path:
        """Streams the model into a new folder, whole or not at all, with the base's config and tokenizer files.

        dtype: torch name ("bfloat16") for all floating-point tensors; None keeps each tensor's own. shard_size: bytes,
        or text such as "500MB". fresh: replace an existing folder. Raises OutputError, MergeError.
        """
        return save_weights(self.weights, Path(path), dtype=dtype, shard_size=shard_size, fresh=fresh)


@dataclass(frozen=True)
class TaskVector:
    """A lazy mapping from tensor name to delta.

    base: the model it starts from. shapes: name -> shape of each delta. read: (name, start, stop) -> float64 entries of
    the flattened delta. own: tensors only the specialist has, name -> where they are; added to a model they are copied
    whole, whatever the weight.
    """

    base: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    read: Reader
    own: Mapping[str, Weights]
    label: str = "task vector"

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One delta, whole, as a float32 torch.Tensor."""
        import torch

        if name not in self.shapes:
            raise MergeError(f"no delta {name!r} in {self.label}", next_move=did_you_mean(name, self.shapes))
        flat = self.read(name, 0, self.count(name)).astype(np.float32)
        return torch.from_numpy(flat).reshape(self.shapes[name])

    def count(self, name: str) -> int:
        """Entries of one delta."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The flattened delta in pieces of at most CHUNK float64 entries."""
        for start in range(0, self.count(name), CHUNK):
            yield self.read(name, start, min(start + CHUNK, self.count(name)))

    def __mul__(self, factor: object) -> TaskVector:
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            return NotImplemented
        number = float(factor)
        return TaskVector(
            self.base, self.shapes, lambda name, start, stop: number * self.read(name, start, stop), self.own,
            f"{factor} * {self.label}",
        )  # fmt: skip

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1.0 / divisor)

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __add__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return _add(self, other)

    def __radd__(self, other: object) -> TaskVector:
        return self if other == 0 else NotImplemented  # what sum() begins with

    def __sub__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return self + (-other)

    def norm(self) -> float:
        """Euclidean norm over all deltas."""
        return statistics.norm(self)

    def norms(self) -> dict[str, float]:
        """Euclidean norm of each delta."""
        return statistics.norms(self)

    def cosine(self, other: TaskVector) -> float:
        """Cosine of the angle to another task vector, over the tensors both have."""
        return statistics.cosine(self, other)

    def sign_conflict(self, other: TaskVector) -> float:
        """Share of entries, non-zero in both, whose signs differ."""
        return statistics.sign_conflict(self, other)

    def sparsify(self, density: float, how: str = "magnitude", *, seed: int = 0) -> TaskVector:
        """The task vector with a share `density` of each delta's entries.

        how: "magnitude" keeps the largest, ties included (TIES' trim); "random" keeps each with probability `density`
        and divides it by that (DARE), the same entries for the same seed. Raises UsageError.
        """
        read = statistics.sparsified_reader(self, density, how, seed)
        return replace(self, read=read, label=f"{self.label} at density {density}")

    def save(
        self,
        path: str | Path,
        *,
        dtype: str = "float32",
        form: str = "dense",
        density: float | None = None,
        rank: int | None = None,
        fresh: bool = False,
    ) -> Path:
        """Writes the deltas (and the specialist's own tensors) as a folder that `load` reads. Streams.

        dtype: torch name of the stored numbers' format. form: "dense", "sparse" (the largest `density` of each),
        "low_rank" (`rank`) or "sign" (one bit and a scale per row); what these lose is in the folder's
        task_vector.json, under "report".
        """
        marks = {"task_vector": 1, "label": self.label, "own": sorted(self.own), "form": form}
        if form == "dense":
            deltas, extra = DeltaWeights(self, dtype), {VECTOR_FILE: json.dumps(marks) + "\n"}
            return save_weights(deltas, Path(path), fresh=fresh, extra=extra)
        config = self.describing_config() if self.own else {}
        small = CompressedDeltas(
            self.read, self.shapes, cast(Form, form), self.own, density, rank,
            dtype=output_dtype(dtype), label=self.label, config=config,
        )  # fmt: skip
        marks["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        written = {VECTOR_FILE: lambda: json.dumps(marks | {"report": small.report()}) + "\n"}
        return save_weights(small, Path(path), fresh=fresh, extra=written)

    def save_lora(
        self, path: str | Path, rank: int, *, seed: int = 0, base_name: str | None = None, fresh: bool = False
    ) -> Extraction:
        """Writes the deltas as a PEFT adapter of at most `rank`, and says what it loses. Raises MergeError when the
        specialist has tensors of its own, which an adapter cannot carry."""
        if self.own:
            raise MergeError(
                f"{self.label} has tensors of its own, e.g. {next(iter(self.own))!r}; an adapter cannot carry them",
                next_move="take a part: only('backbone'), or write a task vector",
            )
        weights = self.base.weights
        return extract_lora(
            weights, self.read, self.shapes, Path(path), rank, seed=seed, base_name=base_name, fresh=fresh
        )

    @classmethod
    def load(cls, path: str | Path, base: Checkpoint) -> TaskVector:
        """A saved task vector, or a PEFT adapter, to be added to models of `base`'s shape.

        Raises CheckpointError when it is neither.
        """
        if is_adapter(Path(path)):
            return difference(Checkpoint(adapted(base.weights, path)), base)
        stored = open_stored(path)
        marks_file = stored.folder / VECTOR_FILE
        if not marks_file.is_file():
            raise CheckpointError("a checkpoint, but no task vector", str(path), "task vectors are made by extract")
        marks = load_json(marks_file)
        own = dict.fromkeys(marks["own"], stored)
        if marks.get("form", "dense") != "dense":
            shapes = {name: tuple(shape) for name, shape in marks["shapes"].items()}
            return cls(base, shapes, restore(stored, marks["form"], shapes), own, str(path))
        shapes = {name: info.shape for name, info in stored.tensors.items() if name not in own}

        def read(name: str, start: int, stop: int) -> np.ndarray:
            return decode(stored.read(name, start, stop), stored.tensors[name].dtype)

        return cls(base, shapes, read, own, str(path))

    def only(self, *patterns: str) -> TaskVector:
        """The part whose tensors lie in the named components or match the globs ("backbone", "*.layers.{0..7}.*").

        Raises UsageError for a pattern that selects nothing.
        """
        return self._select(patterns, keep=True)

    def without(self, *patterns: str) -> TaskVector:
        """All but the named components or globs. Raises UsageError for a pattern that selects nothing."""
        return self._select(patterns, keep=False)

    def _select(self, patterns: tuple[str, ...], keep: bool) -> TaskVector:
        everything = {**self.base.tensors, **{name: weights.tensors[name] for name, weights in self.own.items()}}
        components = component_map(everything, self.describing_config())
        chosen: set[str] = set()
        for pattern in patterns:
            hits = {name for name in (*self.shapes, *self.own) if _selected(pattern, name, components)}
            if not hits:
                known = (*sorted(set(components.values())), *self.shapes)
                raise UsageError(
                    f"{pattern!r} selects no tensor of {self.label}", next_move=did_you_mean(pattern, known)
                )
            chosen |= hits
        shapes = {name: shape for name, shape in self.shapes.items() if (name in chosen) == keep}
        own = {name: weights for name, weights in self.own.items() if (name in chosen) == keep}
        return TaskVector(self.base, shapes, self.read, own, self.label)

    def describing_config(self) -> Mapping[str, Any]:
        """config.json of the model this task vector makes: the specialist's when it brings tensors of its own."""
        grafted = next(iter(self.own.values()), None)
        return grafted.config if grafted is not None else self.base.config


def _selected(pattern: str, name: str, components: Any) -> bool:
    return components[name] == pattern or matches(name, pattern) or matches(components.scoped_name(name), pattern)


def difference(specialist: Checkpoint, base: Checkpoint) -> TaskVector:
    """specialist - base, tensor by tensor under the base's names, scaled 8-bit floats as the numbers they stand for.

    Raises MergeError when shapes differ, or when the base has a tensor that the specialist lacks and that is neither a
    head nor a buffer, nor of a component it lacks as a whole: those have no delta. Neither have integer and bool
    tensors: a model that is moved keeps its own. Tensors only the specialist has become the task vector's own.
    """
    base = Checkpoint(dequantized(base.weights))
    new = align(base.weights, dequantized(specialist.weights)).weights
    components = base.components()
    homes = {components.home(name) for name in new.tensors if name in components}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, info in base.tensors.items():
        if name not in new.tensors:
            if components[name] in (HEAD, BUFFERS) or components.home(name) not in homes:
                continue
            raise MergeError(f"{specialist.label} lacks the base's {name!r}", next_move="is it the same lineage?")
        other = new.tensors[name]
        if other.shape != info.shape:
            raise MergeError(
                f"{name!r} is {list(info.shape)} in {base.label}, {list(other.shape)} in {specialist.label}",
                next_move="is it the same lineage?",
            )
        if info.format.mergeable and not other.format.mergeable:
            raise MergeError(f"{name!r} is {info.dtype} in {base.label}, {other.dtype} in {specialist.label}")
        if info.format.mergeable:
            shapes[name] = info.shape
    own = {name: new for name in new.tensors if name not in base.tensors}

    def read(name: str, start: int, stop: int) -> np.ndarray:
        moved = decode(new.read(name, start, stop), new.tensors[name].dtype)
        return moved - decode(base.weights.read(name, start, stop), base.tensors[name].dtype)

    return TaskVector(base, shapes, read, own, specialist.label)


def _add(first: TaskVector, second: TaskVector) -> TaskVector:
    clash = sorted(set(first.own) & set(second.own))
    if clash:
        raise MergeError(
            f"{first.label} and {second.label} both bring their own {clash[0]!r} ({len(clash)} such tensors)",
            next_move=f"keep one: task_vector.without({clash[0]!r})",
        )
    for name in first.shapes.keys() & second.shapes.keys():
        if first.shapes[name] != second.shapes[name]:
            raise MergeError(f"{name!r} is {first.shapes[name]} in one task vector, {second.shapes[name]} in the other")

    def read(name: str, start: int, stop: int) -> np.ndarray:
        if name not in second.shapes:
            return first.read(name, start, stop)
        if name not in first.shapes:
            return second.read(name, start, stop)
        return first.read(name, start, stop) + second.read(name, start, stop)

    shapes = {**first.shapes, **second.shapes}
    return TaskVector(first.base, shapes, read, {**first.own, **second.own}, f"{first.label} + {second.label}")
