"""Bootstrap intervals of a mean, over items or over groups of items that belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from taskmerge.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval. count: items behind it; confidence: e.g. 0.95."""

    estimate: float
    low: float
    high: float
    count: int
    confidence: float = 0.95

    def excludes(self, value: float) -> bool:
        """Return whether `value` is outside [low, high]."""
        return value < self.low or value > self.high

    def as_dict(self) -> dict[str, float | int]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: np.ndarray,
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` (n,) with a percentile bootstrap interval (Efron 1979).

    groups: one label per value. When given, whole groups are resampled (the cluster bootstrap), because recordings of
    one word or captions of one picture do not fail independently. A single value or group has no spread to measure:
    its interval is [estimate, estimate]. Raises UsageError when there are no values.
    """
    column = {"": np.asarray(values, dtype=np.float64)}
    return mean_intervals(column, groups=groups, confidence=confidence, resamples=resamples, seed=seed)[""]


def mean_intervals(
    values: Mapping[str, np.ndarray],
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute `mean_interval` of several statistics of the same items, on the same draws.

    values: name -> (n,), of the same items in the same order.
    """
    columns = np.column_stack([np.asarray(row, dtype=np.float64) for row in values.values()])
    if columns.ndim != 2 or not len(columns) or any(np.ndim(row) != 1 for row in values.values()):
        shape = np.shape(next(iter(values.values())))
        raise UsageError(f"an interval needs a non-empty 1-D array of values, got shape {shape}")
    means = _resampled_means(*_grouped(columns, groups), resamples, np.random.default_rng(seed))
    tail = 100 * (1 - confidence) / 2
    lows, highs = np.percentile(means, [tail, 100 - tail], axis=0)
    estimates = columns.mean(axis=0)
    return {
        name: Interval(float(estimates[at]), float(lows[at]), float(highs[at]), len(columns), confidence)
        for at, name in enumerate(values)
    }


def resampled_means(
    values: np.ndarray, *, groups: Sequence[object] | None = None, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Means of draws with replacement, for statistics that are made of several means: (resamples,) float64.

    values: (n,).  groups: as for `mean_interval`.  Two models' values of the same items get the same draws, so that
    what is made of their differences is paired.
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    return _resampled_means(*_grouped(column, groups), resamples, np.random.default_rng(seed))[:, 0]


def percentile_interval(estimate: float, draws: np.ndarray, count: int, confidence: float = 0.95) -> Interval:
    """Compute the interval of a statistic from its values on resampled items. draws: (resamples,); count: of items."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high), count, confidence)


def _grouped(columns: np.ndarray, groups: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """(sums (groups, statistics), counts (groups,)) of columns (n, statistics)."""
    if groups is None:
        return columns, np.ones(len(columns))
    if len(groups) != len(columns):
        raise UsageError(f"{len(columns)} values but {len(groups)} group labels")
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    counts = np.bincount(index).astype(np.float64)
    return np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1), counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, statistics): means of draws of the groups with replacement, in blocks of bounded memory.

    sums: (groups, statistics), counts: (groups,).
    """
    size = len(sums)
    block = max(1, min(resamples, 4_000_000 // size))
    means = []
    for start in range(0, resamples, block):
        times = rng.multinomial(size, np.full(size, 1 / size), size=min(block, resamples - start)).astype(np.float64)
        means.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(means)
