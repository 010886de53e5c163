"""The ready recipe: a Qwen3-VL base, three visual LoRA specialists, an audio specialist of a class of its own.

Everything is tiny and random; what is checked is that every stage runs on all modalities and what moves.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import EXAMPLES, hearing_specialist
from omni_models import WORDS, tone
from places import ROOT
from safetensors.torch import load_file
from vision_models import film, vision_model

from taskmerge.pipeline import run
from taskmerge.recipes import loads

RECIPE = (ROOT / "merge_configs" / "omni_audio_graft.yaml").read_text("utf-8")
QUICK = (
    RECIPE.replace("steps: 2000", "steps: 4")
    .replace("lr: 1.0e-5", "lr: 1.0e-5\n  batch_size: 8")
    .replace("method: auto}", "method: auto, steps: 8, batch_size: 8}")
    .replace("{audio: data/audio_test.jsonl, image: data/image_test.jsonl}",
             "{audio: data/audio_test.jsonl, image: data/image_test.jsonl, video: data/video_pairs.jsonl, "
             "document: data/document_pairs.jsonl}")
)  # fmt: skip


def text_of(number: int) -> str:
    words = WORDS[3:]
    return f"{words[number % 9]} {words[(number // 9 + 3 * number) % 9]} {words[(5 * number + 1) % 9]}"


def lora_specialist(base: Path, folder: Path, seed: int) -> None:
    """A PEFT adapter on the language model, as training leaves it: both factors moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    where = r".*language_model.*\.(q_proj|v_proj|up_proj|down_proj)"
    model: Any = get_peft_model(
        Qwen3VLForConditionalGeneration.from_pretrained(base), LoraConfig(r=4, target_modules=where)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)


