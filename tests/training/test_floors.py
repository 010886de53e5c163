"""Rehearsal with floors: what one modality gains does not pay for what another loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from omni_models import tiny_backbone
from training_sets import NAMES, shades, tensors, tones

from taskmerge.cli.training import _end
from taskmerge.embedders import graft
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import UsageError
from taskmerge.training import TrainingSettings, rehearse, specialize

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*'repr' attribute.*")
SETTINGS = TrainingSettings(
    steps=60, batch_size=8, learning_rate=3e-3, warmup=4, evaluate_every=20, temperature=0.1, balance=1e6
)
TRAIN = ["backbone.encoder.*", "vision_*", "audio_projector"]


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft with ears that have learned and eyes that have not."""
    home = tmp_path_factory.mktemp("hearing")
    tiny_backbone(home / "backbone")
    graft(home / "backbone", "audio", {"kind": "log_mel", "mels": 16}, "linear", home / "audio")
    vision = {"kind": "patches", "height": 16, "patch_height": 16, "max_width": 32, "width": 24}
    graft(home / "audio", "image", vision, "mlp", home / "start")
    data = tones(home / "train", 6)
    specialize(home / "start", data, ["backbone.encoder.*", "audio_projector"], SETTINGS, out=home / "model")
    return home / "model"


def confused(pairs: Pairs) -> Pairs:
    """Half of the sounds with the text of another: who learns it forgets what he knew."""
    names = [f"sound of {name}" for name in NAMES]
    other = {names[0]: names[1], names[1]: names[0], names[2]: names[3], names[3]: names[2]}
    return replace(pairs, texts=[other.get(text, text) for text in pairs.texts])


def rehearsed(hearing: Path, folder: Path, **options: Any) -> Any:
    data: dict[str, Any] = {"audio": confused(read_pairs(tones(folder / "train", 6, seed=2))), "image": shades(24)}
    held: dict[str, Any] = {"audio": tones(folder / "held", 4, seed=5), "image": shades(4, seed=1)}
    return rehearse(hearing, data, TRAIN, SETTINGS, held_out=held, out=folder / "out", **options)


def test_no_modality_ends_below_what_it_had(hearing: Path, tmp_path: Path) -> None:
    report = rehearsed(hearing, tmp_path)
    best = max(report.curves, key=lambda row: row["mrr"])
    assert best["mrr"] > report.before["mrr"]  # the mean alone would have kept it
    assert not report.kept and report.barred == ["audio"] and report.after == report.before
    before, after = tensors(hearing), tensors(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    (said,) = report.verdict()
    assert "had audio below its initial score" in said
    saved = json.loads((tmp_path / "out" / "taskmerge.json").read_text())
    assert saved["report"]["barred"] == ["audio"]
    with pytest.raises(typer.Exit) as ended:
        _end({"stages": {"rehearse": saved["report"]}})
    assert ended.value.exit_code == 3
    _end({"stages": {"rehearse": {**saved["report"], "barred": []}}})


def test_a_modality_that_may_fall_does_and_is_told(hearing: Path, tmp_path: Path) -> None:
    report = rehearsed(hearing, tmp_path, may_fall=("audio",))
    assert report.kept and report.barred == [] and report.below == ["audio"]
    assert report.after["image_mrr"] > report.before["image_mrr"] + 0.2
    assert report.verdict() == ["audio ends below its initial score, which may_fall allows"]


def test_targets_are_what_the_specialists_score(hearing: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"audio": tones(tmp_path / "train", 6, seed=2), "image": shades(24)}
    held: dict[str, Any] = {"audio": tones(tmp_path / "held", 4, seed=5), "image": shades(4, seed=1)}
    settings = replace(SETTINGS, steps=4, evaluate_every=2, adaptive=True)
    report = rehearse(hearing, data, TRAIN, settings, held_out=held, specialists={"audio": hearing})
    assert report.targets == {"audio": pytest.approx(report.before["audio_mrr"])}
    assert [note for note in report.notes if note.startswith("image: there is no specialist to compare with")]


def test_names_without_held_out_pairs_are_refused(hearing: Path) -> None:
    for options in ({"may_fall": ("video",)}, {"specialists": {"video": hearing}}):
        with pytest.raises(UsageError, match="'video' has no held-out pairs\n    there are: image"):
            rehearse(hearing, {"image": shades(24)}, TRAIN, SETTINGS, **options)  # type: ignore[arg-type]
