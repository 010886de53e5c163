"""Which way is kept, on ways whose true gain is known."""

from __future__ import annotations

import numpy as np
import pytest

from taskmerge.training.choosing import LEAVE, Gain, choose, gain_of


def trial(true_gains: dict[str, float], pairs: int, seed: int, noise: float = 0.25) -> dict[str, Gain]:
    """Ways whose ranks differ from those of "leave it" by a true gain and noise of each pair."""
    rng = np.random.default_rng(seed)
    left = rng.uniform(0.1, 0.6, pairs)
    labels = {"audio": list(range(pairs))}
    return {
        name: gain_of({"audio": left + gain + rng.normal(0, noise, pairs)}, {"audio": left}, labels)
        for name, gain in true_gains.items()
    }


@pytest.mark.parametrize("pairs", [16, 64, 200])
def test_what_gains_nothing_is_seldom_kept_and_what_harms_never(pairs: int) -> None:
    useless = [choose(trial({"a": 0.0, "b": 0.0}, pairs, seed))[0] for seed in range(100)]
    assert sum(name != LEAVE for name in useless) <= 20  # two ways, each by chance in one of twenty and less
    harmful = [choose(trial({"a": -0.1, "b": -0.05}, pairs, seed))[0] for seed in range(100)]
    assert sum(name != LEAVE for name in harmful) <= 3


def test_what_gains_much_is_kept() -> None:
    found = [choose(trial({"weak": 0.03, "strong": 0.08}, 200, seed))[0] for seed in range(50)]
    assert sum(name == "strong" for name in found) >= 45


def test_a_way_that_makes_one_set_surely_worse_is_not_kept() -> None:
    rng = np.random.default_rng(0)
    left = {"audio": rng.uniform(0, 0.5, 100), "video": rng.uniform(0, 0.5, 100)}
    labels = {name: list(range(100)) for name in left}
    own = {"audio": left["audio"] + 0.4, "video": left["video"] - 0.05}
    gain = gain_of(own, left, labels)
    assert gain.sure.low > 0 and gain.worse == ("video",)
    kept, reason = choose({"gradient": gain})
    assert kept == LEAVE and "lowers video" in reason


def test_every_set_has_the_same_weight() -> None:
    left = {"large": np.zeros(300), "small": np.zeros(3)}
    own = {"large": np.full(300, 0.1), "small": np.full(3, 0.5)}
    gain = gain_of(own, left, {"large": list(range(300)), "small": [0, 1, 2]})
    assert gain.sure.estimate == pytest.approx(0.3)


def test_pairs_of_one_text_count_as_one() -> None:
    """Eighty recordings of two words say less than eighty words."""
    rng = np.random.default_rng(3)
    change = np.repeat([0.3, -0.1], 40) + rng.normal(0, 0.01, 80)
    left = {"audio": np.full(80, 0.3)}
    own = {"audio": left["audio"] + change}
    apart = gain_of(own, left, {"audio": list(range(80))})
    together = gain_of(own, left, {"audio": [0] * 40 + [1] * 40})
    assert apart.holds and not together.holds
