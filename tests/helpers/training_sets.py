"""Small sets of sounds and pictures to train on, and what a trained folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from omni_models import picture, tone
from safetensors.numpy import load_file

NAMES = ("dog", "cat", "bird", "rain", "red", "blue", "left", "right")


def tones(folder: Path, takes: int, seed: int = 0) -> Path:
    """A .jsonl of FLAC tones, one pitch a word, with jitter and noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for take in range(takes):
        for number, name in enumerate(NAMES):
            wave = tone(200 * 1.35**number * rng.uniform(0.99, 1.01)) + rng.normal(0, 0.01, 6400).astype(np.float32)
            soundfile.write(folder / f"{name}{take}.flac", wave, 16000)
            lines.append(json.dumps({"audio": f"{name}{take}.flac", "text": f"sound of {name}"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


def shades(takes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of eight shades and their texts."""
    rng = np.random.default_rng(seed)
    return [
        {"image": picture(int(np.clip(30 * number + rng.integers(-4, 5), 0, 255))), "text": f"a {name}"}
        for _ in range(takes)
        for number, name in enumerate(NAMES)
    ]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")
