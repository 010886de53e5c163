"""Rank correlation against scipy's, and resampled means against those of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from taskmerge.metrics.bootstrap import mean_interval, percentile_interval, resampled_means
from taskmerge.metrics.correlation import ranks, spearman


@pytest.mark.parametrize("levels", [1000, 5])
def test_spearman_is_scipys(levels: int) -> None:
    rng = np.random.default_rng(levels)
    one, two = rng.integers(0, levels, 40) / 7, rng.integers(0, levels, 40) * 3.0
    assert spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic, abs=1e-12)
    assert ranks(one) == pytest.approx(stats.rankdata(one))


def test_spearman_of_what_never_changes_is_no_number() -> None:
    assert math.isnan(spearman(np.ones(5), np.arange(5.0))) and math.isnan(spearman(np.arange(2.0), np.arange(2.0)))


@pytest.mark.parametrize("groups", [None, [number // 3 for number in range(60)]])
def test_intervals_from_draws_are_those_of_the_mean(groups: list[int] | None) -> None:
    values = np.random.default_rng(0).random(60)
    draws = resampled_means(values, groups=groups, seed=4)
    found = percentile_interval(float(values.mean()), draws, 60)
    whole = mean_interval(values, groups=groups, seed=4)
    assert (found.low, found.high, found.count) == pytest.approx((whole.low, whole.high, whole.count))


def test_two_models_get_the_same_draws() -> None:
    """The interval of a difference is that of the queries' own differences, far narrower than two apart."""
    rng = np.random.default_rng(1)
    hard = rng.random(80)
    one, two = hard + 0.02, hard
    difference = resampled_means(one, seed=3) - resampled_means(two, seed=3)
    assert difference == pytest.approx(np.full(2000, 0.02))
