"""The how-to pages, run as they stand on tiny stand-ins for the models and data that they name."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import search_projects
import torch
from executed_pages import FENCE
from pipeline_projects import TEXTS, write_sound
from places import ROOT
from safetensors.torch import load_file, save_file

from taskmerge.embedders import graft

Command = Callable[..., Any]
PAGES = sorted((ROOT / "docs").glob("how_to_*.md"))


def two_text_embedders(folder: Path) -> None:
    """models/base, law and code, and pairs."""
    search_projects.new_project(folder / "models")
    (folder / "data").mkdir()
    for path in (folder / "models").glob("*.jsonl"):
        path.rename(folder / "data" / path.name)


def checkpoints_of_a_run(folder: Path) -> None:
    two_text_embedders(folder)
    for seed, step in enumerate((100, 200, 300)):
        search_projects.specialist(folder / "models" / "base", folder / "run" / f"checkpoint-{step}", seed)


def merged_by_mergekit(folder: Path) -> None:
    """What mergekit would write stands in for what it wrote: TIES of the two by the formula, in float64."""
    two_text_embedders(folder)
    shutil.copytree(folder / "models" / "base", folder / "made_by_mergekit")
    base, law, code = (load_file(folder / "models" / name / "model.safetensors") for name in ("base", "law", "code"))
    merged = {name: _ties(base[name], [(0.6, law[name]), (0.4, code[name])]) for name in base}
    save_file(merged, folder / "made_by_mergekit" / "model.safetensors", {"format": "pt"})


def _ties(base: torch.Tensor, models: list[tuple[float, torch.Tensor]], density: float = 0.5) -> torch.Tensor:
    if not base.is_floating_point():
        return base
    kept = []
    for weight, model in models:
        delta = model.double() - base.double()
        count = max(1, int(density * delta.numel()))
        threshold = delta.float().abs().flatten().topk(count).values[-1]
        kept.append(weight * torch.where(delta.float().abs() >= threshold, delta, 0))
    elected = torch.where(torch.stack(kept).sum(0) >= 0, 1.0, -1.0)
    agree = [torch.where(delta.sign() == elected, delta, 0) for delta in kept]
    weights = torch.stack([w * (one != 0) for (w, _), one in zip(models, agree, strict=True)]).sum(0)
    return (base.double() + torch.stack(agree).sum(0) / weights.clamp(min=1e-12)).to(base.dtype)


def seeing_model_and_loras(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText
    from vision_models import vision_model

    base = vision_model("Qwen3-VL", folder / "models" / "qwen3-vl", dtype=torch.bfloat16)
    for seed, name in enumerate(("charts", "receipts")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), lora)
        model.save_pretrained(str(folder / "models" / f"{name}-lora"))


def sounds(folder: Path) -> None:
    """data/audio.jsonl and audio_test.jsonl: 8 words in 5 pitches each."""
    (folder / "data").mkdir(exist_ok=True)
    rows = []
    for (number, word), take in itertools.product(enumerate(TEXTS), range(5)):
        write_sound(folder / "data" / f"{word}{take}.wav", 300 + 200 * number + 10 * take)
        rows.append({"audio": f"{word}{take}.wav", "text": f"a {word}"})
    for name, some in (("audio", rows), ("audio_test", rows[::2])):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def backbone_and_whisper(folder: Path) -> None:
    from vision_models import whisper_folder

    two_text_embedders(folder)
    sounds(folder)
    shutil.copytree(folder / "models" / "law", folder / "models" / "text")
    whisper_folder(folder / "models" / "whisper")


def fused_with_audio(folder: Path) -> None:
    """An audio specialist whose backbone moved on in the fused model."""
    two_text_embedders(folder)
    sounds(folder)
    models = folder / "models"
    graft(models / "law", "audio", "log_mel", "linear", models / "audio")
    graft(models / "code", "audio", "log_mel", "linear", folder / "out" / "fused")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "how_to_bucket": two_text_embedders,
    "how_to_drift_report": fused_with_audio,
    "how_to_from_mergekit": merged_by_mergekit,
    "how_to_graft_audio": backbone_and_whisper,
    "how_to_loras": seeing_model_and_loras,
    "how_to_own_model": two_text_embedders,
    "how_to_search": two_text_embedders,
    "how_to_soups": checkpoints_of_a_run,
    "how_to_text_embedders": two_text_embedders,
}
ENDS = {"how_to_drift_report": (0, 3, 4)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_does_what_it_says(
    page: Path, folder: Path, command: Command, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    STAND_INS[page.stem](folder)
    if page.stem == "how_to_bucket":
        in_a_bucket(folder, request, monkeypatch)
    ran = 0
    for language, text in FENCE.findall(page.read_text("utf-8")):
        if language in ("yaml", "python") and (name := re.match(r"# (\w+\.(?:yaml|yml|py))\n", text)):
            (folder / name[1]).write_text(text)
        elif language == "console":
            for line in re.findall(r"^\$ (.*)", text, re.MULTILINE):
                words = shlex.split(line)
                assert words[0] == "taskmerge", line
                ended = command(*words[1:])
                assert ended.code in ENDS.get(page.stem, (0,)), f"{line}\n{ended.out}\n{ended.err}"
                ran += 1
        else:
            assert language == "sh", f"{language} blocks are not run: name the file, or write it as console"
    assert ran >= 1


def in_a_bucket(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models in a store of this machine, and nothing of them on its disk."""
    from s3_server import serving
    from store_runs import forget, upload

    begun = ExitStack()
    request.addfinalizer(begun.close)
    server = begun.enter_context(serving())
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget()
    upload(server, folder / "models", "models")
    shutil.rmtree(folder / "models")


def test_every_page_has_a_stand_in() -> None:
    assert {page.stem for page in PAGES} == set(STAND_INS)
