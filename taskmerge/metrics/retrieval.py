"""Retrieval scores, one value per query, so that they can be averaged, compared in pairs and bootstrapped."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from taskmerge.errors import UsageError

Key = TypeVar("Key", bound=Hashable)

BLOCK = 1024
"""Queries scored at once: bounds memory to BLOCK x gallery."""


@dataclass(frozen=True)
class QueryScores:
    """Scores of every query. values: metric name -> (queries,) float64; the names are in `METRICS` order."""

    values: dict[str, np.ndarray] = field(repr=False)

    def __getitem__(self, metric: str) -> np.ndarray:
        return self.values[metric]

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the queries."""
        return {name: float(scores.mean()) for name, scores in self.values.items()}


METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "ndcg_at_5", "ndcg_at_10")
SIMILARITIES = ("cosine", "dot", "euclidean")
"""What a gallery can be ranked by."""


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float64; a zero row remains zero. embeddings: (n, d)."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths == 0, 1, lengths)


def collapse(keys: Sequence[Key]) -> tuple[list[Key], np.ndarray]:
    """Return the distinct keys in order of first appearance, and the number of each entry's key (n,) int64."""
    places: dict[Key, int] = {}
    index = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    return list(places), index


def score_queries(
    queries: np.ndarray, gallery: np.ndarray, relevant: Sequence[Sequence[int]], *, similarity: str = "cosine"
) -> QueryScores:
    """Rank the gallery for every query and score the ranking.

    queries: (n, d), gallery: (m, d), any float; relevant: for each query the gallery rows that count as right.
    similarity: one of `SIMILARITIES`; euclidean: the nearest first.
    Any match counts: recall@k is 1 when some relevant row is among the first k, MRR is 1 / rank of the first one,
    nDCG@k has linear gain, 1 for each relevant row (Järvelin & Kekäläinen 2002; with gains of 0 and 1 the exponential
    form is the same number). Equal scores are ranked against the query, so that a collapsed model, which gives every
    row the same score, scores nothing.
    Raises UsageError for a query without a relevant row, non-finite embeddings or sizes that do not fit.
    """
    _check(queries, gallery, relevant)
    values = {name: np.empty(len(queries)) for name in METRICS}
    for start, scores in _similarities(queries, gallery, similarity):
        for offset, row in enumerate(scores):
            ranks = _ranks(row, np.unique(relevant[start + offset]))
            for name, value in _scores_of(ranks).items():
                values[name][start + offset] = value
    return QueryScores(values)


def best_rows(queries: np.ndarray, gallery: np.ndarray, *, similarity: str = "cosine") -> np.ndarray:
    """Return the gallery row that every query ranks first, (queries,) int64; the lowest row of equals."""
    return np.concatenate([scores.argmax(axis=1) for _, scores in _similarities(queries, gallery, similarity)])


def _similarities(queries: np.ndarray, gallery: np.ndarray, similarity: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first query, scores of a block of queries (block, gallery) float64), the more the better."""
    if similarity not in SIMILARITIES:
        raise UsageError(f"ranking by {similarity!r} is not supported", next_move=f"known: {', '.join(SIMILARITIES)}")
    to_rows = normalized if similarity == "cosine" else lambda rows: np.asarray(rows, dtype=np.float64)
    rows = to_rows(gallery)
    penalty = (rows**2).sum(axis=1) / 2 if similarity == "euclidean" else 0.0  # q·g - ‖g‖²/2 falls with ‖q - g‖
    for start in range(0, len(queries), BLOCK):
        yield start, to_rows(queries[start : start + BLOCK]) @ rows.T - penalty


def _ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1-based ranks of the relevant rows, best first, ties lost to the irrelevant rows."""
    right = np.sort(scores[relevant])[::-1]
    # rounding of a matrix product must not decide a tie between equal rows of the gallery
    bar = right - 1e-12 * np.maximum(1, np.abs(right))
    if len(right) == 1:
        return np.array([np.count_nonzero(scores >= bar[0])])
    wrong = np.sort(np.delete(scores, relevant))
    above = len(wrong) - np.searchsorted(wrong, bar, side="left")
    return above + np.arange(1, len(right) + 1)


def _scores_of(ranks: np.ndarray) -> dict[str, float]:
    first = ranks[0]
    recalls = {f"recall_at_{depth}": float(first <= depth) for depth in (1, 5, 10)}
    return {**recalls, "mrr": 1 / float(first), **{f"ndcg_at_{depth}": _ndcg(ranks, depth) for depth in (5, 10)}}


def _ndcg(ranks: np.ndarray, depth: int) -> float:
    gain = (1 / np.log2(1 + ranks[ranks <= depth])).sum()
    ideal = (1 / np.log2(1 + np.arange(1, min(depth, len(ranks)) + 1))).sum()
    return float(gain / ideal)


def _check(queries: np.ndarray, gallery: np.ndarray, relevant: Sequence[Sequence[int]]) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise UsageError(
            f"queries {queries.shape} and gallery {gallery.shape} must be 2-D with rows of the same length"
        )
    if not len(queries) or not len(gallery):
        raise UsageError(f"nothing to rank: {len(queries)} queries, {len(gallery)} gallery rows")
    if len(relevant) != len(queries):
        raise UsageError(f"{len(queries)} queries but relevance for {len(relevant)}")
    for name, rows in (("query", queries), ("gallery", gallery)):
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(broken):
            raise UsageError(f"{name} embedding {broken[0]} is not finite ({len(broken)} such rows)")
    for place, rows_of_query in enumerate(relevant):
        if not len(rows_of_query):
            raise UsageError(f"query {place} has no relevant row in the gallery")
        if min(rows_of_query) < 0 or max(rows_of_query) >= len(gallery):
            raise UsageError(
                f"query {place} refers to gallery row {max(rows_of_query)}, but the gallery has {len(gallery)}"
            )
