"""Spoken words by espeak-ng, as Opus; the voices that choose and those that test are never trained on."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import Any

import numpy as np

from taskmerge.errors import UsageError

RATE = 16_000
TRAIN_VOICES = ("en-us", "en-gb-scotland", "en-029")
VALIDATION_VOICE = "en-gb-x-gbclan"
TEST_VOICES = ("en-gb-x-rp", "en-gb-x-gbcwmd")
WORDS = (
    "apple river mountain yellow doctor window guitar planet coffee silver dragon summer winter castle bridge forest "
    "market hunter candle mirror rabbit tiger monkey camera engine rocket bottle basket hammer ladder needle pillow "
    "garden island jungle valley desert ocean thunder shadow whisper crystal orange purple violet scarlet seven eleven "
    "hundred quarter morning evening dinner kitchen teacher lawyer farmer captain pirate wizard knight turtle dolphin "
    "penguin spider banana cherry lemon tomato carrot pepper trumpet library museum station airport harbor village "
    "factory balloon"
).split()
_COMPRESSION = 0.95  # about 2 kB a word; at 1.0 the words sound broken
_QUIET, _TAIL = 0.01, RATE // 20


def check_speaker() -> None:
    """Raise UsageError if espeak-ng is missing."""
    if shutil.which("espeak-ng") is None:
        raise UsageError(
            "espeak-ng, which synthesises the spoken words, is not installed",
            next_move="install it (apt-get install espeak-ng, brew install espeak-ng), or leave out --from-scratch: "
            "recordings of the words are included",
        )


def spoken(text: str, voice: str, speed: int, pitch: int) -> bytes:
    """Return an Ogg Opus file, 16 kHz, without trailing silence. speed: words per minute; pitch: 0 to 99."""
    import soundfile
    import soxr

    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    samples, rate = soundfile.read(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout))
    wave = soxr.resample(samples, rate, RATE)
    wave = wave[: np.flatnonzero(np.abs(wave) > _QUIET)[-1] + _TAIL]
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="OGG", subtype="OPUS", compression_level=_COMPRESSION)
    return file.getvalue()


def make(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return rows {"audio": {"bytes", "path"}, "text"} of train, validation and test, from the seed."""
    check_speaker()
    rng = np.random.default_rng([seed, 1])
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, word: str, voice: str, speed: int, pitch: int) -> None:
        name = f"{word}-{voice}-{len(rows[split]):03d}.ogg"
        rows[split].append({"audio": {"bytes": spoken(word, voice, speed, pitch), "path": name}, "text": word})

    for word in WORDS:
        for voice in TRAIN_VOICES:
            for take in range(2):
                add("train", word, voice, 155 + 35 * take + int(rng.integers(-8, 9)), int(rng.integers(32, 69)))
        add("validation", word, VALIDATION_VOICE, int(rng.integers(155, 196)), int(rng.integers(38, 63)))
        for voice in TEST_VOICES:
            add("test", word, voice, int(rng.integers(160, 191)), int(rng.integers(40, 61)))
    return rows
