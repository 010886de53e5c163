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

from taskmerge.embedders import open_embedder
from taskmerge.embedders.anatomy import components_of
from taskmerge.measuring.drift import diagnose_drift
from taskmerge.training import LoraSettings, TrainingSettings, recover, specialize

PAIRS = [
    {"audio": {"array": tone(300 * 1.5**number + take, 0.3), "sampling_rate": 16000}, "text": f"sound of {name}"}
    for take in range(4)
    for number, name in enumerate(("dog", "cat", "bird", "rain"))
]


def test_recovery_of_a_native_projector(tmp_path: Path) -> None:
    model = qwen2_audio(tmp_path / "native")
    settings = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup=0, evaluate_every=6)
    reports = []
    stage = lambda: reports.append(recover(model, PAIRS, ["audio_projector"], settings, held_out=PAIRS[:4]))  # noqa: E731
    changed = trained(model, stage)
    assert changed <= {"audio_projector"}
    assert reports[0].trained == 2 and bool(changed) == reports[0].kept


@pytest.mark.parametrize("bf16", [False, True])
def test_specializing_a_native_model(tmp_path: Path, bf16: bool) -> None:
    model = qwen2_audio(tmp_path / "native")
    settings = TrainingSettings(steps=2, batch_size=4, learning_rate=1e-2, warmup=0, bf16=bf16)
    changed = trained(model, lambda: specialize(model, PAIRS, ["backbone", "audio_projector"], settings))
    assert changed == {"backbone", "audio_projector"}


def test_lora_on_a_native_model_moves_its_backbone_alone(tmp_path: Path) -> None:
    model = qwen2_audio(tmp_path / "native")
    settings = replace(SETTINGS, lora=LoraSettings(rank=4, scale=8.0))
    assert trained(model, lambda: specialize(model, PAIRS, ["backbone"], settings)) == {"backbone"}
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "lora" in name]


def test_by_default_a_native_model_learns_backbone_and_the_datas_towers(tmp_path: Path) -> None:
    model = qwen2_audio(tmp_path / "native")
    changed = trained(model, lambda: specialize(model, PAIRS, None, SETTINGS))
    assert changed == {"backbone", "audio_encoder", "audio_projector"}


SETTINGS = TrainingSettings(steps=2, batch_size=4, learning_rate=1e-2, warmup=0, evaluate_every=2)


def own_pairs(modality: str) -> list[dict[str, Any]]:
    if modality == "audio":
        return PAIRS
    return [
        {"image": picture(15 * number, 32 + 8 * (number % 4)), "text": PAIRS[number]["text"]} for number in range(16)
    ]


def trained(model: Any, stage: Callable[[], Any]) -> set[str]:
    """The components whose tensors a stage changed."""
    embedder = open_embedder(model)
    before = {name: value.detach().clone() for name, value in embedder.state_dict.values.items()}
    components = components_of(embedder.state_dict)
    stage()
    after = embedder.state_dict.values
    assert all(torch.isfinite(value).all() for value in model.parameters())  # buffers may hold ±inf
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
