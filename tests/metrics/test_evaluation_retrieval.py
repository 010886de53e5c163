"""Retrieval scores and intervals against scikit-learn, NumPy and worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from taskmerge.errors import UsageError
from taskmerge.metrics.bootstrap import mean_interval
from taskmerge.metrics.retrieval import METRICS, collapse, score_queries
from taskmerge.metrics.rotation import orthogonal_procrustes


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 6),
    gallery=st.integers(2, 25),
    matches=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_scores_equal_a_sorted_list_and_scikit_learn(queries: int, gallery: int, matches: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, w = rng.standard_normal((queries, 5)), rng.standard_normal((gallery, 5))
    relevant = [list(rng.choice(gallery, min(matches, gallery), replace=False)) for _ in range(queries)]
    result = score_queries(u, w, relevant)
    for i in range(queries):
        cosine = [float(u[i] @ row / np.linalg.norm(u[i]) / np.linalg.norm(row)) for row in w]
        order = sorted(range(gallery), key=lambda j: -cosine[j])
        first = min(order.index(j) for j in relevant[i]) + 1
        assert result["mrr"][i] == pytest.approx(1 / first)
        for depth in (1, 5, 10):
            assert result[f"recall_at_{depth}"][i] == float(bool(set(order[:depth]) & set(relevant[i])))
        gains = np.array([[float(j in relevant[i]) for j in range(gallery)]])
        assert result["ndcg_at_10"][i] == pytest.approx(ndcg_score(gains, np.array([cosine]), k=10))
    assert set(result.means()) == set(METRICS)


def test_a_collapsed_model_scores_nothing() -> None:
    same = np.ones((20, 4), dtype=np.float32)
    result = score_queries(same, same, [[i] for i in range(20)]).means()
    assert result["recall_at_1"] == 0
    assert result["recall_at_10"] == 0
    assert result["mrr"] == pytest.approx(1 / 20)


def test_equal_texts_are_one_gallery_row() -> None:
    texts, index = collapse(["a", "b", "a", "c", "b"])
    assert texts == ["a", "b", "c"]
    assert index.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("queries", "gallery", "relevant", "message"),
    [
        (np.zeros((1, 2)), np.zeros((2, 3)), [[0]], "rows of the same length"),
        (np.zeros((0, 2)), np.zeros((2, 2)), [], "nothing to rank"),
        (np.ones((1, 2)), np.ones((2, 2)), [[]], "no relevant row"),
        (np.ones((1, 2)), np.ones((2, 2)), [[2]], "gallery row 2, but the gallery has 2"),
        (np.ones((1, 2)), np.ones((2, 2)), [], "relevance for 0"),
        (np.full((1, 2), np.nan), np.ones((2, 2)), [[0]], "query embedding 0 is not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    queries: np.ndarray, gallery: np.ndarray, relevant: list[list[int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score_queries(queries, gallery, relevant)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        interval = mean_interval(rng.binomial(1, 0.7, 100).astype(float), resamples=500, seed=seed)
        covered += interval.low <= 0.7 <= interval.high
    assert 180 <= covered <= 199


def test_groups_that_fail_together_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.binomial(1, 0.5, 30), 10).astype(float)
    groups = list(np.repeat(np.arange(30), 10))
    alone, together = mean_interval(values), mean_interval(values, groups=groups)
    assert (together.high - together.low) > 2.5 * (alone.high - alone.low)  # √10 = 3.2 in theory


def test_the_interval_is_the_same_each_time_and_collapses_without_spread() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(np.ones(5)).high == 1.0
    assert not mean_interval(np.ones(5)).excludes(1.0)
    with pytest.raises(UsageError, match="non-empty"):
        mean_interval(np.zeros(0))
    with pytest.raises(UsageError, match="5 values but 1 group"):
        mean_interval(values, groups=["a"])


def test_procrustes_beats_every_other_rotation_tried() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 4))
    best = orthogonal_procrustes(x.T @ y)
    np.testing.assert_allclose(best @ best.T, np.eye(4), atol=1e-12)
    for _ in range(200):
        other, _ = np.linalg.qr(rng.standard_normal((4, 4)))
        assert np.linalg.norm(x @ best - y) <= np.linalg.norm(x @ other - y) + 1e-12
