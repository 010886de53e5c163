"""The kernels' entry points: measure, then combine, on the compiled CPU kernels or through torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from taskmerge.errors import MergeError
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.program import DropRandom, KeepLargest, Program


def measure(
    base: Operand, specialists: Sequence[Operand], program: Program, keys: Sequence[int], *, device: str = "cpu"
) -> Measurement | None:
    """The passes over one tensor that must come before combining it; None when the program needs none.

    keys: one 64-bit key per specialist (`randomness.stream_key`); used by random drops only.  device: "cpu", or a
    torch device.  A program with `KeepLargest(across="model")` is measured by `measure_model` instead.
    """
    backend = _backend(device)
    pair = backend.Pair(base, tuple(specialists))
    _check(pair, program)
    if not specialists:
        return None
    if program.from_gram is not None:
        gram = backend.gram(pair)
        return Measurement(gram=gram, weights=tuple(float(weight) for weight in program.from_gram(gram)))
    if base.count == 0:
        return Measurement(*(((0.0,) * len(specialists),) * 3))
    if isinstance(program.sparsify, KeepLargest) and program.sparsify.across == "tensor":
        return backend.thresholds([pair], program.sparsify)
    if isinstance(program.sparsify, DropRandom) and program.sparsify.rescale == "l1":
        return Measurement(factors=backend.rescale_factors(pair, program.sparsify, keys))
    return None


def measure_model(
    tensors: Sequence[tuple[Operand, Sequence[Operand]]], program: Program, *, device: str = "cpu"
) -> Measurement:
    """One threshold per specialist over all `tensors` together, for `KeepLargest(across="model")`."""
    if not isinstance(program.sparsify, KeepLargest):
        raise MergeError("only KeepLargest is measured over a whole model")
    backend = _backend(device)
    pairs = [backend.Pair(base, tuple(specialists)) for base, specialists in tensors if base.count]
    if not pairs:
        return Measurement(*(((0.0,) * len(program.weights),) * 2))
    for pair in pairs:
        _check(pair, program)
    return backend.thresholds(pairs, program.sparsify)


def combine(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    measurement: Measurement | None,
    keys: Sequence[int],
    start: int,
    stop: int,
    out: np.ndarray,
    out_dtype: str,
    *,
    device: str = "cpu",
) -> Health:
    """Entries [start, stop) of the merged tensor into `out`, each rounded once to nearest even.

    out: writable, 1-D, `stop - start` entries of the storage dtype of `out_dtype` ("BF16" as uint16 bits).  The bits do
    not depend on how [0, count) is cut into calls, on threads, or on the device.
    """
    backend = _backend(device)
    pair = backend.Pair(base, tuple(specialists))
    _check(pair, program)
    return backend.combine(pair, program, measurement, keys, start, stop, out, out_dtype)


def _backend(device: str) -> Any:
    """The compiled kernels for "cpu" where numba is installed, torch otherwise."""
    if device == "cpu" and find_spec("numba") is not None:
        from taskmerge.kernels.compiled import backend

        return backend
    from taskmerge.kernels import torch_backend

    return torch_backend


def _check(pair: Any, program: Program) -> None:
    """A caller's mistake, said before any byte is read through a wrong address."""
    if len(program.weights) != len(pair.specialists):
        raise MergeError(f"{len(program.weights)} weights for {len(pair.specialists)} specialists")
    for operand in pair.specialists:
        if operand.shape != pair.base.shape:
            raise MergeError(f"a specialist's tensor has shape {operand.shape}, the base's {pair.base.shape}")
