"""Findings of a complete search: the best point, the front, flat regions around the optimum, the best point's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from taskmerge.metrics.bootstrap import Interval
from taskmerge.metrics.correlation import spearman
from taskmerge.recipes.axes import Axis
from taskmerge.recipes.scores import AGREEMENT, RETRIEVAL, Objective
from taskmerge.searching.points import Point


@dataclass(frozen=True)
class CurvePoint:
    """A value on an axis, all else as in the best trial. difference: its objective minus the best's, paired."""

    value: float | str
    result: float
    interval: Interval
    difference: Interval


@dataclass(frozen=True)
class Curve:
    """One axis through the best trial, in one objective.

    through: the best's value. count: pairs behind it. objective: as written, where there are several; else "".
    """

    axis: str
    through: float | str
    points: tuple[CurvePoint, ...]
    count: int
    objective: str = ""

    @property
    def flat(self) -> tuple[float, float] | None:
        """The values around the best's that cannot be told from it; None where that is the best's alone."""
        rows = [point for point in self.points if isinstance(point.value, int | float)]
        rows.sort(key=lambda point: float(point.value))
        here = next((at for at, point in enumerate(rows) if point.value == self.through), None)
        if here is None:
            return None
        first = last = here
        while first > 0 and _same(rows[first - 1]):
            first -= 1
        while last + 1 < len(rows) and _same(rows[last + 1]):
            last += 1
        return None if first == last else (float(rows[first].value), float(rows[last].value))

    def sentence(self) -> str:
        """Return the finding about the axis as a sentence."""
        flat, head = self.flat, f"{self.objective}, {self.axis}" if self.objective else self.axis
        if flat is None:
            words = [str(point.value) for point in self.points if point.value != self.through and _same(point)]
            if words:
                alike = ", ".join([str(self.through), *words])
                return f"{head}: {alike} cannot be distinguished with {self.count} pairs"
            return f"{head}: {_shown(self.through)} is clearly best, measured with {self.count} pairs"
        return f"{head}: {flat[0]:.3g} to {flat[1]:.3g} cannot be distinguished with {self.count} pairs"


def _same(point: CurvePoint) -> bool:
    return not point.difference.excludes(0.0)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


@dataclass(frozen=True)
class Confirmed:
    """A point on pairs that the search never saw.

    result: its objective there.  gain: over the recipe's own weights there, paired.  dev_gain: the same on the pairs
    that were searched on.  scores: means by name.  floors: floor -> what is left above it, paired.
    """

    point: str
    result: Interval
    gain: Interval
    dev_gain: Interval
    scores: Mapping[str, float]
    floors: Mapping[str, Interval] = field(default_factory=dict)

    def sentence(self) -> str:
        """Return whether the gain is confirmed on other pairs, as a sentence."""
        kept = f"{self.dev_gain.estimate:+.4f} on the pairs used for the search, {self.gain.estimate:+.4f} on new pairs"
        said = f"{self.point} against the recipe's own weights: {kept} [{self.gain.low:+.4f}, {self.gain.high:+.4f}]"
        lost = self.dev_gain.estimate - self.gain.estimate
        if self.gain.low > 0:
            verdict = "the gain is confirmed"
        elif self.gain.high < 0:
            verdict = "it is worse than your own weights"
        else:
            verdict = "these pairs cannot show whether there is a gain"
        if self.dev_gain.estimate > 0 and lost > 0.5 * self.dev_gain.estimate:
            share = f"{lost / self.dev_gain.estimate:.0%}" if self.gain.estimate > 0 else "all"
            verdict += f"; {share} of the gain exists only on the pairs used for the search: this part is overfitting"
        return f"{said}: {verdict}"

    def floor_sentences(self) -> list[str]:
        """Return a sentence for each floor that is broken on these pairs, with its significance."""
        said = []
        for name, left in self.floors.items():
            if left.estimate < 0:
                sure = "beyond its interval" if left.high < 0 else "within its interval"
                said.append(f"floor {name}: short by {-left.estimate:.4f} on new pairs, {sure}")
        return said


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of a score that needs no pairs with one that does. count: points behind it."""

    agreement: str
    real: str
    value: float
    count: int

    def sentence(self) -> str:
        """Return the rank correlation as a sentence."""
        said = f"{self.agreement} ranks {self.count} points like {self.real}"
        return f"{said} with rank correlation {self.value:.2f}"


def best_of(points: Sequence[Point]) -> Point | None:
    """Return the point with the largest mean of its objectives among those that meet all floors; ties: the first."""
    meeting = [point for point in points if point.meets_floors]
    return max(meeting, key=lambda point: float(np.mean(point.results)), default=None)


def correlations(points: Sequence[Point], objective: Objective) -> list[Correlation]:
    """Compute how well agreement of neighbours would have ordered the points, by set and for the objective."""
    found = []
    scored = [point for point in points if point.state == "scored"]
    for name in dict.fromkeys(name for point in scored for name in point.scores if name.startswith(f"{AGREEMENT}.")):
        real = f"{RETRIEVAL}.{name.removeprefix(AGREEMENT + '.')}.mrr"
        rows = [point for point in scored if name in point.scores and real in point.scores]
        found.append(_correlation(name, real, [row.scores[name] for row in rows], [row.scores[real] for row in rows]))
    whole = [point for point in scored if any(name.startswith(AGREEMENT) for name in point.scores)]
    if len(found) > 1 and not any(pattern.startswith(AGREEMENT) for pattern in objective.patterns):
        means = [
            float(np.mean([value for name, value in point.scores.items() if name.startswith(AGREEMENT)]))
            for point in whole
        ]
        found.append(_correlation(f"mean({AGREEMENT}.*)", objective.text, means, [row.results[0] for row in whole]))
    return [one for one in found if one.count >= 5 and np.isfinite(one.value)]


def _correlation(agreement: str, real: str, one: Sequence[float], two: Sequence[float]) -> Correlation:
    return Correlation(agreement, real, spearman(np.array(one), np.array(two)), len(one))


def cells(
    points: Sequence[Point], across: Axis, down: Axis, objective: int, count: int = 8
) -> tuple[list[float], list[float], list[list[float | None]]]:
    """Means of the trials in a grid over two axes: (edges across, edges down, rows of means from the bottom up)."""
    rows = [point for point in points if point.state == "scored" and {across.name, down.name} <= point.values.keys()]
    xs, ys = (np.array([float(row.values[axis.name]) for row in rows]) for axis in (across, down))
    results = np.array([row.results[objective] for row in rows])
    edges = [np.linspace(*axis.bounds, count + 1) for axis in (across, down) if axis.bounds is not None]
    table: list[list[float | None]] = []
    for bottom in range(count):
        row: list[float | None] = []
        for left in range(count):
            inside = _within(xs, edges[0], left) & _within(ys, edges[1], bottom)
            row.append(float(results[inside].mean()) if inside.any() else None)
        table.append(row)
    return edges[0].tolist(), edges[1].tolist(), table


def _within(values: np.ndarray, edges: np.ndarray, place: int) -> np.ndarray:
    last = place == len(edges) - 2
    return (values >= edges[place]) & ((values <= edges[place + 1]) if last else (values < edges[place + 1]))
