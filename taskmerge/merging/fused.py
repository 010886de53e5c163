"""The fused model as lazy `Weights`: reading a tensor merges it. Saving it streams; in memory it is the same bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from taskmerge import kernels
from taskmerge.checkpoints.output.saving import AHEAD, CHUNK, converted, stored_format
from taskmerge.checkpoints.output.writing import OutputFolder
from taskmerge.checkpoints.weights import TensorInfo, Weights
from taskmerge.errors import MergeError
from taskmerge.kernels.program import KeepLargest, Program
from taskmerge.merging.covariances import matrices
from taskmerge.merging.once import Once
from taskmerge.merging.sides import add_side_files
from taskmerge.merging.steps import BASE, Plan, Source, TensorStep
from taskmerge.methods.covariance import protected
from taskmerge.numbers.randomness import stream_key, uniform_bits
from taskmerge.numbers.rounding import decode, encode, holds_nan, infinities

if TYPE_CHECKING:
    import torch


class FusedWeights:
    """`Weights` of a planned merge. device: where the arithmetic runs ("cpu", "cuda", …).

    Elementwise methods work chunk by chunk; others are given whole tensors, one at a time.
    """

    def __init__(self, plan: Plan, device: str = "cpu") -> None:
        self.label = "fused"
        self.plan = plan
        self.device = device
        self.config = plan.config
        self.parts = plan.parts
        self.folder = getattr(plan.base, "folder", None)
        self.steps: Mapping[str, TensorStep] = {step.info.name: step for step in plan.steps}
        self.tensors: Mapping[str, TensorInfo] = {step.info.name: step.info for step in plan.steps}
        self._measured: Once[str, kernels.Measurement | None] = Once(AHEAD + 1)
        self._whole: Once[str, np.ndarray] = Once(AHEAD + 1)
        self._model_wide: Once[Program, kernels.Measurement] = Once()
        self._one_whole_tensor = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`. Raises MergeError for NaN or inf that the plan does not allow.

        Allowed are infinities of tensors that are taken as they are, or in which all inputs agree (buffers of bounds).
        """
        step = self.steps[name]
        stop = step.info.count if stop is None else stop
        if step.action != "merge":
            return self._taken(step, start, stop)
        program = self.plan.program(step)
        if program is None:
            return self._merged_whole(step)[start:stop]
        out = np.empty(stop - start, step.info.format.storage)
        self._merge_chunk(step, program, start, stop, out)
        return out

    def read_into(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        """As `read`, into `out`, 1-D, of the tensor's storage dtype; merged in place where chunks are merged."""
        step = self.steps[name]
        if step.action == "merge":
            program = self.plan.program(step)
            if program is not None:
                self._merge_chunk(step, program, start, stop, out)
                return
        out[:] = self.read(name, start, stop)

    def _taken(self, step: TensorStep, start: int, stop: int) -> np.ndarray:
        weights = self.plan.inputs[step.source.label]
        stored, dtype = weights.read(step.source.name, start, stop), weights.tensors[step.source.name].dtype
        taken = converted(stored, dtype, step.info.dtype)
        if step.info.format.mergeable:
            overflows = taken is not stored and infinities(taken, step.info.dtype) > infinities(stored, dtype)
            if overflows or (not step.as_is and holds_nan(taken, step.info.dtype)):
                raise self._nonfinite(step)
        return taken

    def _merge_chunk(self, step: TensorStep, program: Program, start: int, stop: int, out: np.ndarray) -> None:
        base, specialists = self._operands(step)
        keys = self._keys(step) if program.random else ()
        measurement = self._measurement(step, program) if program.measured else None
        health = kernels.combine(
            base, specialists, program, measurement, keys, start, stop, out, step.info.dtype, device=self.device
        )
        if health.nonfinite_inputs or health.nonfinite_outputs:
            if program.base_factor == 1.0 and self._agree(step):
                out[:] = converted(base.read(start, stop), base.dtype, step.info.dtype)
                return
            raise self._nonfinite(step)
        for source in (Source(BASE, step.source.name), *step.specialists):
            weights = self.plan.inputs[source.label]
            if hasattr(weights, "release"):
                weights.release(source.name, start, stop)

    def in_dtype(self, dtype: str) -> FusedWeights:
        """The same, rounded straight into another format."""
        steps = tuple(replace(step, info=stored_format(step.info, dtype)) for step in self.plan.steps)
        return FusedWeights(replace(self.plan, steps=steps), self.device)

    def write_side_files(self, output: OutputFolder, dtype: str | None) -> None:
        """Config, tokenizer and processor of the fused model; see `sides.add_side_files`."""
        add_side_files(output, self.plan, dtype)

    def _measurement(self, step: TensorStep, program: Program) -> kernels.Measurement | None:
        if isinstance(how := program.sparsify_of(0), KeepLargest) and how.across == "model":
            return self._model_wide.get(
                program, lambda: kernels.measure_model(self._alike(step), program, device=self.device)
            )

        def measured() -> kernels.Measurement | None:
            base, specialists = self._operands(step)
            keys, dtype = self._keys(step), step.info.dtype
            return kernels.measure(base, specialists, program, keys, out_dtype=dtype, device=self.device)

        return self._measured.get(step.info.name, measured)

    def _alike(self, step: TensorStep) -> list[tuple[kernels.Operand, Sequence[kernels.Operand]]]:
        """Every tensor merged the same way from the same specialists: what a model-wide threshold is taken over."""
        labels = [source.label for source in step.specialists]
        return [
            self._operands(other)
            for other in self.plan.steps
            if other.action == "merge"
            and (other.method, other.options, other.weights) == (step.method, step.options, step.weights)
            and [source.label for source in other.specialists] == labels
        ]

    def _merged_whole(self, step: TensorStep) -> np.ndarray:
        return self._whole.get(step.info.name, lambda: self._run_whole(step))

    def _run_whole(self, step: TensorStep) -> np.ndarray:
        with self._one_whole_tensor:  # one at a time: memory is planned for the largest
            return self._run_method(step)

    def _run_method(self, step: TensorStep) -> np.ndarray:
        import torch

        method = self.plan.methods[step.method]
        base = self._decoded(Source(BASE, step.source.name), step.info.shape)
        deltas = torch.stack([self._decoded(source, step.info.shape) - base for source in step.specialists])
        if not torch.isfinite(deltas).all():
            if self._agree(step):
                return self._taken(step, 0, step.info.count)
            raise self._nonfinite(step)
        if step.protected:
            shields = matrices(self.plan.inputs, step.specialists, step.protected)
            deltas = protected(deltas, shields, self.plan.protect_energy)
        working = torch.float64 if step.info.dtype == "F64" or method.whole_matrices else torch.float32
        bits = (
            torch.stack([self._bits(key, step.info) for key in self._keys(step)])
            if "random_bits" in method.inputs
            else None
        )
        merged = method.merge(
            deltas.to(self.device, working),
            torch.tensor(step.weights, dtype=torch.float64, device=self.device),
            step.options,
            base=base.to(self.device, working),
            random_bits=bits,
            covariances=self._covariances(step) if "covariances" in method.inputs else None,
        )
        total = (base + merged.double().cpu()).numpy().reshape(-1)
        out = encode(total, step.info.dtype)
        if not np.isfinite(decode(out, step.info.dtype)).all():
            raise self._nonfinite(step)
        return out

    def _covariances(self, step: TensorStep) -> torch.Tensor | None:
        """(specialists, inputs, inputs), or None unless every specialist measured this layer."""
        import torch

        found = [matrix for matrix in matrices(self.plan.inputs, step.specialists) if matrix is not None]
        return torch.stack(found).to(self.device) if len(found) == len(step.specialists) else None

    def _decoded(self, source: Source, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        weights = self.plan.inputs[source.label]
        values = decode(weights.read(source.name), weights.tensors[source.name].dtype)
        return torch.from_numpy(values).reshape(shape)

    def _bits(self, key: int, info: TensorInfo) -> torch.Tensor:
        import torch

        return torch.from_numpy(uniform_bits(key, 0, info.count).astype(np.int64)).reshape(info.shape).to(self.device)

    def _operands(self, step: TensorStep) -> tuple[kernels.Operand, list[kernels.Operand]]:
        base = self._operand(Source(BASE, step.source.name))
        return base, [self._operand(source) for source in step.specialists]

    def _operand(self, source: Source) -> kernels.Operand:
        weights = self.plan.inputs[source.label]
        info = weights.tensors[source.name]
        view = weights.view(source.name) if hasattr(weights, "view") else None
        return kernels.Operand(info.dtype, info.shape, partial(weights.read, source.name), view)

    def _keys(self, step: TensorStep) -> list[int]:
        return [stream_key(self.plan.seed, source.label, step.info.name) for source in step.specialists]

    def _agree(self, step: TensorStep) -> bool:
        """Whether all inputs of a merged tensor hold the same values: buffers of ±inf are then copied."""
        base = self.plan.base, step.source.name
        return all(
            np.array_equal(one, two)
            for source in step.specialists
            for one, two in zip(_values(*base), _values(self.plan.inputs[source.label], source.name), strict=True)
        )

    def _nonfinite(self, step: TensorStep) -> MergeError:
        sources = (step.source, *step.specialists) if step.action == "merge" else (step.source,)
        bad = [
            source.label
            for source in sources
            if not all(np.isfinite(part).all() for part in _values(self.plan.inputs[source.label], source.name))
        ]
        where = f"in {', '.join(bad)}" if bad else "in the result: it overflows the output dtype"
        return MergeError(
            f"NaN or infinite values {where}",
            f"tensor {step.info.name!r}",
            f"repair the input, keep the tensor (rules: - {{match: {step.info.name!r}, keep: {step.source.label}}})"
            if bad
            else "choose a wider output dtype",
        )


def _values(weights: Weights, name: str) -> Iterator[np.ndarray]:
    """A tensor's entries as float64, in chunks."""
    info = weights.tensors[name]
    for start in range(0, info.count, CHUNK):
        yield decode(weights.read(name, start, min(start + CHUNK, info.count)), info.dtype)
