"""Captions, pictures and speech of tuxpaint-stamps-default, and splits of them that mean something.

Of 952 stamps 805 have a different caption; several stamps of one caption always stand on one side of a split. Texts are
split for all modalities alike: a caption of the test is in no training set of any specialist.

- TRAINED languages: their speakers are heard in training, recovery and rehearsal.
- UNHEARD: its speaker is in no training set; the test asks for captions and a voice that nothing was trained on.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TRAINED = ("bg", "es", "fr", "ru")
UNHEARD = "ca"
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Of the distinct captions."""
LONGEST_CAPTION = 12
"""Words. Longer captions, one in forty, are left out: they make every batch they are in as long as they are."""
RATE = 16_000


@dataclass(frozen=True)
class Stamp:
    """One stamp. speech: language -> recording of its caption; picture: None for a stamp without a PNG."""

    key: str
    caption: str
    picture: Path | None
    speech: Mapping[str, Path]


def read(debian: Path) -> list[Stamp]:
    """All stamps with a caption of at most `LONGEST_CAPTION` words, by name."""
    root = debian / "usr/share/tuxpaint/stamps"
    speech: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in root.rglob("*_desc_*.ogg"):
        if found := re.fullmatch(r"(.+)_desc_([a-z]+)", file.stem):
            speech[file.with_name(found[1])][found[2]] = file
    stamps = []
    for file in sorted(root.rglob("*.txt")):
        lines = [line.strip() for line in file.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        if lines and len(lines[0].split()) <= LONGEST_CAPTION:
            key, picture = file.with_suffix(""), file.with_suffix(".png")
            own = picture if picture.is_file() else None
            stamps.append(Stamp(str(key.relative_to(root)), lines[0], own, speech.get(key, {})))
    return stamps


def split(stamps: Iterable[Stamp], seed: int) -> dict[str, list[Stamp]]:
    """{"train", "validation", "test"}: by caption, however often it occurs and however it is spelled."""
    from taskmerge.embedders.pairs import spelling

    by_caption: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        by_caption[spelling(stamp.caption)].append(stamp)
    captions = sorted(by_caption)
    random.Random(seed).shuffle(captions)
    found: dict[str, list[Stamp]] = {}
    start = 0
    for name, share in SHARES.items():
        stop = len(captions) if name == "test" else start + round(share * len(captions))
        found[name] = [stamp for caption in captions[start:stop] for stamp in by_caption[caption]]
        start = stop
    return found


def recording(stamp: Stamp, language: str, folder: Path) -> Path | None:
    """A stamp's caption spoken, at 16 kHz without the silence around it; made once. None without one."""
    source = stamp.speech.get(language)
    if source is None:
        return None
    out = folder / language / f"{stamp.key}.flac"
    if not out.is_file():
        import soundfile

        out.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out, _spoken(source), RATE)
    return out


def _spoken(source: Path):  # type: ignore[no-untyped-def]
    """Samples at `RATE` from the first to the last that is louder than a fiftieth of the loudest, and 0.1 s beside."""
    import numpy as np

    from taskmerge.embedders.media import load_audio

    samples = load_audio(source, RATE)
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() / 50)
    beside = RATE // 10
    return samples[max(loud[0] - beside, 0) : loud[-1] + beside] if len(loud) else samples
