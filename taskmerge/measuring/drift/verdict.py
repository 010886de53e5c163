"""From numbers to plain words: drifted, not drifted, cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from taskmerge.measuring.drift.null_band import Band
from taskmerge.metrics.bootstrap import Interval, mean_interval
from taskmerge.words.statistics import LEADING, statistic

Outcome = Literal["drifted", "not drifted", "cannot tell"]

FEWEST_PROBES = 30
DEFAULT_LIMIT = 0.05
_LIKE_THESE = (
    "This applies to items like these probes: if their voices, places or sources are in the training data, "
    "other items may lose more."
)
_NOT_CHECKED = (
    "The projector was not checked: no output of a projector was recorded, so the projector itself may have "
    "changed too, not only the backbone."
)


@dataclass(frozen=True)
class Verdict:
    """The judgement on one modality.

    outcome: see `judge`.  beyond_limit: drifted, and the recall lost is more than the limit.  loss: R@1 of the
    specialist minus that of the fused model.  limit: the recall drop that matters.  probes: how many there were.
    probes_needed: a rough number that would settle it, when it is open.  sentences: the same in words, first the
    outcome.
    """

    outcome: Outcome
    beyond_limit: bool
    loss: Interval
    limit: float
    probes: int
    probes_needed: int | None
    sentences: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(self.sentences)


def judge(
    changes: Mapping[str, np.ndarray],
    bands: Mapping[str, Band],
    *,
    texts: Sequence[object],
    specialist_recall: float,
    control_identical: bool | None = True,
    limit: float = DEFAULT_LIMIT,
) -> Verdict:
    """Judge one fused model against its specialist.

    changes: see `probe_changes`; texts: one per probe, itself or its number: probes of one text are resampled together.
    *drifted*: a leading statistic is outside its null band, the 95 % bootstrap interval of the R@1 loss excludes
    zero, and the loss exceeds the null band's. *not drifted*: nothing left its band, or the complete interval is at or
    below `limit`; and there are at least 3 / limit probes, since n probes without a single loss still allow 3 / n (the
    rule of three). *cannot tell*: all else, fewer than 30 probes, and a specialist that finds too little to have
    anything to lose.  control_identical: whether the projector put out the same in both models; None: not checked.
    """
    loss = mean_interval(changes["recall_at_1_loss"], groups=texts)
    moved = [name for name in LEADING if bands[name].outside(float(changes[name].mean()))]
    enough = max(FEWEST_PROBES, math.ceil(3 / limit))
    outcome: Outcome = "cannot tell"
    needed: int | None = None
    if loss.count < FEWEST_PROBES:
        needed = enough
        why = f"with {loss.count} probes a loss below {3 / max(loss.count, 1):.0%} cannot be detected."
    elif specialist_recall <= limit:
        why = f"the specialist itself retrieves only {specialist_recall:.0%} of these probes: there is nothing to lose."
    elif moved and loss.low > 0 and bands["recall_at_1_loss"].outside(loss.estimate):
        outcome, why = "drifted", _moved(moved, changes, bands, control_identical)
    elif loss.count >= enough and (not moved or loss.high <= limit):
        outcome = "not drifted"
        why = _within(moved, loss, limit)
    else:
        needed = _probes_needed(loss, limit, enough)
        why = f"the loss may be anywhere between {_points(loss.low)} and {_points(loss.high)} points."
        if loss.high <= 0:
            why = (
                f"no loss was observed, but with {loss.count} probes a loss of up to {_points(3 / loss.count)} "
                "points is still possible."
            )
    return Verdict(
        outcome,
        outcome == "drifted" and loss.estimate > limit,
        loss,
        limit,
        loss.count,
        needed,
        _sentences(outcome, why, loss, specialist_recall, needed, control_identical),
    )


def _sentences(
    outcome: Outcome, why: str, loss: Interval, recall: float, needed: int | None, identical: bool | None
) -> tuple[str, ...]:
    lost = (
        f"R@1 went from {recall:.1%} to {recall - loss.estimate:.1%} on {loss.count} probes, "
        f"a loss of {_points(loss.estimate)} points (95 % interval {_points(loss.low)} to {_points(loss.high)})."
    )
    lines = [f"{outcome[0].upper()}{outcome[1:]}: {why}", lost]
    if needed is not None:
        lines.append(f"About {needed} probes would be enough to decide.")
    if outcome == "not drifted":
        lines.append(_LIKE_THESE)
    if identical is None:
        lines.append(_NOT_CHECKED)
    elif not identical:
        lines.append(
            "The encoder or the projector itself differs between the two models, so more than the backbone "
            "was changed: this is not (only) projector drift."
        )
    return tuple(lines)


def _moved(
    moved: Sequence[str], changes: Mapping[str, np.ndarray], bands: Mapping[str, Band], identical: bool | None
) -> str:
    shown = []
    for name in moved:
        row = statistic(name)
        value, limit = float(changes[name].mean()), bands[name].limit
        shown.append(f"{row.title} {row.shown(value)} (null band {row.shown(limit)})")
    who = "the backbone processes the projected tokens differently" if identical else "the embeddings moved"
    return f"{', '.join(shown)}: {who}, and retrieval suffers."


def _within(moved: Sequence[str], loss: Interval, limit: float) -> str:
    if not moved:
        return "nothing left its null band."
    return (
        f"embeddings moved, but the loss is at most {_points(loss.high)} points, within the limit of {_points(limit)}."
    )


def _probes_needed(loss: Interval, limit: float, enough: int) -> int:
    """Intervals shrink with √n: the n at which this one would, with some room, clear zero or the limit, whichever is
    farther away.
    """
    half = (loss.high - loss.low) / 2
    room = 0.7 * max(abs(loss.estimate), abs(limit - loss.estimate), limit / 2)
    return max(enough, math.ceil(loss.count * max(1.25, (half / room) ** 2)))


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
