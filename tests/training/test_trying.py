"""Recovery by choice on tiny grafts: nothing is fitted on what judges, what is kept is better on sounds nobody saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omni_models import tiny_backbone
from training_sets import NAMES, tensors, tones

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError
from taskmerge.training import TrainingSettings, specialize
from taskmerge.training.arms import recover_by_choice, try_all
from taskmerge.training.choosing import LEAVE
from taskmerge.training.trying import CLOSED, GRADIENT, LABEL_FREE, WARM, CrossedTrial, SplitTrial, trial_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*'repr' attribute.*")
SETTINGS = TrainingSettings(steps=30, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=15, temperature=0.1)


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft that has learned eight tones."""
    home = tmp_path_factory.mktemp("specialist")
    tiny_backbone(home / "backbone")
    graft(home / "backbone", "audio", {"kind": "log_mel", "mels": 16}, "linear", home / "start")
    data = tones(home / "train", 6)
    specialize(home / "start", data, ["backbone.encoder.*", "audio_projector"], replace(SETTINGS, steps=60),
               out=home / "model")  # fmt: skip
    return home / "model"


@pytest.fixture(scope="module")
def drifted(specialist: Path) -> Path:
    """The specialist with a projector that says nothing any more."""
    import torch

    model = open_embedder(specialist)
    weight = model.state_dict.values["audio_projector.layers.0.weight"]
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.copy_(noise * weight.std())
    model.save(specialist.parent / "drifted")
    return specialist.parent / "drifted"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sounds")
    return {name: tones(home / name, takes, seed) for name, takes, seed in (("data", 6, 3), ("test", 6, 9))}


def score(model: Any, data: Path) -> float:
    """R@1 of sounds among the eight texts."""
    pairs = read_pairs(data)
    embedder = open_embedder(model)
    texts, right = pairs.distinct()
    found = embedder.encode(pairs.load(), "audio", "query") @ embedder.encode(texts, "text", "document").T
    return float(np.mean(found.argmax(axis=1) == right))


def test_every_way_is_tried_and_what_is_kept_is_better_on_sounds_nobody_saw(
    specialist: Path, drifted: Path, sounds: dict[str, Path], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=60)
    report = recover_by_choice(drifted, sounds["data"], ["audio_projector"], specialist=specialist, settings=settings,
                               held_out=sounds["test"], out=tmp_path / "out")  # fmt: skip
    assert [arm.name for arm in report.arms] == [LEAVE, CLOSED, LABEL_FREE, GRADIENT, WARM]
    assert report.kept != LEAVE, report.reason
    (kept,) = [arm for arm in report.arms if arm.name == report.kept]
    assert kept.gain is not None and kept.gain.low > 0
    assert score(tmp_path / "out", sounds["test"]) == pytest.approx(kept.scores["audio_recall_at_1"])
    before, after = tensors(drifted), tensors(tmp_path / "out")
    assert {name.partition(".")[0] for name in before if not np.array_equal(before[name], after[name])} == {
        "audio_projector"
    }
    assert "48 have a text of the training data" in report.notes[0]


