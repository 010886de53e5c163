"""Rank correlation: whether two scores put the same things in the same order."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 1, equal values sharing their mean rank: (n,) -> (n,) float64."""
    values = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of (n,) and (n,); NaN below three values, or where one of the two never changes."""
    if len(first) < 3:
        return float("nan")
    one, two = ranks(first), ranks(second)
    one, two = one - one.mean(), two - two.mean()
    size = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / size if size else float("nan")
