"""The merged model as a lazy `StateDict`: reading a tensor merges it, saving it streams the same bits."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge import kernels
from taskmerge.checkpoints.output.saving import AHEAD, CHUNK, converted, stored_format
from taskmerge.checkpoints.state_dict import BASE, Output, StateDict
from taskmerge.checkpoints.storage_noise import noise_of
from taskmerge.errors import MergeError
from taskmerge.merging import common
from taskmerge.merging.covariances import matrices
from taskmerge.merging.never_merged import module_of_packed
from taskmerge.merging.once import Once
from taskmerge.merging.operands import Operands
from taskmerge.merging.sides import add_side_files
from taskmerge.merging.steps import Plan, Source, Streamed, TensorStep
from taskmerge.merging.thresholds import ModelThresholds
from taskmerge.methods.remembered import Remembered, remembering
from taskmerge.numbers.randomness import stream_key, uniform_bits
from taskmerge.numbers.rounding import decode, encode, holds_nan, infinities

if TYPE_CHECKING:
    import torch


class _NotFinite(Exception):
    """A delta has NaN or infinite entries."""


class FusedStateDict(StateDict):
    """`StateDict` of a planned merge. device: where the arithmetic runs ("cpu", "cuda", …).

    store: results that merges of the same inputs share (`merging.bench`); None: nothing is shared.
    Elementwise methods work chunk by chunk; others are given whole tensors, one at a time.
    """

    def __init__(self, plan: Plan, device: str = "cpu", store: Remembered | None = None) -> None:
        self.label = "fused"
        self.store = store
        self.plan = plan
        self.device = device
        self.beside = plan.beside
        self.steps: Mapping[str, TensorStep] = {step.info.name: step for step in plan.steps}
        self.tensors = {step.info.name: step.info for step in plan.steps}
        self.operands = Operands(plan)
        self.thresholds = ModelThresholds(self.operands, device, store)
        self._streamed: dict[str, Streamed | None] = {}
        self._measured: Once[str, kernels.Measurement | None] = Once(AHEAD + 1)
        self._whole: Once[str, np.ndarray] = Once(AHEAD + 1)
        self._agreed: Once[str, None] = Once()
        self._one_whole_tensor = threading.Lock()
        self._finding_thresholds = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`. Raises MergeError for NaN or inf the plan does not allow, or integers that differ.

        Allowed are infinities of tensors that are taken as they are, or in which all inputs agree (buffers of bounds).
        """
        info = self.tensors[name]
        out = np.empty((info.count if stop is None else stop) - start, info.format.storage)
        self.read_into(name, start, start + out.size, out)
        return out

    def read_into(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        """Write the entries of `read` into `out`, 1-D, of the tensor's storage dtype; merge in place if streamed."""
        step = self.steps[name]
        if step.action != "merge":
            out[:] = self._taken(step, start, stop)
        elif (streamed := self._stream_of(step)) is not None:
            self._merge_chunk(step, streamed, start, stop, out)
        else:
            out[:] = self._whole.get(name, lambda: self._run_whole(step))[start:stop]

    def in_dtype(self, dtype: str) -> FusedStateDict:
        """Return the same model, rounded directly to another format."""
        steps = tuple(replace(step, info=stored_format(step.info, dtype)) for step in self.plan.steps)
        return FusedStateDict(replace(self.plan, steps=steps), self.device, self.store)

    def sources(self) -> Mapping[str, StateDict]:
        """See `StateDict.sources`."""
        return self.plan.inputs

    def write_side_files(self, output: Output, dtype: str | None) -> bool:
        """Config, tokenizer and processor of the fused model; see `sides.add_side_files`."""
        add_side_files(output, self.plan, dtype or self.beside.output_dtype)
        return True

    def check_integers(self, names: Collection[str] | None = None) -> None:
        """Raise MergeError for the first integer or bool tensor that differs: these are never averaged. names: of those
        to look at; None for all."""
        for step in self.plan.steps if names is None else [self.steps[name] for name in names]:
            if step.action == "keep" and step.specialists:
                self._agreed.get(step.info.name, partial(self._check_agreement, step))

    def measurement(self, step: TensorStep) -> kernels.Measurement | None:
        """Return the results of the passes before merging for a step that streams; None if no pass is needed."""
        streamed = self._stream_of(step)
        return self._measurement(step, streamed) if streamed is not None and streamed.program.measured else None

    # ------------------------------------------------------------------------------------------------- one step

    def _taken(self, step: TensorStep, start: int, stop: int) -> np.ndarray:
        if step.action == "keep" and step.specialists:
            self._agreed.get(step.info.name, partial(self._check_agreement, step))
        state_dict = self.plan.inputs[step.source.label]
        stored, dtype = state_dict.read(step.source.name, start, stop), state_dict.tensors[step.source.name].dtype
        taken = converted(stored, dtype, step.info.dtype)
        if step.info.format.mergeable:
            overflows = taken is not stored and infinities(taken, step.info.dtype) > infinities(stored, dtype)
            if overflows or (not step.as_is and holds_nan(taken, step.info.dtype)):
                raise self._nonfinite(step)
        return taken

    def _stream_of(self, step: TensorStep) -> Streamed | None:
        name = step.info.name
        if name not in self._streamed:
            self._streamed[name] = self.plan.streamed(step)
        return self._streamed[name]

    def _merge_chunk(self, step: TensorStep, streamed: Streamed, start: int, stop: int, out: np.ndarray) -> None:
        program = streamed.program
        base = self.operands.base(step)
        specialists = [self.operands.specialist(step, source) for source in streamed.sources]
        keys = self._keys(step, streamed.sources) if program.random else ()
        measurement = self.measurement(step)
        health = kernels.combine(
            base, specialists, program, measurement, keys, start, stop, out, step.info.dtype, device=self.device
        )
        if health.nonfinite_inputs or health.nonfinite_outputs:
            if program.base_factor(program.weights) == 1 and self._agree(step):
                out[:] = converted(base.read(start, stop), base.dtype, step.info.dtype)
                return
            raise self._nonfinite(step)
        for source in (Source(BASE, step.source.name), *streamed.sources):
            self.plan.inputs[source.label].release(source.name, start, stop)

    def _measurement(self, step: TensorStep, streamed: Streamed) -> kernels.Measurement | None:
        with self._finding_thresholds:
            thresholds = self.thresholds.of(step, streamed.sources)

        def measured() -> kernels.Measurement | None:
            base = self.operands.base(step)
            specialists = [self.operands.specialist(step, source) for source in streamed.sources]
            keys = self._keys(step, streamed.sources)
            return kernels.measure(base, specialists, streamed.program, keys, thresholds=thresholds,
                                   out_dtype=step.info.dtype, device=self.device)  # fmt: skip

        return self._measured.get(
            step.info.name, lambda: common.measurement(self.store, self.plan, step, streamed, thresholds, measured)
        )

    def _keys(self, step: TensorStep, sources: tuple[Source, ...]) -> list[int]:
        return [stream_key(self.plan.seed, source.label, step.info.name) for source in sources]

    # -------------------------------------------------------------------------------------------- whole tensors

    def _run_whole(self, step: TensorStep) -> np.ndarray:
        with self._one_whole_tensor:  # one at a time: memory is planned for the largest
            return self._run_method(step)

    def _run_method(self, step: TensorStep) -> np.ndarray:
        import torch

        try:
            with remembering(self.store):
                merged = common.merged_delta(self.store, self.plan, step, partial(self._merged_by, step))
        except _NotFinite:
            if self._agree(step):
                return self._taken(step, 0, step.info.count)
            raise self._nonfinite(step) from None
        base = torch.from_numpy(self._whole_base(step)).reshape(step.info.shape)
        merged = merged.cpu() if self.plan.bare else base + merged.cpu()
        out = encode(merged.numpy().reshape(-1), step.info.dtype)
        if not np.isfinite(decode(out, step.info.dtype)).all():
            raise self._nonfinite(step)
        return out

    def _whole_base(self, step: TensorStep) -> np.ndarray:
        """The base's tensor, float64 (entries,)."""
        stored = self.operands.base(step)
        return decode(stored.read(0, stored.count), stored.dtype)

    def _merged_by(self, step: TensorStep, options: Mapping[str, Any]) -> torch.Tensor:
        """The merged delta, float64, by these options. Raises _NotFinite for deltas that are not."""
        import torch

        method, shape = self.plan.methods[step.method], step.info.shape
        deltas = torch.empty((len(step.specialists), *shape), dtype=torch.float64)
        for number, source in enumerate(step.specialists):
            deltas[number] = torch.from_numpy(self.operands.delta(step, source)).reshape(shape)
        if not torch.isfinite(deltas).all():
            raise _NotFinite
        base = torch.from_numpy(self._whole_base(step)).reshape(shape) if "base" in method.inputs else None
        return method.merge(
            deltas.to(self.device),
            torch.tensor([float(weight) for weight in step.weights], dtype=torch.float64, device=self.device),
            options,
            base=None if base is None else base.to(self.device),
            random_bits=self._random_bits(step) if "random_bits" in method.inputs else None,
            covariances=self._covariances(step) if "covariances" in method.inputs else None,
            noise=self._noise(step) if "noise" in method.inputs else None,
        )

    def _noise(self, step: TensorStep) -> torch.Tensor:
        """Standard deviation of the storage rounding in each delta: (specialists,)."""
        import torch

        found = [
            0.0 if self.operands.exact(step, source) else noise_of(self.plan.inputs[source.label], source.name)
            for source in step.specialists
        ]
        return torch.tensor(found, dtype=torch.float64, device=self.device)

    def _covariances(self, step: TensorStep) -> torch.Tensor | None:
        """(specialists, inputs, inputs), or None unless every specialist measured this layer."""
        import torch

        found = [matrix for matrix in matrices(self.plan.inputs, step.specialists) if matrix is not None]
        return torch.stack(found).to(self.device) if len(found) == len(step.specialists) else None

    def _random_bits(self, step: TensorStep) -> torch.Tensor:
        """(specialists, *shape), int64."""
        import torch

        rows = [uniform_bits(key, 0, step.info.count).astype(np.int64) for key in self._keys(step, step.specialists)]
        return torch.from_numpy(np.stack(rows)).reshape(len(rows), *step.info.shape).to(self.device)

    # ---------------------------------------------------------------------------------------------------- checks

    def _check_agreement(self, step: TensorStep) -> None:
        base = self.plan.base.read(step.source.name)
        for source in step.specialists:
            if not np.array_equal(base, self.plan.inputs[source.label].read(source.name)):
                name = step.info.name
                why = "" if not step.info.format.mergeable else f" ({step.rule})"
                what = f"the {step.info.dtype} tensor {name!r} differs between the base and {source.label}{why}"
                move = f"rules: - {{match: {name!r}, keep: base}}; for a task vector in Python: without({name!r})"
                if (module := module_of_packed(self.plan.base, name)) is not None:
                    raise MergeError(
                        what,
                        next_move="`output: {quantized: true}` merges packed numbers of a supported kind; or choose "
                        f"which module to keep: rules: - {{match: '{module}.*', keep: base}}",
                    )
                raise MergeError(what, next_move=f"choose which one to keep: {move}")

    def _agree(self, step: TensorStep) -> bool:
        """Whether all inputs of a merged tensor hold the same values: buffers of ±inf are then copied."""
        if any(source.label in self.plan.deltas or source.label in self.plan.own_bases for source in step.specialists):
            return False
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


def _values(state_dict: StateDict, name: str) -> Iterator[np.ndarray]:
    """A tensor's entries as float64, in chunks."""
    info = state_dict.tensors[name]
    for start in range(0, info.count, CHUNK):
        yield decode(state_dict.read(name, start, min(start + CHUNK, info.count)), info.dtype)
