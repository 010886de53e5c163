"""Spoken words and phrases by espeak-ng: several voices, speeds and pitches; the test voices are never trained on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import soundfile
from words import PHRASES, WORDS

TRAIN_VOICES = ("en-us", "en-gb-scotland", "en-029")
TEST_VOICES = ("en-gb-x-rp", "en-gb-x-gbcwmd")
TEXTS = (*WORDS, *PHRASES)


def say(text: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, int]:
    """(samples, sampling rate). speed: words per minute; pitch: 0 to 99."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    return soundfile.read(io.BytesIO(spoken), dtype="float32")


def make(folder: Path, seed: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl with FLAC files beside them. Speeds and pitches follow the seed."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is missing: apt-get install espeak-ng")
    rng = np.random.default_rng([seed, 1])
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for number, text in enumerate(TEXTS):
        for voice in TRAIN_VOICES:
            for take in range(3):
                speed, pitch = 150 + 25 * take + int(rng.integers(-8, 9)), 35 + 15 * take + int(rng.integers(-6, 7))
                split = "train"
                rows[split].append(_record(folder, f"{split}/{number:03d}-{voice}-{take}", text, voice, speed, pitch))
        voice = TRAIN_VOICES[number % len(TRAIN_VOICES)]
        rows["validation"].append(
            _record(
                folder, f"validation/{number:03d}", text, voice, int(rng.integers(155, 196)), int(rng.integers(38, 63))
            )
        )
        for voice in TEST_VOICES:
            speed, pitch = int(rng.integers(160, 191)), int(rng.integers(40, 61))
            rows["test"].append(_record(folder, f"test/{number:03d}-{voice}", text, voice, speed, pitch))
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _record(folder: Path, name: str, text: str, voice: str, speed: int, pitch: int) -> dict[str, str]:
    file = folder / f"{name}.flac"
    file.parent.mkdir(parents=True, exist_ok=True)
    samples, rate = say(text, voice, speed, pitch)
    soundfile.write(file, samples, rate)
    return {"audio": f"{name}.flac", "text": text}
