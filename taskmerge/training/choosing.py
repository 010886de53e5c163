"""Choice of the method of recovery that is kept: from numbers to a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskmerge.metrics.bootstrap import Interval, mean_interval

LEAVE = "leave it"
SURE, LIKELY = 0.95, 0.90
"""Confidence of an interval above zero that is enough, and of one that is enough when the gain is `CLEAR`."""
CLEAR = 0.05
"""Of the mean reciprocal rank."""
Ranks = Mapping[str, np.ndarray]
"""Reciprocal rank of every pair that judges, by set: (pairs,)."""


@dataclass(frozen=True)
class Gain:
    """The gain of a method over the unchanged model, pair by pair. worse: sets that it significantly worsens."""

    sure: Interval
    likely: Interval
    worse: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True if the gain exceeds the uncertainty of the held-out pairs, and no set becomes worse."""
        if self.worse:
            return False
        return self.sure.low > 0 or (self.sure.estimate >= CLEAR and self.likely.low > 0)


def gain_of(own: Ranks, left: Ranks, labels: Mapping[str, Sequence[object]]) -> Gain:
    """Compare two ways on the same pairs, every set with the same weight.

    Args:
        own, left: of the way, and of the model as it is.
        labels: which text each pair has: pairs of one text are resampled together.
    """
    size = sum(len(ranks) for ranks in left.values())
    changes = {name: own[name] - ranks for name, ranks in left.items()}
    values = np.concatenate([change * (size / (len(left) * len(change))) for change in changes.values()])
    groups = [(name, label) for name in changes for label in labels[name]]
    worse = [
        name for name, change in changes.items() if mean_interval(change, groups=labels[name], confidence=SURE).high < 0
    ]
    sure, likely = (mean_interval(values, groups=groups, confidence=confidence) for confidence in (SURE, LIKELY))
    return Gain(sure, likely, tuple(worse))


def choose(gains: Mapping[str, Gain]) -> tuple[str, str]:
    """Return the method to keep, and the reason: the largest gain among those that hold, else "leave it"."""
    held = {name: gain for name, gain in gains.items() if gain.holds}
    if held:
        name = max(held, key=lambda one: held[one].sure.estimate)
        return name, f"it gains {held[name].sure} in MRR on held-out pairs"
    if not gains:
        return LEAVE, "nothing else was tried"
    best = max(gains, key=lambda one: gains[one].sure.estimate)
    found = gains[best]
    if found.worse:
        return LEAVE, f"no method is clearly better; the best, {best}, lowers {', '.join(found.worse)}"
    return LEAVE, f"no method is clearly better; the best, {best}, gains {found.sure}"
