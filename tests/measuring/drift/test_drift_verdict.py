"""The verdict on made-up probes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from taskmerge.measuring.drift.null_band import Band, between_halves, named_references, null_bands
from taskmerge.measuring.drift.verdict import Verdict, judge
from taskmerge.words.statistics import LEADING

BANDS = {
    "neighbour_overlap": Band("neighbour_overlap", 0.9, ("bfloat16",), 200),
    "rotated_cosine": Band("rotated_cosine", 0.99, ("bfloat16",), 200),
    "margin_loss": Band("margin_loss", 0.01, ("bfloat16",), 200),
    "recall_at_1_loss": Band("recall_at_1_loss", 0.01, ("bfloat16",), 200),
}


def verdict(
    lost: int, probes: int, *, gained: int = 0, moved: bool = True, recall: float = 0.9, **options: object
) -> Verdict:
    """`lost` of `probes` no longer found, `gained` found anew; each probe has its own text."""
    loss = np.zeros(probes)
    loss[:lost], loss[lost : lost + gained] = 1, -1
    changes = {
        "recall_at_1_loss": loss,
        "neighbour_overlap": np.full(probes, 0.5 if moved else 0.95),
        "rotated_cosine": np.full(probes, 0.8 if moved else 0.999),
        "margin_loss": np.full(probes, 0.2 if moved else 0.0),
    }
    texts = [str(number) for number in range(probes)]
    return judge(changes, BANDS, texts=texts, specialist_recall=recall, **options)  # type: ignore[arg-type]


def test_a_clear_loss_is_drift() -> None:
    found = verdict(lost=40, probes=200)
    assert (found.outcome, found.beyond_limit) == ("drifted", True)
    assert found.loss.estimate == pytest.approx(0.2)
    assert found.sentences[0].startswith("Drifted: neighbour overlap 0.500 (null band 0.900)")
    assert "R@1 went from 90.0% to 70.0% on 200 probes, a loss of 20.0 points" in str(found)


def test_a_small_sure_loss_is_drift_within_the_limit() -> None:
    found = verdict(lost=30, probes=1000)
    assert (found.outcome, found.beyond_limit) == ("drifted", False)


def test_movement_without_loss_is_no_drift() -> None:
    found = verdict(lost=3, gained=3, probes=1000)
    assert found.outcome == "not drifted"
    assert "embeddings moved, but the loss is at most" in str(found)


def test_nothing_moved() -> None:
    found = verdict(lost=0, probes=100, moved=False)
    assert found.outcome == "not drifted"
    assert "nothing left its null band" in str(found)


@pytest.mark.parametrize("lost", [0, 2, 9, 10])
def test_ten_probes_cannot_tell(lost: int) -> None:
    found = verdict(lost=lost, probes=10)
    assert (found.outcome, found.beyond_limit, found.probes_needed) == ("cannot tell", False, 60)
    assert "with 10 probes a loss below 30% cannot be detected" in str(found)


def test_no_loss_among_too_few_probes_is_not_proof() -> None:
    # 40 probes without a loss still allow 3/40 = 7.5 %
    found = verdict(lost=0, probes=40, moved=False)
    assert found.outcome == "cannot tell"
    assert "no loss was observed, but with 40 probes a loss of up to 7.5 points is still possible. R@1 went" in str(
        found
    )
    assert verdict(lost=0, probes=60, moved=False).outcome == "not drifted"
    assert verdict(lost=0, probes=40, moved=False, limit=0.1).outcome == "not drifted"
    assert verdict(lost=20, probes=40).outcome == "drifted"


def test_an_open_case_says_how_many_probes_it_takes() -> None:
    found = verdict(lost=12, gained=8, probes=100)
    assert found.outcome == "cannot tell"
    assert found.probes_needed is not None
    assert found.probes_needed > 100
    settled = verdict(
        lost=12 * found.probes_needed // 100, gained=8 * found.probes_needed // 100, probes=found.probes_needed
    )
    assert settled.loss.high - settled.loss.low < found.loss.high - found.loss.low


def test_a_specialist_that_finds_nothing_has_nothing_to_lose() -> None:
    found = verdict(lost=0, probes=200, recall=0.02)
    assert found.outcome == "cannot tell"
    assert "the specialist itself retrieves only 2%" in str(found)


def test_a_changed_projector_is_said() -> None:
    assert "more than the backbone" in str(verdict(lost=40, probes=200, control_identical=False))
    assert "more than the backbone" not in str(verdict(lost=40, probes=200))


def test_a_loss_that_seeds_also_show_is_no_drift() -> None:
    wide = {**BANDS, "recall_at_1_loss": Band("recall_at_1_loss", 0.06, ("seed 2",), 200)}
    loss = np.zeros(400)
    loss[:20] = 1  # 5 points
    changes = {name: np.zeros(400) for name in LEADING} | {"recall_at_1_loss": loss}
    texts = [str(i) for i in range(400)]
    assert judge(changes, BANDS, texts=texts, specialist_recall=0.9).outcome == "drifted"
    assert judge(changes, wide, texts=texts, specialist_recall=0.9).outcome != "drifted"


def test_the_band_is_the_percentile_of_halves_on_the_harmful_side() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.1, 400)
    bands = null_bands({"a": {"neighbour_overlap": values, "margin_loss": values}}, halves=2000)
    # the mean of a half drawn without replacement has variance s²/n: s² / (n/2) * (1 - 1/2)
    spread = values.std() / np.sqrt(400)
    assert bands["neighbour_overlap"].limit == pytest.approx(values.mean() - 1.645 * spread, abs=0.2 * spread)
    assert bands["margin_loss"].limit == pytest.approx(values.mean() + 1.645 * spread, abs=0.2 * spread)
    assert bands["neighbour_overlap"].outside(0.5)
    assert not bands["neighbour_overlap"].outside(0.99)
    assert bands["margin_loss"].outside(0.99)
    assert (bands["margin_loss"].sources, bands["margin_loss"].samples) == (("a",), 2000)


def test_another_seed_widens_the_band() -> None:
    twin = {"recall_at_1_loss": np.zeros(100)}
    seed = {"recall_at_1_loss": np.repeat([0.0, 1.0], [90, 10])}
    assert null_bands({"bfloat16": twin})["recall_at_1_loss"].limit == 0
    assert null_bands({"bfloat16": twin, "seed 2": seed})["recall_at_1_loss"].limit > 0.08


def test_between_halves_shrinks_with_the_probes() -> None:
    rng = np.random.default_rng(1)
    few, many = (between_halves(rng.standard_normal((count, 4))) for count in (20, 2000))
    assert many < few / 10


def test_references_have_names() -> None:
    assert list(named_references(["x", "y"])) == ["reference 1", "reference 2"]
    assert named_references({"seed 2": "x"}) == {"seed 2": "x"}


@pytest.mark.parametrize("control", [False, None])
def test_the_backbone_is_not_blamed_where_the_projector_may_have_changed(control: bool | None) -> None:
    blamed = "the backbone processes the projected tokens differently"
    assert blamed in str(verdict(lost=40, probes=200))
    found = verdict(lost=40, probes=200, control_identical=control)
    assert blamed not in str(found)
    assert ("not checked" in str(found)) == (control is None)


def test_no_drift_is_said_of_items_like_the_probes_alone() -> None:
    assert "other items may lose more" in str(verdict(lost=0, probes=100, moved=False))
    assert "other items may lose more" not in str(verdict(lost=40, probes=200))
