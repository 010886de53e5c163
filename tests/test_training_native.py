"""Models that own their towers go through the same training, by their component map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drift_models import qwen2_audio
from omni_models import tone

from taskmerge.training import TrainingSettings, recover, specialize
from taskmerge.training.components import component_names

PAIRS = [
    {"audio": {"array": tone(300 * 1.5**number + take, 0.3), "sampling_rate": 16000}, "text": f"sound of {name}"}
    for take in range(4)
    for number, name in enumerate(("dog", "cat", "bird", "rain"))
]


def test_recovery_of_a_native_projector(tmp_path: Path) -> None:
    model = qwen2_audio(tmp_path / "native")
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    components = component_names(model[0])
    settings = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup=0, evaluate_every=6)
    report = recover(model, PAIRS, ["audio_projector"], settings, held_out=PAIRS[:4])
    moved = {name for name, value in model[0].state_dict().items() if not torch.equal(value, before[name])}
    assert {components[name] for name in moved} <= {"audio_projector"}
    assert report.trained == 2 and bool(moved) == report.kept


@pytest.mark.parametrize("bf16", [False, True])
def test_specializing_a_native_model(tmp_path: Path, bf16: bool) -> None:
    model = qwen2_audio(tmp_path / "native")
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    components = component_names(model[0])
    settings = TrainingSettings(steps=2, batch_size=4, learning_rate=1e-2, warmup=0, bf16=bf16)
    specialize(model, PAIRS, ["backbone", "audio_projector"], settings)
    moved = {name for name, value in model[0].state_dict().items() if not torch.equal(value, before[name])}
    assert {components[name] for name in moved} == {"backbone", "audio_projector"}
    assert all(torch.isfinite(value).all() for value in model[0].state_dict().values() if value.is_floating_point())
