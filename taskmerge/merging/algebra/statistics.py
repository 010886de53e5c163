"""Norms, angles, sign conflicts and sparsification of task vectors, in one or two streaming passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from taskmerge.errors import MergeError, UsageError
from taskmerge.numbers.randomness import keep_limit, stream_key, uniform_bits

if TYPE_CHECKING:
    from taskmerge.merging.algebra.vectors import TaskVector


def norms(vector: TaskVector) -> dict[str, float]:
    """Euclidean norm of each delta, float64."""
    return {name: math.sqrt(math.fsum(float(chunk @ chunk) for chunk in vector.chunks(name))) for name in vector.shapes}


def norm(vector: TaskVector) -> float:
    """Euclidean norm of the whole task vector."""
    return math.sqrt(math.fsum(value * value for value in norms(vector).values()))


def dot(first: TaskVector, second: TaskVector) -> float:
    """Inner product over the tensors both have. Raises MergeError when they share none."""
    return math.fsum(float(one @ two) for _, one, two in _paired(first, second))


def cosine(first: TaskVector, second: TaskVector) -> float:
    """Cosine of the angle between two task vectors over the tensors both have; nan when one is zero there."""
    product = one_square = two_square = 0.0
    for _, one, two in _paired(first, second):
        product += float(one @ two)
        one_square += float(one @ one)
        two_square += float(two @ two)
    scale = math.sqrt(one_square) * math.sqrt(two_square)
    return product / scale if scale else math.nan


def sign_conflict(first: TaskVector, second: TaskVector) -> float:
    """Share of the entries non-zero in both whose signs differ (TIES, arXiv 2306.01708, section 3); nan without any."""
    both = opposed = 0
    for _, one, two in _paired(first, second):
        product = np.sign(one) * np.sign(two)
        both += int(np.count_nonzero(product))
        opposed += int(np.count_nonzero(product < 0))
    return opposed / both if both else math.nan


def _paired(first: TaskVector, second: TaskVector) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    shared = [name for name in first.shapes if name in second.shapes]
    if not shared:
        raise MergeError(f"{first.label} and {second.label} have no tensor in common")
    for name in shared:
        if first.shapes[name] != second.shapes[name]:
            raise MergeError(f"{name!r} is {first.shapes[name]} in one task vector, {second.shapes[name]} in the other")
        for one, two in zip(first.chunks(name), second.chunks(name), strict=True):
            yield name, one, two


def sparsified_reader(vector: TaskVector, density: float, how: str, seed: int) -> Callable[[str, int, int], np.ndarray]:
    """The reader of a sparsified task vector; see `TaskVector.sparsify`."""
    if not 0 <= density <= 1:
        raise UsageError(f"density {density!r} is no share of the entries", next_move="give a number from 0 to 1")
    if how == "magnitude":
        thresholds: dict[str, np.float32] = {}

        def largest(name: str, start: int, stop: int) -> np.ndarray:
            if name not in thresholds:
                thresholds[name] = _threshold(vector, name, density)
            delta = vector.read(name, start, stop)
            return np.where(np.abs(delta).astype(np.float32) >= thresholds[name], delta, 0.0)

        return largest
    if how == "random":
        if density == 0:
            raise UsageError("density 0 drops everything", next_move="give a density above 0")

        def random(name: str, start: int, stop: int) -> np.ndarray:
            bits = uniform_bits(stream_key(seed, vector.label, name), start, stop - start)
            return np.where(bits < keep_limit(density), vector.read(name, start, stop) / density, 0.0)

        return random
    raise UsageError(f"unknown way to sparsify {how!r}", next_move='"magnitude" (TIES) or "random" (DARE)')


def _threshold(vector: TaskVector, name: str, density: float) -> np.float32:
    """The least magnitude kept: the max(1, floor(density * n))-th largest, compared as float32."""
    count = vector.count(name)
    if count == 0:
        return np.float32(0)
    return kth_largest(lambda: vector.chunks(name), max(1, math.floor(density * count)))


def kth_largest(chunks: Callable[[], Iterable[np.ndarray]], rank: int) -> np.float32:
    """The rank-th largest magnitude (from 1) of all entries as float32, exact, in two passes over `chunks()`.

    A non-negative float32 orders like its bits: the first pass finds their high half, the second the low half.
    """

    def bits(chunk: np.ndarray) -> np.ndarray:
        return np.abs(chunk).astype(np.float32).view(np.uint32)

    high, above = _from_top((bits(chunk) >> 16 for chunk in chunks()), rank)
    same_high = ((found & 0xFFFF)[found >> 16 == high] for found in map(bits, chunks()))
    low, _ = _from_top(same_high, rank - above)
    return np.array([high << 16 | low], np.uint32).view(np.float32)[0]


def _from_top(values: Iterable[np.ndarray], rank: int) -> tuple[int, int]:
    """The rank-th largest (from 1) of 16-bit values, and how many are larger."""
    counts = sum((np.bincount(part, minlength=1 << 16) for part in values), np.zeros(1 << 16, np.int64))
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return (1 << 16) - 1 - place, int(from_top[place] - counts[(1 << 16) - 1 - place])
