"""One row a statistic: bands, verdicts and pages follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from taskmerge.measuring.drift.null_band import Band, null_bands
from taskmerge.measuring.drift.verdict import judge
from taskmerge.words.statistics import CHARTED, LEADING, STATISTICS, statistic, title


def test_the_verdict_calls_the_rotated_cosine_by_its_name() -> None:
    texts = [f"text {number}" for number in range(400)]
    changes = {
        "neighbour_overlap": np.full(400, 0.99), "margin_loss": np.zeros(400), "rotated_cosine": np.full(400, 0.5),
        "cosine": np.full(400, 0.5), "recall_at_1_loss": np.full(400, 0.5),
    }  # fmt: skip
    limits = {"neighbour_overlap": 0.9, "margin_loss": 0.1, "rotated_cosine": 0.99, "recall_at_1_loss": 0.01}
    bands = {name: Band(name, limit, ("seed",), 200) for name, limit in limits.items()}
    found = judge(changes, bands, texts=texts, specialist_recall=0.9)
    assert found.sentences[0].startswith("Drifted: cosine after text rotation 0.500 (null band 0.990): the backbone")


@pytest.mark.parametrize("key", STATISTICS)
def test_a_band_lies_on_the_harmful_side(key: str) -> None:
    row = statistic(key)
    values = np.linspace(0, 1, 1001)
    band = null_bands({"twin": {key: values}}, halves=50)[key]
    worse, better = (0.0, 1.0) if row.worse == "low" else (1.0, 0.0)
    assert band.outside(worse) and not band.outside(better)


def test_names() -> None:
    assert LEADING == ("neighbour_overlap", "margin_loss", "rotated_cosine")
    assert CHARTED == ("recall_at_1_loss", "neighbour_overlap", "margin_loss", "rotated_cosine")
    assert title("recall_at_1") == "R@1" and title("birds_recall_at_1") == "birds R@1"
    assert title("birds_ndcg_at_10_loss") == "birds nDCG@10 lost"
    assert title("margin_fused") == "margin, fused" and title("something_new") == "something new"
    assert len({row.title for row in STATISTICS.values()}) == len(STATISTICS)
    assert statistic("mrr").shown(float("nan")) == "–" == statistic("mrr").shown(None)
    assert statistic("mrr").shown(0.5) == "0.500" and statistic("uniformity").shown(-1.23456) == "-1.235"