def write_data(folder: Path) -> None:
    import soundfile
    from PIL import Image

    folder.mkdir()

    def sound(number: int) -> str:
        soundfile.write(folder / f"{number}.wav", tone(150 + 40 * number, 0.5), 16000)
        return f"{number}.wav"

    def picture(number: int) -> str:
        values = np.random.default_rng(number).integers(0, 255, (16, 24, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        return f"{number}.png"

    def frames(number: int) -> str:
        (folder / f"film{number}").mkdir(exist_ok=True)
        for index, frame in enumerate(film(4, number)):
            Image.fromarray(frame).save(folder / f"film{number}" / f"{index}.png")
        return f"film{number}"

    def rows(name: str, column: str, make: Any, count: int, first: int = 0) -> None:
        lines = [json.dumps({column: make(i), "text": text_of(i)}) for i in range(first, first + count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    rows("audio_probes", "audio", sound, 12)
    rows("audio_test", "audio", sound, 12)
    rows("audio_pairs", "audio", sound, 48, 12)
    rows("image_test", "image", picture, 12)
    rows("image_pairs", "image", picture, 48, 12)
    rows("document_pairs", "document", picture, 48, 20)
    rows("video_pairs", "video", frames, 48)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("omni")
    base = vision_model("Qwen3-VL", folder / "Qwen" / "Qwen3-VL-8B-Instruct")
    for seed, name in enumerate(("image", "video", "document")):
        lora_specialist(base, folder / "models" / name, seed)
    hearing_specialist(base, folder / "models" / "audio")
    shutil.copy(EXAMPLES / "hearing_model.py", folder / "my_model.py")
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def table(project: Path) -> dict[str, Any]:
    return run(loads(QUICK, "omni.yaml", project), say=lambda _: None)


def test_every_stage_runs(table: dict[str, Any]) -> None:
    assert set(table["stages"]) == {"fuse", "diagnose", "recover", "rehearse", "evaluate"}
    assert table["stages"]["fuse"]["components"]["audio_encoder"] == {"copy": 22}
    assert table["stages"]["fuse"]["components"]["audio_projector"] == {"copy": 4}
    assert "audio" in table["stages"]["diagnose"]["modalities"]


def test_no_table_is_empty(table: dict[str, Any]) -> None:
    rows = table["stages"]["evaluate"]["retrieval"]["results"]
    scored = {(row["variant"], row["set_name"]) for row in rows}
    sets = ("audio", "image", "video", "document")
    for variant in ("fused", "recovered", "rehearsed", "specialist audio"):
        assert {(variant, name) for name in sets} <= scored
    assert {("base", "image"), ("base", "video")} <= scored  # the base has eyes of its own
    assert all(np.isfinite(found["estimate"]) for row in rows for found in row["intervals"].values())


def test_what_is_frozen_is_identical(project: Path, table: dict[str, Any]) -> None:
    fused, recovered, rehearsed = (
        load_file(project / "out" / name / "model.safetensors") for name in ("omni", "omni-recovered", "omni-rehearsed")
    )
    audio = load_file(project / "models" / "audio" / "model.safetensors")
    for name in audio:
        if name.startswith(("whisper.", "audio_mlp.")):
            assert torch.equal(fused[name], audio[name].to(fused[name].dtype)), name
    assert fused.keys() == recovered.keys() == rehearsed.keys()
    moved = {name for name in fused if not torch.equal(fused[name], recovered[name])}
    assert all(name.startswith("audio_mlp.") for name in moved)
    moved = {name for name in fused if not torch.equal(recovered[name], rehearsed[name])}
    assert not any(name.startswith(("whisper.", "audio_mlp.")) for name in moved)


def test_the_sum_is_the_formula(project: Path, table: dict[str, Any]) -> None:
    """base + Σ weight · (scaling · B A) + 0.5 · (audio - base), float64 over the whole backbone, rounded once."""
    base = load_file(project / "Qwen" / "Qwen3-VL-8B-Instruct" / "model.safetensors")
    fused = load_file(project / "out" / "omni" / "model.safetensors")
    audio = load_file(project / "models" / "audio" / "model.safetensors")
    adapters = [
        load_file(project / "models" / name / "adapter_model.safetensors") for name in ("image", "video", "document")
    ]
    checked = 0
    for name, before in base.items():
        theirs = name.removeprefix("model.")
        if not theirs.startswith("language_model.layers."):
            continue
        total = before.double() + 0.5 * (audio[theirs].double() - before.double())
        for adapter in adapters:
            a = adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
            if a is not None:
                b = adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
                total += 0.3 * 2.0 * (b.double() @ a.double())  # alpha 8 / rank 4
        assert torch.equal(fused[theirs], total.to(torch.bfloat16)), name  # under the names of the class that holds it
        checked += 1
    assert checked > 20


@pytest.mark.slow
def test_the_recipe_as_it_stands(project: Path, tmp_path: Path) -> None:
    """Not a letter changed: 2,000 steps of rehearsal."""
    whole = tmp_path / "whole"
    shutil.copytree(project, whole, ignore=shutil.ignore_patterns("out"))
    stages = run(loads(RECIPE, "omni.yaml", whole), say=lambda _: None)["stages"]
    assert stages["rehearse"]["steps"] == 2000 and stages["evaluate"]["retrieval"]["results"]


def distinct_sounds(count: int) -> list[dict[str, Any]]:
    words = [f"{a} {b}" for a in WORDS[3:] for b in WORDS[3:]]
    return [
        {"audio": {"array": tone(120 * 1.03**i, 0.5), "sampling_rate": 16000}, "text": words[i]} for i in range(count)
    ]


@pytest.mark.slow
def test_a_trained_specialist_drifts_and_is_recovered(project: Path, tmp_path: Path) -> None:
    """It finds 64 sounds that it was trained on; a visual task vector moves its backbone; its projector follows."""
    from safetensors.torch import save_file

    from taskmerge import ModelSource, TrainingSettings, diagnose_drift, fuse, open_embedder, recover, specialize

    base, load = project / "Qwen" / "Qwen3-VL-8B-Instruct", str(project / "my_model.py") + ":load"
    pairs = distinct_sounds(64)
    settings = TrainingSettings(steps=400, batch_size=32, learning_rate=3e-3, evaluate_every=50, temperature=0.05)
    untrained = open_embedder(project / "models" / "audio", embedder=load)
    every = ["backbone", "audio_encoder", "audio_projector"]
    specialize(untrained, pairs, every, settings, held_out=pairs, out=tmp_path / "audio")
    shutil.copytree(base, tmp_path / "image")
    torch.manual_seed(1)
    moved = {
        name: value + 0.06 * torch.randn_like(value) if "language_model.layers" in name else value
        for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(moved, tmp_path / "image" / "model.safetensors", {"format": "pt"})
    sources = {"image": str(tmp_path / "image"), "audio": str(tmp_path / "audio")}
    fuse(str(base), sources, "task_arithmetic", weights={"image": 1.0, "audio": 1.0}).save(tmp_path / "fused")
    specialist, fused = (ModelSource(tmp_path / name, load) for name in ("audio", "fused"))
    found = diagnose_drift(fused, specialist, base=str(base), probes=pairs).modalities["audio"]
    assert found.verdict.outcome == "drifted" and found.control.identical
    before = found.scores["fused"]["recall_at_1"]
    settings = TrainingSettings(steps=400, batch_size=32, learning_rate=1e-2, evaluate_every=50)
    recover(open_embedder(fused), pairs, ["audio_projector"], settings, held_out=pairs, out=tmp_path / "recovered")
    recovered = ModelSource(tmp_path / "recovered", load)
    again = diagnose_drift(recovered, specialist, base=str(base), probes=pairs).modalities["audio"]
    assert again.scores["fused"]["recall_at_1"] >= 2 * before > 0  # a tiny random ear: much, not all, comes back
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("fused", "recovered"))
    assert {name.partition(".")[0] for name in first if not torch.equal(first[name], last[name])} == {"audio_mlp"}
