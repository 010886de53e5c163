"""Choice of the entries that a consensus takes.

It is decided in float64, in the order of operations of the kernels for narrow formats, so that the elected entries do
not depend on the output format.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskmerge.kernels.exact.terms import Terms
from taskmerge.kernels.program import Active, Elect, Largest

Rows = Sequence[np.ndarray]


def agreement(deltas: Rows, terms: Terms) -> list[np.ndarray]:
    """Return the entries that take part, bool (entries,) each. deltas: survivors, float64 (entries,), 0 elsewhere."""
    how = terms.consensus
    weights = [float(weight) for weight in terms.weights]
    if isinstance(how, Elect):
        return _elected(deltas, weights, how)
    if isinstance(how, Largest):
        return _largest(deltas, weights)
    if isinstance(how, Active):
        return _active(deltas, how)
    return [np.ones(delta.shape, bool) for delta in deltas]


def _elected(deltas: Rows, weights: Sequence[float], how: Elect) -> list[np.ndarray]:
    vote = np.zeros(deltas[0].shape)
    for delta, weight in zip(deltas, weights, strict=True):
        vote = vote + {"weighted_mass": weight * delta, "mass": delta, "count": np.sign(delta)}[how.elect]
    turned = [-delta if how.elect == "weighted_mass" and weight < 0.0 else delta
              for delta, weight in zip(deltas, weights, strict=True)]  # fmt: skip
    return [((delta > 0.0) & (vote >= 0.0)) | ((delta < 0.0) & (vote < 0.0)) for delta in turned]


def _largest(deltas: Rows, weights: Sequence[float]) -> list[np.ndarray]:
    best, winner = np.zeros(deltas[0].shape), np.zeros(deltas[0].shape, np.int64)
    for i, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        size = abs(weight * delta)
        winner = np.where(size > best, i, winner)
        best = np.where(size > best, size, best)
    return [winner == i for i in range(len(deltas))]


def _active(deltas: Rows, how: Active) -> list[np.ndarray]:
    votes = np.zeros(deltas[0].shape, np.int64)
    for i, delta in enumerate(deltas):
        others = np.zeros(delta.shape)
        for j, other in enumerate(deltas):
            if j != i:
                others = others + other
        votes += abs(delta) > how.theta * abs(others)
    return [votes >= how.minimum] * len(deltas)
