"""Models that own their towers go through the same training, by their component map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drift_models import moved, qwen2_audio
from native_models import NATIVE, native
from omni_models import picture, tone

from taskmerge.measuring.drift import diagnose_drift
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


SETTINGS = TrainingSettings(steps=2, batch_size=4, learning_rate=1e-2, warmup=0, evaluate_every=2)


def own_pairs(modality: str) -> list[dict[str, Any]]:
    if modality == "audio":
        return PAIRS
    return [
        {"image": picture(15 * number, 32 + 8 * (number % 4)), "text": PAIRS[number]["text"]} for number in range(16)
    ]


def trained(model: Any, stage: Callable[[], Any]) -> set[str]:
    """The components whose tensors a stage changed."""
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    components = component_names(model[0])
    stage()
    after = model[0].state_dict()
    assert all(torch.isfinite(value).all() for _, value in model[0].named_parameters())  # buffers may hold ±inf
    return {components[name] for name in before if not torch.equal(after[name], before[name])}


@pytest.mark.parametrize("name", NATIVE)
def test_every_architecture_is_specialized_recovered_and_diagnosed(name: str) -> None:
    model = native(name)
    pairs = own_pairs(NATIVE[name].modality)
    projector = "vision_projector" if NATIVE[name].modality == "image" else "audio_projector"
    assert trained(model, lambda: specialize(model, pairs, ["backbone", projector], SETTINGS)) == {
        "backbone",
        projector,
    }
    specialist = copy.deepcopy(model)
    settings = replace(SETTINGS, learning_rate=1e-3)
    changed = trained(model, lambda: recover(model, pairs, [projector], settings, held_out=pairs[:4]))
    assert changed <= {projector}
    fused = moved(specialist, 0.5)
    found = diagnose_drift(fused, specialist, None, pairs, batch_size=8).modalities[NATIVE[name].modality]
    assert found.control.identical and found.probes == 16 and len(found.depths) == 3
    assert found.depths[0].cosine == pytest.approx(1, abs=1e-5)  # what enters is the same; what is made of it is not
    assert found.depths[-1].cosine < 0.999
