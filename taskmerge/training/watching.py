"""Scores that a stage watches during training, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

METRIC = "mrr"
"""The mean over modalities of the mean reciprocal rank, finer than recall@1 on small sets."""
DECIDES = "decides"
"""The score that decides between evaluations: `METRIC`, minus one per modality below its floor."""


@dataclass(frozen=True)
class Watch:
    """The conditions on scores in addition to the mean.

    floors: whether a checkpoint is rejected if a modality is below its initial score: if a 95 % bootstrap interval
    of its change, pair by pair, is below zero.  may_fall: modalities without a floor.  targets: modality -> target for
    the mean reciprocal rank, by default 1.
    """

    floors: bool = False
    may_fall: Sequence[str] = ()
    targets: Mapping[str, float] | None = None
