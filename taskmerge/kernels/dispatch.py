"""The kernels' entry points: measure, then combine, on the compiled CPU kernels or through torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np

from taskmerge.errors import MergeError
from taskmerge.kernels import measuring
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.pairs import Backend, Job, Pair, combining_size, pieces_of, spread
from taskmerge.kernels.program import DropRandom, KeepLargest, Program


def measure(
    base: Operand, specialists: Sequence[Operand], program: Program, keys: Sequence[int], *, device: str = "cpu"
) -> Measurement | None:
    """The passes over one tensor that must come before combining it; None when the program needs none.

    keys: one 64-bit key per specialist (`randomness.stream_key`); used by random drops only.  device: "cpu", or a
    torch device.  A program with `KeepLargest(across="model")` is measured by `measure_model` instead.
    """
    backend = _backend(device)
    pair = Pair(base, tuple(specialists))
    _check(pair, program)
    if not specialists:
        return None
    if program.from_gram is not None:
        gram = measuring.gram(backend, pair)
        return Measurement(gram=gram, weights=tuple(float(weight) for weight in program.from_gram(gram)))
    if base.count == 0:
        return Measurement(*(((0.0,) * len(specialists),) * 3))
    if isinstance(program.sparsify, KeepLargest) and program.sparsify.across == "tensor":
        return measuring.thresholds(backend, [pair], program.sparsify)
    if isinstance(program.sparsify, DropRandom) and program.sparsify.rescale == "l1":
        return Measurement(factors=measuring.rescale_factors(backend, pair, program.sparsify, keys))
    return None


def measure_model(
    tensors: Sequence[tuple[Operand, Sequence[Operand]]], program: Program, *, device: str = "cpu"
) -> Measurement:
    """One threshold per specialist over all `tensors` together, for `KeepLargest(across="model")`."""
    if not isinstance(program.sparsify, KeepLargest):
        raise MergeError("only KeepLargest is measured over a whole model")
    backend = _backend(device)
    pairs = [Pair(base, tuple(specialists)) for base, specialists in tensors if base.count]
    if not pairs:
        return Measurement(*(((0.0,) * len(program.weights),) * 2))
    for pair in pairs:
        _check(pair, program)
    return measuring.thresholds(backend, pairs, program.sparsify)


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
    pair = Pair(base, tuple(specialists))
    _check(pair, program)
    found = measurement or Measurement()
    jobs = [
        Job(piece, found, tuple(keys), out[piece.start - start : piece.stop - start])
        for piece in pieces_of(pair, combining_size(program, pair, backend.piece), start, stop)
    ]
    if not jobs:
        return Health()
    batches = [[job] for job in jobs] if backend.parallel else [jobs]
    return sum(spread(backend, lambda batch: backend.combine(batch, program, out_dtype), batches), Health())


@cache
def _backend(device: str) -> Backend:
    """The compiled kernels for "cpu" where numba is installed, torch otherwise."""
    if device == "cpu" and find_spec("numba") is not None:
        from taskmerge.kernels.compiled.backend import CompiledBackend

        return CompiledBackend()
    from taskmerge.kernels.through_torch.backend import TorchBackend

    return TorchBackend(device)


def _check(pair: Pair, program: Program) -> None:
    """A caller's mistake, said before any byte is read through a wrong address."""
    if len(program.weights) != len(pair.specialists):
        raise MergeError(f"{len(program.weights)} weights for {len(pair.specialists)} specialists")
    for operand in pair.specialists:
        if operand.shape != pair.base.shape:
            raise MergeError(f"a specialist's tensor has shape {operand.shape}, the base's {pair.base.shape}")
