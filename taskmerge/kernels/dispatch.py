"""The kernels' entry points: measure, then combine, on the compiled CPU kernels or on the reference."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from taskmerge.errors import MergeError
from taskmerge.kernels.measuring import find_bounds, gram_matrix, mass_factors
from taskmerge.kernels.operands import Health, Measurement, Operand
from taskmerge.kernels.pairs import Backend, Job, Pair, combining_size, pieces_of, spread
from taskmerge.kernels.program import KeepLargest, Program, by_mass
from taskmerge.kernels.rounds import ModelSearch, check_shapes
from taskmerge.kernels.threads import map_on_threads

if TYPE_CHECKING:
    from torch import Tensor


_importing = threading.Lock()  # modules imported by several threads at once can wait for one another for ever


def measure(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    keys: Sequence[int],
    *,
    out_dtype: str | None = None,
    device: str = "cpu",
    thresholds: Measurement | None = None,
) -> Measurement | None:
    """Measure the properties of one tensor that the program needs before combining it.

    Args:
        base, specialists: one tensor of the base and of each specialist, of one shape.
        program: what to merge; one weight per specialist.
        keys: one 64-bit key per specialist (`randomness.stream_key`); used by random drops only.
        out_dtype: what will be combined into, if known; sums of magnitudes for "F64" are exact.
        device: "cpu", or a torch device.
        thresholds: for specialists that keep the largest entries of the whole model (`KeepLargest(across="model")`):
            `lowest` and `highest` of each, from `measure_model`. They are passed on; the tensor's own are measured.

    Returns:
        None when the program needs nothing. Without `thresholds`, a program with across="model" is measured but for its
        thresholds, which `combine` then refuses.
    """
    backend = _backend(device)
    pair = Pair(base, tuple(specialists))
    _check(pair, program, keys)
    if not specialists:
        return None
    lowest = highest = gram = None
    factors: tuple[float | Fraction, ...] | None = None
    if any(isinstance(way, KeepLargest) for way in program.ways) and (thresholds or not program.across_model):
        lowest, highest = _bounds(backend, pair, program, thresholds)
    if any(by_mass(way) for way in program.ways):
        if out_dtype == "F64":
            from taskmerge.kernels.exact import rescale_factors  # few need it, all would wait for it

            factors = rescale_factors(pair, program, keys)
        else:
            factors = mass_factors(backend, pair, program, keys)
    if program.from_gram is not None:
        gram = gram_matrix(backend, pair, program)
    if lowest is factors is gram is None:
        return None
    return Measurement(lowest=lowest, highest=highest, factors=factors, gram=gram).weighed(program)


def measure_model(
    tensors: Sequence[tuple[Operand, Sequence[Operand | None]]],
    keeps: Sequence[Sequence[KeepLargest]],
    *,
    device: str = "cpu",
) -> list[dict[KeepLargest, tuple[float, float]]]:
    """Compute the magnitudes between which specialists keep entries, ranked over all `tensors` together.

    Args:
        tensors: a row per tensor of the model: the base's, and a column per specialist, None where it has none.
        keeps: per specialist the distinct ways in which it is trimmed anywhere in the model.
        device: "cpu", or a torch device.

    Returns:
        Per specialist, for each of its ways, the lowest and the highest magnitude kept (float32 values). Give them to
        `measure` or `combine` as the `lowest` and `highest` of a `Measurement`.

    Raises:
        MergeError: a row has another number of columns than `keeps`, or a tensor another shape than the base's.
    """
    return model_search(tensors, keeps, device=device).find()


def model_search(
    tensors: Sequence[tuple[Operand, Sequence[Operand | None]]],
    keeps: Sequence[Sequence[KeepLargest]],
    *,
    device: str = "cpu",
) -> ModelSearch:
    """Prepare `measure_model` as rounds that several processes can share; nothing is read yet."""
    return ModelSearch(_backend(device), tensors, keeps)


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
    """Write entries [start, stop) of the merged tensor into `out`, each rounded once to nearest even.

    The bits do not depend on how [0, count) is divided into calls, on threads, or on the device. Arithmetic is float64;
    for "F64" it is wider (`kernels.exact`), on the CPU for every device.

    Args:
        base, specialists: one tensor of the base and of each specialist, of one shape.
        program: the merge; one weight per specialist.
        measurement: the result of `measure` for this tensor.
        keys: one 64-bit key per specialist (`randomness.stream_key`); used by random drops only.
        start, stop: range of entries of the flattened tensor.
        out: writable, 1-D, `stop - start` entries of the storage dtype of `out_dtype` ("BF16" as uint16 bits).
        out_dtype: safetensors name of the output format.
        device: "cpu", or a torch device.

    Returns:
        The numbers of entries that are not finite.

    Raises:
        MergeError: if the program needs more than the measurement contains.
    """
    backend = _backend(device)
    pair = Pair(base, tuple(specialists))
    _check(pair, program, keys)
    found = measurement or Measurement()
    jobs = [
        Job(piece, found, tuple(keys), out[piece.start - start : piece.stop - start])
        for piece in pieces_of(pair, combining_size(program, pair, backend.piece_size), start, stop)
    ]
    if not jobs:
        return Health()
    _check_found(program, found)
    if out_dtype == "F64":
        from taskmerge.kernels.exact import combine as combine_exactly

        return sum(map_on_threads(lambda job: combine_exactly(job, program), jobs), Health())
    batches = [[job] for job in jobs] if backend.parallel else [jobs]
    return sum(spread(backend, lambda batch: backend.combine(batch, program, out_dtype), batches), Health())


def interpret(
    program: Program,
    deltas: Tensor,
    *,
    random_bits: Tensor | None = None,
    thresholds: Measurement | None = None,
    weights: Sequence[float | Fraction] | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """Run a Program on whole task vectors, in float64: scale * consensus(sparsify(d_i), weights).

    What the Program needs to be measured is measured here: thresholds by sorting, the Gram matrix, sums of magnitudes.
    Of a weighted sum of models (base "weighted") it is what the sum adds to the base.

    Args:
        program: what to merge; one weight per specialist.
        deltas: (specialists, *shape), float64, on any device.
        random_bits: (specialists, *shape), int64 in [0, 2^32): for random drops.
        thresholds: `lowest` and `highest` for specialists that keep the largest entries of the whole model; without
            them the tensor is taken for the whole model.
        weights: those that hold, in place of the program's own or of what it would find from a Gram matrix.
        base: (*shape), float64: needed for weights from the Gram matrix of the models, and for their weighted sum.

    Returns:
        (*shape), float64.

    Raises:
        MergeError: an input that the program needs is missing or has another shape or dtype.
    """
    from taskmerge.kernels.reference import whole  # imports torch

    return whole.interpret(program, deltas, random_bits, thresholds, weights, base)


def _bounds(
    backend: Backend, pair: Pair, program: Program, given: Measurement | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """lowest, highest: measured over the tensor, or given where they are the model's."""
    lowest, highest = [0.0] * len(program.ways), [math.inf] * len(program.ways)
    own: dict[int, KeepLargest] = {}
    for i, way in enumerate(program.ways):
        if not isinstance(way, KeepLargest):
            continue
        if way.across == "tensor":
            own[i] = way
        elif given is not None and given.lowest is not None and given.highest is not None:
            lowest[i], highest[i] = given.lowest[i], given.highest[i]
    if own:
        part = pair._replace(specialists=tuple(pair.specialists[i] for i in own))
        rows = find_bounds(backend, [part] if part.base.count else [], [[way] for way in own.values()])
        for (i, way), row in zip(own.items(), rows, strict=True):
            lowest[i], highest[i] = row[way]
    return tuple(lowest), tuple(highest)


