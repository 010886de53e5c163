"""The sets of one seed: .jsonl files over recordings, pages and pictures that all seeds share."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pages
import stamps
from PIL import Image
from stamps import TRAINED, UNHEARD, Stamp

Row = dict[str, Any]
SIDE = 64
"""Pixels of a picture's longer side."""
PAGES = {"train": 6, "search": 4, "confirm": 4}
VIEWS = {"train": 4, "search": 2, "confirm": 2}
"""Pages of each caption and views of each picture, where there is more than one."""
VOICES = 2
"""Recordings of each stamp's caption in a set, of the four there are: encoding them is most of a first run."""
MOST = {"validation": 200, "test": 200, "unseen": 120, "unheard": 120}
"""Stamps of a set that judges, at random."""
SETS = {
    "audio": ("train", "validation", "test", "unheard"),
    "document": ("train", "validation", "test"),
    "image": ("train", "validation", "test", "unseen"),
}
"""test: captions that nothing was trained on, but for pictures: an encoder from scratch on 450 pictures knows no other,
so that their test holds views never trained on of pictures that were. `unseen`: pictures of the test's captions."""


SEARCHED = {"document": ("search", "confirm"), "image": ("search", "confirm")}
"""More pages and views of what `validation` and `test` show: a search compares models that differ by little."""
CAPTIONS = {"unseen": "test", "search": "validation", "confirm": "test"}
"""Whose captions a set shows, where it is not those of its own name."""


def make(
    folder: Path, seed: int, work: Path, debian: Path, sets: Mapping[str, Sequence[str]] = MappingProxyType(SETS)
) -> None:
    """Write folder/MODALITY/SPLIT.jsonl; what they name is made under `work` where it is not there yet."""
    parts = stamps.split(stamps.read(debian), seed)
    makers = {"audio": _audio, "document": _documents, "image": _pictures}
    fonts = pages.fonts(debian)
    for modality, splits in sets.items():
        for split in splits:
            rows = list(makers[modality](parts, split, random.Random(f"{seed} {modality} {split}"), work, fonts))
            _write(folder / modality / f"{split}.jsonl", rows)


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _audio(parts: Any, split: str, draw: random.Random, work: Path, fonts: Any) -> Iterator[Row]:
    languages: Sequence[str] = (UNHEARD,) if split == "unheard" else TRAINED
    wanted = draw.sample(parts["test"], MOST[split]) if split == "unheard" else parts[split]
    for stamp in wanted:
        for language in draw.sample(languages, min(VOICES, len(languages))):
            if (sound := stamps.recording(stamp, language, work / "speech")) is not None:
                yield {"audio": str(sound), "text": stamp.caption, "group": language}


def _documents(parts: Any, split: str, draw: random.Random, work: Path, fonts: Any) -> Iterator[Row]:
    source = CAPTIONS.get(split, split)
    captions = dict.fromkeys(stamp.caption for stamp in parts[source] if len(stamp.caption) <= pages.LONGEST)
    known = pages.TEST_FONTS if source == "test" else pages.TRAIN_FONTS
    for caption in captions:
        for font in draw.sample(known, PAGES.get(split, 1)):
            out = work / "pages" / split / f"{draw.getrandbits(64):016x}.png"
            yield {"document": str(pages.page(caption, fonts[font], draw, out)), "text": caption}


def _pictures(parts: Any, split: str, draw: random.Random, work: Path, fonts: Any) -> Iterator[Row]:
    wanted: list[Stamp] = parts["test" if split == "unseen" else "train"]
    wanted = [stamp for stamp in wanted if stamp.picture is not None]
    for stamp in draw.sample(wanted, min(MOST[split], len(wanted))) if split in MOST else wanted:
        for _ in range(VIEWS.get(split, 1)):
            yield {"image": str(_view(stamp, draw, work / "views")), "text": stamp.caption}


def _view(stamp: Stamp, draw: random.Random, folder: Path) -> Path:
    """A picture on white paper, cropped, mirrored and turned a little."""
    box = [draw.uniform(0, 0.12) for _ in range(4)]
    mirrored, angle, name = draw.random() < 0.5, draw.uniform(-8, 8), f"{draw.getrandbits(64):016x}.png"
    out = folder / name
    if out.is_file() or stamp.picture is None:
        return out
    with Image.open(stamp.picture) as stored:
        shown = stored.convert("RGBA")
    shown.thumbnail((2 * SIDE, 2 * SIDE))
    paper = Image.new("RGBA", shown.size, "white")
    paper.alpha_composite(shown)
    turned = paper.convert("RGB").rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
    left, top, right, bottom = box
    width, height = turned.size
    cut = turned.crop((int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height)))
    if mirrored:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut.thumbnail((SIDE, SIDE))
    out.parent.mkdir(parents=True, exist_ok=True)
    cut.save(out)
    return out
