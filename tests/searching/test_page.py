"""The verdict on the page of a search: as new pairs decide."""

from __future__ import annotations

import pytest

from taskmerge.metrics.bootstrap import Interval
from taskmerge.searching.findings import Confirmed
from taskmerge.searching.page import verdict_of


@pytest.mark.parametrize(
    ("gain", "tone", "head"),
    [
        ((0.08, 0.05, 0.1), "good", "Use trial 3: +0.080 (+0.050 to +0.100) on new pairs"),
        ((0.01, -0.02, 0.04), "open", "Best, but not significantly better than your own weights: trial 3, +0.010"),
        ((-0.05, -0.08, -0.02), "bad", "Keep your own weights: trial 3 changes -0.050"),
    ],
)
def test_new_pairs_decide(gain: tuple[float, float, float], tone: str, head: str) -> None:
    whole = Interval(*gain, 100)
    found = Confirmed("trial 3", whole, whole, whole, {})
    said = verdict_of("trial 3", found, ["mrr"])
    assert said[0] == tone and said[1].startswith(head)


def test_without_new_pairs_nothing_is_recommended() -> None:
    whole = Interval(0.0, 0.0, 0.0, 100)
    assert verdict_of("trial 3", None, ["mrr"]) == ("plain", "Best: trial 3")
    assert verdict_of("own", Confirmed("own", whole, whole, whole, {}), ["mrr"]) == ("plain", "Best: own")


def test_one_of_several_objectives_recommends_nothing() -> None:
    gain = Interval(0.08, 0.05, 0.1, 100)
    tone, head = verdict_of("trial 3", Confirmed("trial 3", gain, gain, gain, {}), ["a.mrr", "b.mrr"])
    assert (tone, head) == ("plain", "Best over all objectives: trial 3; a.mrr +0.080 (+0.050 to +0.100) on new pairs")
