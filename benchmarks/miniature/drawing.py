"""Shapes, colours and handwritten digits: what the pictures and films are drawn with."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

COLOURS = {
    "red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 210),
    "yellow": (235, 200, 30), "purple": (140, 50, 170), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A light, slightly tinted ground."""
    return Image.new("RGB", (width, height), tuple(int(value) for value in rng.integers(225, 256, 3)))


def draw_object(picture: Image.Image, name: str, x: float, y: float, size: float) -> None:
    """Draws e.g. "red circle" centred at (x, y), `size` pixels wide."""
    colour, shape = name.split()
    fill, half = COLOURS[colour], size / 2
    box = (x - half, y - half, x + half, y + half)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=max(2, round(size / 6)))
    else:
        pen.line((x - half, y - half, x + half, y + half), fill=fill, width=max(2, round(size / 5)))
        pen.line((x - half, y + half, x + half, y - half), fill=fill, width=max(2, round(size / 5)))


def speckled(picture: Image.Image, rng: np.random.Generator, strength: float = 8.0) -> Image.Image:
    """The picture with Gaussian noise on its 8-bit values."""
    values = np.asarray(picture, dtype=np.float32)
    return Image.fromarray(np.clip(values + rng.normal(0, strength, values.shape), 0, 255).astype(np.uint8))


class Handwriting:
    """scikit-learn's handwritten digits; the last third of each digit's pictures is for tests only."""

    def __init__(self) -> None:
        digits = load_digits()
        self.pictures = [digits.images[digits.target == number] for number in range(10)]

    def glyph(self, number: int, split: str, size: int, rng: np.random.Generator) -> Image.Image:
        """A black-on-white digit, `size` pixels square."""
        pictures = self.pictures[number]
        border = 2 * len(pictures) // 3
        chosen = rng.integers(border) if split != "test" else rng.integers(border, len(pictures))
        values = 255 - np.clip(pictures[chosen] * 16, 0, 255)
        return Image.fromarray(values.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