def _backend(device: str) -> Backend:
    """The compiled kernels for "cpu" where numba is installed, the reference otherwise."""
    with _importing:
        return _made_backend(device)


@cache
def _made_backend(device: str) -> Backend:
    if device == "cpu" and find_spec("numba") is not None:
        from taskmerge.kernels.compiled.backend import CompiledBackend

        return CompiledBackend()
    from taskmerge.kernels.reference.backend import ReferenceBackend

    return ReferenceBackend(device)


def _check(pair: Pair, program: Program, keys: Sequence[int]) -> None:
    """A caller's mistake, said before any byte is read through a wrong address."""
    count = len(pair.specialists)
    if len(program.weights) != count:
        raise MergeError(f"{len(program.weights)} weights for {count} specialists")
    if len(program.ways) != count:
        raise MergeError(f"{len(program.ways)} ways to sparsify for {count} specialists")
    if program.random and len(keys) != count:
        raise MergeError(f"{len(keys)} random keys for {count} specialists")
    check_shapes(pair)


def _check_found(program: Program, found: Measurement) -> None:
    """Whether everything was measured that the program needs."""
    if not program.weights:
        return
    if any(isinstance(way, KeepLargest) for way in program.ways) and (found.lowest is None or found.highest is None):
        how = "measure_model, over the complete model" if program.across_model else "measure"
        raise MergeError(f"the thresholds for keeping entries are not measured (kernels.{how})")
    if any(by_mass(way) for way in program.ways) and found.factors is None:
        raise MergeError("the sums of magnitudes to be kept are not measured (kernels.measure)")
    if program.from_gram is not None and found.weights is None:
        raise MergeError("the weights need a Gram matrix that is not measured (kernels.measure)")
