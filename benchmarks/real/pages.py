"""Pages: captions set in Debian's fonts, the test's fonts never trained on."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "LiberationSans-Regular", "LiberationSans-Bold",
    "LiberationSerif-Regular", "LiberationSerif-Italic", "LiberationMono-Regular", "Carlito-Regular",
    "ComicNeue-Regular", "Courier Prime", "Cabin-Regular", "Cantarell-Regular", "Inconsolata",
)  # fmt: skip
TEST_FONTS = ("DejaVuSerif-Bold", "LiberationSerif-Bold", "Carlito-Bold", "Dosis-Medium")
HEIGHT, CELL = 32, 8
LONGEST = 16
"""Letters of a caption that is set; longer ones make no page."""


def fonts(debian: Path) -> dict[str, Path]:
    """Every scalable font there is, by the name of its file."""
    found = {path.stem: path for path in sorted(debian.rglob("usr/share/fonts/**/*.[to]tf"))}
    if missing := [name for name in (*TRAIN_FONTS, *TEST_FONTS) if name not in found]:
        raise SystemExit(f"fonts that are not in the packages: {', '.join(missing)}; there are: {', '.join(found)}")
    return found


def page(text: str, font: Path, draw: random.Random, out: Path) -> Path:
    """One line as a typewriter sets it, every letter in a cell of its own; made once."""
    size, ink, paper = draw.randint(21, 24), draw.randint(0, 70), draw.randint(225, 255)
    baseline, shift = 23 + draw.randint(-1, 1), draw.randint(-1, 1)
    if out.is_file():
        return out
    face = ImageFont.truetype(str(font), size)
    wide = Image.new("L", (2 * CELL * len(text), HEIGHT), paper)
    pen = ImageDraw.Draw(wide)
    for place, letter in enumerate(text):
        pen.text((CELL * (2 * place + 1) + shift, baseline), letter, font=face, fill=ink, anchor="ms")
    out.parent.mkdir(parents=True, exist_ok=True)
    wide.resize((CELL * len(text), HEIGHT), Image.Resampling.BILINEAR).save(out)
    return out
