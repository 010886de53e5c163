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
from taskmerge.kernels.threads import map_on_threads


def measure(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    keys: Sequence[int],
    *,
    out_dtype: str | None = None,
    device: str = "cpu",
) -> Measurement | None:
    """The passes over one tensor that must come before combining it; None when the program needs none.

    keys: one 64-bit key per specialist (`randomness.stream_key`); used by random drops only.  out_dtype: what will be
    combined into, if known; sums for "F64" are exact.  device: "cpu", or a torch device.  A program with
    `KeepLargest(across="model")` is measured by `measure_model` instead.
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
    how = program.sparsify_of(0)
    if isinstance(how, KeepLargest) and how.across == "tensor":
        return measuring.thresholds(backend, [pair], _keeps(program))
    if isinstance(how, DropRandom) and how.rescale == "l1":
        if out_dtype == "F64" or program.each:
            from taskmerge.kernels import exact  # few need it, all would wait for it

            return Measurement(factors=exact.rescale_factors(pair, program, keys))
        return Measurement(factors=measuring.rescale_factors(backend, pair, how, keys))
    return None


def measure_model(
    tensors: Sequence[tuple[Operand, Sequence[Operand]]], program: Program, *, device: str = "cpu"
) -> Measurement:
    """One threshold per specialist over all `tensors` together, for `KeepLargest(across="model")`."""
    if not isinstance(program.sparsify_of(0), KeepLargest):
        raise MergeError("only KeepLargest is measured over a whole model")
    backend = _backend(device)
    pairs = [Pair(base, tuple(specialists)) for base, specialists in tensors if base.count]
    if not pairs:
        return Measurement(*(((0.0,) * len(program.weights),) * 2))
    for pair in pairs:
        _check(pair, program)
    return measuring.thresholds(backend, pairs, _keeps(program))


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
    not depend on how [0, count) is cut into calls, on threads, or on the device.  Arithmetic is float64; for "F64" it
    is wider (`kernels.exact`), on the CPU whatever the device; that alone takes a program for `each` specialist.
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
    if out_dtype == "F64":
        from taskmerge.kernels import exact

        return sum(map_on_threads(lambda job: exact.combine(job, program), jobs), Health())
    if program.each:
        raise MergeError(f"a way to sparsify for each specialist is streamed into F64 only, not {out_dtype}")
    batches = [[job] for job in jobs] if backend.parallel else [jobs]
    return sum(spread(backend, lambda batch: backend.combine(batch, program, out_dtype), batches), Health())


def _keeps(program: Program) -> list[KeepLargest]:
    """What is kept of each specialist."""
    hows = [program.sparsify_of(i) for i in range(len(program.weights))]
    return [how for how in hows if isinstance(how, KeepLargest)]


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