def test_pairs_that_judge_in_turn_are_never_fitted_on(
    drifted: Path, sounds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle: whatever a way is fitted on, texts and items of the part that judges are not among it."""
    import taskmerge.training.trying as home

    trial = trial_of(drifted, sounds["data"], ["audio_projector"], SETTINGS, None, None, None)
    assert isinstance(trial, CrossedTrial)
    seen: list[tuple[set[str], set[str]]] = []
    real = home.Session

    def watching(model: Any, sets: Any, held: Any, *rest: Any) -> Any:
        seen.append(({*sets["audio"].texts}, {*held["audio"].texts} if held else set()))
        return real(model, sets, held, *rest)

    monkeypatch.setattr(home, "Session", watching)
    before = tensors(drifted)
    trial.measured(GRADIENT)
    assert len(seen) == 3 and not any(fitted & held for fitted, held in seen)
    assert set().union(*(held for _, held in seen)) == {f"sound of {name}" for name in NAMES}
    assert len(trial.labels["audio"]) == 48 == len(trial.measured(GRADIENT).ranks["audio"])
    model = trial.final(GRADIENT)
    assert seen[-1] == ({f"sound of {name}" for name in NAMES}, set())
    now = {name: value.detach().numpy() for name, value in model.state_dict.values.items()}
    assert {name.partition(".")[0] for name in before if not np.array_equal(before[name], now[name])} == {
        "audio_projector"
    }


def test_the_closed_form_of_a_part_does_not_see_it(specialist: Path, sounds: dict[str, Path]) -> None:
    """Other sounds in a part change what is fitted without the other parts, and not what is fitted without it."""
    import torch

    drifted = open_embedder(specialist)
    with torch.no_grad():
        weight = drifted.state_dict.values["audio_projector.layers.0.weight"]
        weight.add_(1.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    pairs = read_pairs(sounds["data"])
    fits = []
    for changed in (False, True):
        trial = trial_of(drifted, pairs, ["audio_projector"], SETTINGS, specialist, None, None)
        assert isinstance(trial, CrossedTrial)
        if changed:
            items = list(pairs.items)
            own = trial.splits["audio"][0].held
            for row, other in zip(own, reversed(own), strict=True):
                items[row] = pairs.items[other]
            trial.sets = {"audio": replace(pairs, items=items)}
        fits.append(trial._closed(LABEL_FREE))
    first, second = fits
    assert first.ridges, first.reason
    name = "audio_projector.layers.0.weight"
    if first.ridges == second.ridges:  # they are chosen by what judges
        np.testing.assert_array_equal(first.without[0][name].numpy(), second.without[0][name].numpy())
    assert not np.array_equal(first.without[1][name].numpy(), second.without[1][name].numpy())


def test_what_cannot_get_better_is_left_alone(specialist: Path, sounds: dict[str, Path], tmp_path: Path) -> None:
    harmful = replace(SETTINGS, learning_rate=30.0, warmup=0)
    report = recover_by_choice(specialist, sounds["data"], ["audio_projector"], settings=harmful, method="gradient",
                               out=tmp_path / "out")  # fmt: skip
    assert report.kept == LEAVE, report.reason
    before, after = tensors(specialist), tensors(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_speakers_of_one_side_are_not_heard_on_the_other(drifted: Path, sounds: dict[str, Path]) -> None:
    pairs = read_pairs(sounds["data"])
    grouped = replace(pairs, groups=[("ann", "bob", "eve", "joe")[row % 4] for row in range(len(pairs))])
    trial = trial_of(drifted, grouped, ["audio_projector"], SETTINGS, None, None, None)
    assert isinstance(trial, CrossedTrial)
    for part in range(trial.count):
        fitted, held = trial._part(part)
        assert not set(fitted["audio"].groups) & set(held["audio"].groups)
    assert "not used" in trial.notes[0]


def test_many_pairs_are_split_once(drifted: Path) -> None:
    rows = [{"audio": np.zeros(800, np.float32), "text": f"text {number}"} for number in range(600)]
    trial = trial_of(drifted, rows, ["audio_projector"], SETTINGS, None, None, None)
    assert isinstance(trial, SplitTrial)
    assert len(trial.held["audio"]) == 120 and len(trial.sets["audio"]) == 480


def test_too_few_pairs_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 pairs of 1 texts are too few"):
        recover_by_choice(tmp_path / "model", [{"query": "a", "text": "b"}] * 2, out=tmp_path / "out")
    with pytest.raises(UsageError, match="method must be auto, gradient or closed_form, not the text 'magic'"):
        recover_by_choice(tmp_path / "model", [], method="magic", out=tmp_path / "out")  # type: ignore[arg-type]


def test_all_ways_judge_the_same_pairs(specialist: Path, drifted: Path, sounds: dict[str, Path]) -> None:
    trial = trial_of(drifted, sounds["data"], ["audio_projector"], SETTINGS, specialist, None, None)
    report = try_all(trial)
    assert len({len(trial.measured(arm.name).ranks["audio"]) for arm in report.arms}) == 1
    assert report.kept in {arm.name for arm in report.arms} and report.reason
    left = trial.final(LEAVE)
    assert score(left.module, sounds["test"]) == score(drifted, sounds["test"])
