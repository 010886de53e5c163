"""Scores of ranked lists with graded relevance, under the names and conventions of MMEB-V2's evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

DEPTHS = (1, 5, 10)


def ranking_scores(
    ranking: Sequence[Hashable],
    labels: Sequence[Hashable],
    relevance: Sequence[float] | None = None,
    depths: Sequence[int] = DEPTHS,
) -> dict[str, float]:
    """Scores of one ranked list.

    Args:
        ranking: what was found, best first.
        labels: what is right; one named twice counts once.
        relevance: gain of each label, for nDCG alone; None: 1.
        depths: the k of each score.

    Returns:
        {"hit@1", "ndcg_linear@5", "ndcg_exponential@5", "precision@…", "recall@…", "f1@…", "map@…", "mrr@…"}, in that
        order of measures. nDCG has the gains r ("linear") and 2^r - 1 ("exponential"). AP@k is divided by
        min(labels, k). Without labels: recall 1, everything else 0, as MMEB-V2 counts it.

    Source: the measures of MMEB-V2 (arXiv 2507.04590); nDCG: Järvelin & Kekäläinen 2002.
    """
    right = set(labels)
    hits = np.array([entry in right for entry in ranking[: max(depths)]], dtype=np.float64)
    gains = dict(zip(labels, relevance, strict=True)) if relevance is not None else dict.fromkeys(labels, 1.0)
    found = np.array([gains.get(entry, 0.0) for entry in ranking[: max(depths)]], dtype=np.float64)
    ideal = np.sort(np.array(list(gains.values()), dtype=np.float64))[::-1]
    by_depth = {depth: _at(hits[:depth], len(right), depth) for depth in depths}
    for depth, row in by_depth.items():
        row["ndcg_linear"] = _ndcg(found[:depth], ideal[:depth])
        row["ndcg_exponential"] = _ndcg(2 ** found[:depth] - 1, 2 ** ideal[:depth] - 1)
    measures = ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")
    return {f"{measure}@{depth}": by_depth[depth][measure] for measure in measures for depth in depths}


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every score over the lists."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _at(hits: np.ndarray, labels: int, depth: int) -> dict[str, float]:
    count = float(hits.sum())
    precision, recall = count / depth, count / labels if labels else 1.0
    places = np.flatnonzero(hits)
    average = float((np.cumsum(hits)[places] / (places + 1)).sum()) / min(labels, depth) if count else 0.0
    return {
        "hit": float(count > 0),
        "precision": precision if labels else 0.0,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if labels and count else 0.0,
        "map": average,
        "mrr": 1.0 / (places[0] + 1) if count else 0.0,
    }


def _ndcg(found: np.ndarray, ideal: np.ndarray) -> float:
    def discounted(gains: np.ndarray) -> float:
        return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())

    best = discounted(ideal)
    return discounted(found) / best if best > 0 else 0.0
