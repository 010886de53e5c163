"""STATISTICS: one row a statistic. What it is called, how its values are written, which side of it is bad.

Verdicts, null bands, tables, charts and pages ask this table; a new statistic is a new row (and the code that
measures it). In JSON a statistic is called by its key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["low", "high", "neither"]


@dataclass(frozen=True)
class Statistic:
    """One statistic of drift.

    key: its name in results and JSON.  title: its name for people.  worse: the side that is harmful, which is also
    the side that a null band is limited on.  format: of its values, as a format specification.  leads: whether it may
    lead to the verdict "drifted".  charted: its place in the chart of what decides, from 1; 0: not in it.
    """

    key: str
    title: str
    worse: Side = "neither"
    format: str = ".3f"
    leads: bool = False
    charted: int = 0

    def outside(self, value: float, limit: float) -> bool:
        """Return whether a value is beyond the limit of a null band, on the harmful side."""
        return value < limit if self.worse == "low" else value > limit

    def percentile(self, percentile: float) -> float:
        """Return the percentile of harmless values that limits a null band, on the harmful side."""
        return 100 - percentile if self.worse == "low" else percentile

    def shown(self, value: float | None) -> str:
        """Return a value as text; a dash where there is none."""
        return f"{value:{self.format}}" if value is not None and math.isfinite(value) else "–"


STATISTICS: dict[str, Statistic] = {
    row.key: row
    for row in (
        # of every probe: `probe_changes`
        Statistic("recall_at_1_loss", "R@1 lost", "high", charted=1),
        Statistic("neighbour_overlap", "neighbour overlap", "low", leads=True, charted=2),
        Statistic("margin_loss", "margin lost", "high", leads=True, charted=3),
        Statistic("rotated_cosine", "cosine after text rotation", "low", leads=True, charted=4),
        Statistic("cosine", "cosine", "low"),
        Statistic("recall_at_10_loss", "R@10 lost", "high"),
        Statistic("mrr_loss", "MRR lost", "high"),
        Statistic("ndcg_at_5_loss", "nDCG@5 lost", "high"),
        Statistic("ndcg_at_10_loss", "nDCG@10 lost", "high"),
        # of a retrieval
        Statistic("recall_at_1", "R@1", "low"),
        Statistic("recall_at_5", "R@5", "low"),
        Statistic("recall_at_10", "R@10", "low"),
        Statistic("mrr", "MRR", "low"),
        Statistic("ndcg_at_5", "nDCG@5", "low"),
        Statistic("ndcg_at_10", "nDCG@10", "low"),
        # of the projected tokens at one depth
        Statistic("debiased_cka", "debiased CKA", "low"),
        Statistic("relative_norm", "relative norm"),
        # of the final embeddings: what explains, and does not decide
        Statistic("representation_bias", "representation bias", "high", ".4g"),
        Statistic("mean_shift", "shift of the mean", "high", ".4g"),
        Statistic("covariance_shift", "shift of the covariance", "high", ".4g"),
        Statistic("frechet_distance", "Fréchet distance", "high", ".4g"),
        Statistic("frechet_distance_between_halves", "Fréchet distance between halves of the probes", format=".4g"),
        Statistic("effective_rank", "effective rank", format=".4g"),
        Statistic("modality_gap", "modality gap", format=".4g"),
        Statistic("alignment", "alignment", "high", ".4g"),
        Statistic("uniformity", "uniformity", format=".4g"),
        Statistic("margin", "margin", "low", ".4g"),
        # of weights alone
        Statistic("displacement", "displacement", "high", ".2f"),
        Statistic("overlap", "overlap"),
    )
}


def statistic(key: str) -> Statistic:
    """Return the row of a statistic, also of one side ("margin_fused") or one set ("birds_recall_at_1").

    For a key that has no row: one that is called by its own words.
    """
    if key in STATISTICS:
        return STATISTICS[key]
    own = [row for row in STATISTICS.values() if key.endswith(f"_{row.key}")]
    if own:
        row = max(own, key=lambda one: len(one.key))
        return replace(row, key=key, title=f"{key[: -len(row.key) - 1]} {row.title}")
    for side in ("specialist", "fused"):
        if (row_of := STATISTICS.get(key.removesuffix(f"_{side}"))) is not None:
            return replace(row_of, key=key, title=f"{row_of.title}, {side}")
    return Statistic(key, key.replace("_", " "), format=".4g")


def title(key: str) -> str:
    """Return what a statistic is called: "R@1"; of one set, "birds R@1"."""
    return statistic(key).title


LEADING: tuple[str, ...] = tuple(key for key, row in STATISTICS.items() if row.leads)
"""Those that followed the recall loss most closely (Spearman 0.98-0.99 over 30 merges); recall itself decides."""
CHARTED: tuple[str, ...] = tuple(sorted((key for key, row in STATISTICS.items() if row.charted),
                                        key=lambda key: STATISTICS[key].charted))  # fmt: skip
