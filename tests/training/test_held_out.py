"""Galleries that hold all texts, floors, and shares that follow what is missing, on embeddings that are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.training.held_out import HeldOutRetrieval, gallery_of
from taskmerge.training.watching import DECIDES, METRIC, Watch

TEXTS = [f"text {number}" for number in range(12)]


class Items:
    """Stands in for `TrainingItems`: item i of a set is found at rank `ranks[set][i]` among as many texts."""

    def __init__(self, sets: dict[str, Pairs], ranks: dict[str, list[int]]) -> None:
        self.sets, self.ranks = sets, ranks
        self.order = [(name, row) for name, pairs in sets.items() for row in range(len(pairs))]

    def numbers(self, name: str) -> list[int]:
        return [number for number, (own, _) in enumerate(self.order) if own == name]

    def embed(self, numbers: list[int]) -> torch.Tensor:
        return torch.stack([self._query(*self.order[number]) for number in numbers])

    def embed_texts(self, texts: list[str], role: Any, name: str = "") -> torch.Tensor:
        return torch.eye(16, dtype=torch.float64)[: len(texts)]

    def _query(self, name: str, row: int) -> torch.Tensor:
        """Scores of the texts: `rank - 1` of the wrong ones come before the right one."""
        scores = torch.zeros(16, dtype=torch.float64)
        wrong = [place for place in range(16) if place != row]
        scores[wrong[: self.ranks[name][row] - 1]] = 2.0
        scores[row] = 1.0
        return scores


def watched(ranks: dict[str, list[int]], **watch: Any) -> tuple[HeldOutRetrieval, Items]:
    sets = {
        name: read_pairs([{"query": f"{name} {text}", "text": text} for text in TEXTS[: len(own)]])
        for name, own in ranks.items()
    }
    items = Items(sets, ranks)
    return HeldOutRetrieval(items, None, Watch(**watch)), items  # type: ignore[arg-type]


def test_the_scores_are_those_of_the_ranks() -> None:
    judge, _ = watched({"audio": [1, 2, 4, 1], "image": [1, 1]})
    scores = judge.begin()
    assert scores["audio_mrr"] == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
    assert scores["audio_recall_at_1"] == 0.5
    assert scores[METRIC] == pytest.approx((scores["audio_mrr"] + 1) / 2) == scores[DECIDES]


def test_a_gallery_holds_the_texts_that_are_trained_on_once() -> None:
    held = read_pairs([{"query": "a", "text": "A dog."}, {"query": "b", "text": "a cat"}])
    trained = read_pairs(
        [{"query": str(n), "text": text} for n, text in enumerate(["a dog", "a cow", "A COW", "a pig"])]
    )
    texts, places = gallery_of(held, trained)
    assert texts == ["A dog.", "a cat", "a cow", "a pig"] and places.tolist() == [0, 1]
    many = read_pairs([{"query": str(n), "text": f"text {n}"} for n in range(5000)])
    assert len(gallery_of(held, many)[0]) == 2002


def test_a_look_below_a_floor_does_not_count_though_its_mean_is_better() -> None:
    judge, items = watched({"audio": [2] * 10, "image": [4] * 10}, floors=True)
    before = judge.begin()
    items.ranks = {"audio": [3] * 10, "image": [1] * 10}
    look = judge(None, steps=10)
    assert look[METRIC] > before[METRIC] and look[DECIDES] < before[DECIDES]
    assert judge.below(judge.latest) == ["audio"] == judge.barred()
    items.ranks = {"audio": [2] * 10, "image": [3] * 10}
    assert judge(None, steps=20)[DECIDES] > before[DECIDES]
    resumed, _ = watched({"audio": [2] * 10, "image": [4] * 10}, floors=True)
    resumed.begin()
    resumed.restore(
        [{f"eval_{name}": value for name, value in row.items()} | {"step": row["step"]} for row in judge.history]
    )
    assert resumed.history == judge.history and resumed.barred() == ["audio"]


def test_a_change_within_the_interval_is_not_below_the_floor() -> None:
    judge, items = watched({"audio": [2] * 10}, floors=True)
    judge.begin()
    items.ranks = {"audio": [1, 4] * 5}  # better here, worse there, worse in no certain way
    assert judge.scores()[DECIDES] > 0 and judge.below(judge.latest) == []


def test_what_may_fall_has_no_floor_and_is_told() -> None:
    judge, items = watched({"audio": [1] * 10, "image": [4] * 10}, floors=True, may_fall=("audio",))
    judge.begin()
    items.ranks = {"audio": [2] * 10, "image": [1] * 10}
    assert judge.scores()[DECIDES] > 0
    assert judge.below(judge.latest) == [] and judge.fallen(judge.latest) == ["audio"]


def test_shares_follow_what_is_missing_and_come_back_after_a_stop() -> None:
    ranks = {"audio": [1] * 10, "image": [2] * 10, "video": [4] * 10}
    judge, items = watched(ranks, targets={"audio": 1.0, "image": 1.0, "video": 0.75})
    judge.begin()
    names = ["video", "image", "audio"]
    assert judge.shares_at(0, names) == pytest.approx([0.5, 0.5, 0.05])
    items.ranks = {**ranks, "video": [2] * 10}
    look = judge(None, steps=10)
    assert judge.shares_at(10, names) == pytest.approx([0.5, 0.5, 0.05])  # fetched before the look
    assert judge.shares_at(11, names) == pytest.approx([0.25, 0.5, 0.05])
    again, _ = watched(ranks, targets=judge.watch.targets)
    again.begin()
    logged = [{"loss": 1.0, "step": 10}, {"step": 10, "epoch": 1.0, **{f"eval_{key}": look[key] for key in look}}]
    again.restore(logged)
    assert again.history == judge.history
    assert again.shares_at(11, names) == judge.shares_at(11, names)


def test_nothing_missing_means_even_shares() -> None:
    judge, _ = watched({"audio": [1] * 4, "image": [1] * 4})
    judge.begin()
    assert judge.shares_at(0, ["audio", "image"]) == [1.0, 1.0]


def test_batches_are_drawn_by_what_is_missing() -> None:
    from taskmerge.training.sampling import balanced_sampler, draw_probabilities

    def follows(draw: int) -> list[float]:
        return [1.0, 9.0] if draw < 500 else [9.0, 1.0]

    sampler = balanced_sampler(draw_probabilities([1, 1], 1.0, [1.0, 1.0]), [None, None], 1000, 1, 1, follows)
    own: Any = sampler.__new__(sampler)
    own.dataset, own.seed, own.epoch = SimpleNamespace(datasets=[range(40), range(40)]), 0, 0
    drawn = np.array([batch[0] >= 40 for batch in own])
    assert 0.85 < drawn[:500].mean() < 0.95 and 0.05 < drawn[500:].mean() < 0.15
