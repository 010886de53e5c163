"""Training a grafted vision-language model: what items do not pass through is frozen, whatever the pattern says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drift_models import sounds
from omni_models import WORDS, picture
from vision_models import vision_model

from taskmerge.embedders import graft, open_embedder
from taskmerge.embedders.interface import Embedder
from taskmerge.errors import UsageError
from taskmerge.training import TrainingSettings, recover, rehearse
from taskmerge.training.closed_form import recover_closed_form

FAST = TrainingSettings(steps=3, batch_size=4, learning_rate=1e-2, warmup=0, evaluate_every=1, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("seeing")
    graft(vision_model("Qwen3-VL", home / "base"), "audio", {"kind": "log_mel", "mels": 16}, "mlp", home / "grafted")
    return home / "grafted"


def pictures(count: int) -> list[dict[str, Any]]:
    return [{"image": picture(20 * number), "text": f"a {WORDS[number]}"} for number in range(count)]


def moved(model: Embedder, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict.values.items() if not torch.equal(tensor, before[name])}


def opened(folder: Path) -> tuple[Embedder, dict[str, torch.Tensor]]:
    model = open_embedder(folder)
    return model, {name: tensor.detach().clone() for name, tensor in model.state_dict.values.items()}


def test_recovery_moves_the_projector_of_the_data_alone(folder: Path) -> None:
    """`*_projector` names Qwen's own mergers too; sounds do not pass through them."""
    model, before = opened(folder)
    report = recover(model, sounds(8), settings=FAST, held_out=sounds(6, seed=1))
    projector = {name for name in before if name.startswith("audio_projector.")}
    assert report.trained == len(projector) and report.frozen == len(before) - len(projector)
    assert moved(model, before) <= projector and (moved(model, before) or not report.kept)


def test_closed_form_does_too(folder: Path) -> None:
    model, before = opened(folder)
    report = recover_closed_form(model, sounds(40), rounds=1, iterations=2)
    assert report.trained == 6 and moved(model, before) <= {name for name in before if "audio_projector" in name}


def test_its_own_eyes_can_be_rehearsed(folder: Path) -> None:
    model, before = opened(folder)
    data = {"image": pictures(8), "audio": sounds(8)}
    report = rehearse(model, data, ["vision_encoder", "audio_projector"], FAST, held_out={"image": pictures(8)})
    changed = {name for name in moved(model, before) if not name.startswith("audio_projector.")}
    assert all(name.startswith("backbone.visual.") and "merger" not in name for name in changed)
    assert changed or not report.kept
    with pytest.raises(UsageError, match="no component that processes audio is trained"):
        rehearse(model, {"audio": sounds(8)}, ["vision_encoder"], FAST, held_out={"audio": sounds(4)})


def test_the_device_is_checked_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'tpu' is not a device"):
        TrainingSettings(device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TrainingSettings(device="cuda:0").device == "cuda:0"
    with pytest.raises(UsageError, match="training runs on the first GPU, not on 'cuda:1'"):
        TrainingSettings(device="cuda:1")
