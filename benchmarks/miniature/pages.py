"""Page headings in real fonts; the test fonts, and a fifth of the test headings, are never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from drawing import speckled
from PIL import Image, ImageDraw, ImageFont

KINDS = (
    "annual report", "train ticket", "lease contract", "tax form", "school diploma", "travel guide", "dinner menu",
    "music score", "patient record", "weather chart", "court ruling", "shopping list",
)  # fmt: skip
PLACES = ("Lisbon", "Oslo", "Cairo", "Kyoto", "Lima", "Dublin", "Prague", "Nairobi", "Quebec", "Jakarta")
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansDisplay", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmtt10",
)  # fmt: skip
TEST_FONTS = ("DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneralBol", "cmss10")
HEIGHT, WIDEST = 32, 160


def make(folder: Path, seed: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl with PNG files beside them."""
    rng = np.random.default_rng([seed, 3])
    headings = [f"{kind} {place}" for kind in KINDS for place in PLACES]
    headings = [headings[index] for index in rng.permutation(len(headings))]
    unseen = len(headings) // 5
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, text: str, font: str) -> None:
        name = f"{split}/{len(rows[split]):04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        set_in_type(text, font, rng).save(folder / name)
        rows[split].append({"document": name, "text": text})

    for text in headings[unseen:]:
        for font in TRAIN_FONTS:
            add("train", text, font)
        add("validation", text, TRAIN_FONTS[int(rng.integers(len(TRAIN_FONTS)))])
    for number, text in enumerate(headings):
        for take in range(2):
            add("test", text, TEST_FONTS[(number + take) % len(TEST_FONTS)])
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def set_in_type(text: str, font: str, rng: np.random.Generator) -> Image.Image:
    """One line of type, HEIGHT pixels tall, as wide as it needs, at most WIDEST."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    size = int(rng.integers(12, 16))
    type_face = ImageFont.truetype(str(file), size)
    while size > 6 and type_face.getlength(text) > WIDEST - 8:
        size -= 1
        type_face = ImageFont.truetype(str(file), size)
    ink, paper = int(rng.integers(0, 70)), int(rng.integers(225, 256))
    picture = Image.new("RGB", (WIDEST, HEIGHT), (paper, paper, paper))
    place = (int(rng.integers(1, 7)), int(rng.integers(4, 12)))
    ImageDraw.Draw(picture).text(place, text, font=type_face, fill=(ink, ink, ink))
    return speckled(picture, rng)
