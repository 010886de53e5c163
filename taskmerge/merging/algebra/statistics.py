"""Norms, angles and sign conflicts of task vectors, in one streaming pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from taskmerge.errors import MergeError


class Deltas(Protocol):
    """The interface of a task vector that statistics use. chunks: a flattened delta in float64 parts."""

    @property
    def label(self) -> str:
        """The name in messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A mapping from tensor name to the shape of its delta."""

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """Yield the flattened delta in float64 parts."""

    def aligned_with(self, *others: Any) -> Deltas:
        """Return the same task vector, with the token rows that it and the others have together."""


def norms(vector: Deltas) -> dict[str, float]:
    """Euclidean norm of each delta, float64."""
    return {name: math.sqrt(math.fsum(float(chunk @ chunk) for chunk in vector.chunks(name))) for name in vector.shapes}


def norm(vector: Deltas) -> float:
    """Euclidean norm of the whole task vector."""
    return math.sqrt(math.fsum(value * value for value in norms(vector).values()))


def dot(first: Deltas, second: Deltas) -> float:
    """Inner product over the tensors both have. Raises MergeError when they share none."""
    return math.fsum(float(one @ two) for _, one, two in _paired(first, second))


def cosine(first: Deltas, second: Deltas) -> float:
    """Cosine of the angle between two task vectors over the tensors both have; nan when one is zero there."""
    product = one_square = two_square = 0.0
    for _, one, two in _paired(first, second):
        product += float(one @ two)
        one_square += float(one @ one)
        two_square += float(two @ two)
    scale = math.sqrt(one_square) * math.sqrt(two_square)
    return product / scale if scale else math.nan


def sign_conflict(first: Deltas, second: Deltas) -> float:
    """Share of the entries non-zero in both whose signs differ (TIES, arXiv 2306.01708, section 3); nan without any."""
    both = opposed = 0
    for _, one, two in _paired(first, second):
        product = np.sign(one) * np.sign(two)
        both += int(np.count_nonzero(product))
        opposed += int(np.count_nonzero(product < 0))
    return opposed / both if both else math.nan


def _paired(first: Deltas, second: Deltas) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    shared = [name for name in first.shapes if name in second.shapes]
    if not shared:
        raise MergeError(
            f"{first.label} and {second.label} have no tensor in common",
            next_move="compare task vectors of the same base",
        )
    if any(first.shapes[name] != second.shapes[name] for name in shared):  # vocabularies that differ
        first, second = first.aligned_with(second), second.aligned_with(first)
    for name in shared:
        for one, two in zip(first.chunks(name), second.chunks(name), strict=True):
            yield name, one, two
