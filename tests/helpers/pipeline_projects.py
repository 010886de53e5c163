"""A whole recipe on tiny models: base, sounds and pairs, none of it trained yet."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni_models import WORDS, tiny_backbone, tone

from taskmerge.embedders import graft
from taskmerge.pipeline import run
from taskmerge.recipes import loads

TEXTS = WORDS[1:9]
RECIPE = """\
base: base
specialists:
  audio: {model: specialist-audio, weight: 0.5}
  text: {model: specialist-text, weight: 0.5}
specialize:
  audio: {data: audio.jsonl, graft: {encoder: log_mel, projector: linear}, steps: 3, batch_size: 4, lr: 1e-3}
  text: {data: text.jsonl, train: [backbone], steps: 2, batch_size: 4}
output: {path: fused}
drift: {specialist: audio, probes: audio.jsonl}
recover: {train: [audio_projector], data: audio.jsonl, held_out: held.jsonl, method: gradient, steps: 2, batch_size: 4}
rehearse:
  train: [backbone]
  data: {audio: audio.jsonl, text: text.jsonl}
  held_out: {audio: held.jsonl}
  steps: 2
  batch_size: 4
evaluate: {retrieval: {audio: held.jsonl}}
"""


def base_model(folder: Path) -> None:
    """A tiny text backbone that sees: what specialists start from."""
    graft(tiny_backbone(folder.with_name("backbone")), "image", "patches", "linear", folder)


def write_sound(path: Path, pitch: float, seconds: float = 0.4, rate: int = 16000) -> None:
    samples = (16000 * tone(pitch, seconds, rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def new_project(folder: Path, make_base: Callable[[Path], object] = base_model) -> Path:
    """Base, sounds and pairs of a recipe, none of it trained yet."""
    folder.mkdir(exist_ok=True)
    make_base(folder / "base")
    rows = []
    for number, word in enumerate(TEXTS):
        write_sound(folder / f"{word}.wav", 300 + 200 * number)
        rows.append({"audio": f"{word}.wav", "text": f"a {word}"})
    (folder / "audio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    texts = [{"query": f"the {word}", "text": f"a {word}"} for word in TEXTS]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


def run_quietly(project: Path, text: str = RECIPE, **keywords: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return run(loads(text, "recipe.yaml", project), say=said.append, **keywords), said


def running(said: list[str]) -> list[str]:
    return [line.removesuffix(": running") for line in said if line.endswith(": running")]
