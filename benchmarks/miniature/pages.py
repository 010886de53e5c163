"""Page headings, one word each, set in real fonts; the test fonts are never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from drawing import speckled
from PIL import Image, ImageDraw, ImageFont
from words import WORDS

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique",  "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmtt10",
)  # fmt: skip
TEST_FONTS = ("DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneralBol", "cmss10")
HEIGHT, CELL = 32, 8


def make(folder: Path, seed: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl with PNG files beside them."""
    rng = np.random.default_rng([seed, 3])
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, text: str, font: str) -> None:
        name = f"{split}/{len(rows[split]):04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        set_in_type(text, font, rng).save(folder / name)
        rows[split].append({"document": name, "text": text})

    for number, text in enumerate(WORDS):
        for font in TRAIN_FONTS:
            add("train", text, font)
        add("validation", text, TRAIN_FONTS[int(rng.integers(len(TRAIN_FONTS)))])
        for take in range(2):
            add("test", text, TEST_FONTS[(number + take) % len(TEST_FONTS)])
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def set_in_type(text: str, font: str, rng: np.random.Generator) -> Image.Image:
    """One line of type as a typewriter sets it, every letter in a cell of its own, CELL x HEIGHT pixels."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    type_face = ImageFont.truetype(str(file), int(rng.integers(21, 25)))
    ink, paper = int(rng.integers(0, 70)), int(rng.integers(225, 256))
    wide = Image.new("RGB", (2 * CELL * len(text), HEIGHT), (paper, paper, paper))
    pen, baseline = ImageDraw.Draw(wide), 23 + int(rng.integers(-1, 2))
    shift = int(rng.integers(-1, 2))
    for place, letter in enumerate(text):
        pen.text((CELL * (2 * place + 1) + shift, baseline), letter, font=type_face, fill=(ink, ink, ink), anchor="ms")
    return speckled(wide.resize((CELL * len(text), HEIGHT), Image.Resampling.BILINEAR), rng)
