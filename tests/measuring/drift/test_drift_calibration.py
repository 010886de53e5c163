"""How often the verdict is right on made-up models whose truth is known: rotated, retrained, damaged."""

from __future__ import annotations

import numpy as np
import pytest

from taskmerge.measuring.drift.comparison import Embedded
from taskmerge.measuring.drift.diagnose import judged
from taskmerge.measuring.drift.verdict import Verdict

WIDTH, TEXTS, PER_TEXT = 24, 100, 3
TRAINED = 0.2


class World:
    """Texts with a place each; a model puts every item at its text's place, with an error of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        places = self.rng.standard_normal((TEXTS, WIDTH))
        self.places = places / np.linalg.norm(places, axis=1, keepdims=True)
        self.right = np.repeat(np.arange(TEXTS), PER_TEXT)
        self.hard = self.rng.standard_normal((len(self.right), WIDTH))  # what makes an item hard for every model

    def model(self, own: float = 0.1, damage: float = 0.0) -> Embedded:
        """A model in a space of its own. own: what differs between two trainings; damage: error that fusing added."""
        turn, _ = np.linalg.qr(self.rng.standard_normal((WIDTH, WIDTH)))
        noise = TRAINED * self.hard + own * self.rng.standard_normal(self.hard.shape)
        probes = self.places[self.right] + noise + damage * self.rng.standard_normal(self.hard.shape)
        texts = self.places + 0.01 * self.rng.standard_normal(self.places.shape)
        return Embedded(probes @ turn, texts @ turn)

    def verdict(self, reference: Embedded, other: Embedded, rows: np.ndarray | None = None) -> Verdict:
        chosen = np.arange(len(self.right)) if rows is None else rows
        used = list(dict.fromkeys(self.right[chosen].tolist()))

        def part(side: Embedded) -> Embedded:
            return Embedded(side.probes[chosen], side.texts[used])

        third = self.model()
        return judged(part(reference), part(other), {"seed 3": part(third)}, [str(self.right[row]) for row in chosen])


def test_no_alarm_between_two_trainings() -> None:
    outcomes = []
    for seed in range(25):
        world = World(seed)
        outcomes.append(world.verdict(world.model(), world.model()).outcome)
    assert outcomes.count("drifted") <= 1
    assert outcomes.count("not drifted") >= 15


def test_no_damage_beyond_five_points_is_missed() -> None:
    losses, outcomes = [], []
    for seed in range(25):
        world = World(100 + seed)
        found = world.verdict(world.model(), world.model(damage=0.12 + 0.01 * seed))
        if found.loss.estimate > 0.05:
            losses.append(found.loss.estimate)
            outcomes.append(found.outcome)
    assert len(outcomes) >= 20
    assert min(losses) < 0.15  # mild damage is among them
    assert set(outcomes) == {"drifted"}


@pytest.mark.parametrize("damage", [0.0, 0.1, 0.4])
def test_ten_probes_cannot_tell(damage: float) -> None:
    world = World(7)
    reference, other = world.model(), world.model(damage=damage)
    for draw in range(10):
        rows = np.random.default_rng(draw).permutation(len(world.right))[:10]
        assert world.verdict(reference, other, np.sort(rows)).outcome == "cannot tell"
