"""What a stage watches while it trains, and what its scores are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

METRIC = "mrr"
"""The mean over modalities of the mean reciprocal rank, finer than recall@1 on small sets."""
DECIDES = "decides"
"""What decides between looks: `METRIC`, less one for every modality that lies below its floor."""


@dataclass(frozen=True)
class Watch:
    """What is watched besides the mean.

    floors: whether a look counts against itself when a modality lies below what it had: when a 95 % bootstrap interval
    of its change, pair by pair, lies below zero.  may_fall: modalities that have no floor.  targets: modality -> mean
    reciprocal rank that it is to reach, 1 where it is not said.
    """

    floors: bool = False
    may_fall: Sequence[str] = ()
    targets: Mapping[str, float] | None = None
