"""Pictures: two drawn objects, or two handwritten digits. Half the test captions are never trained on."""

from __future__ import annotations

import io
from itertools import permutations
from typing import Any

import numpy as np

WIDTH, HEIGHT = 64, 32
COLOURS = {
    "red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 210),
    "yellow": (235, 200, 30), "purple": (140, 50, 170), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCENES, PAIRS = 240, 80
UNSEEN_SCENES, UNSEEN_PAIRS = 40, 20


def make(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows {"image": {"bytes", "path"}, "text"} of train, validation and test."""
    rng = np.random.default_rng([seed, 2])
    objects = list(permutations(OBJECTS, 2))
    scenes = [objects[index] for index in rng.permutation(len(objects))[: SCENES + UNSEEN_SCENES]]
    pairs = [(int(index) // 10, int(index) % 10) for index in rng.permutation(PAIRS + UNSEEN_PAIRS)]
    handwriting = Handwriting(rng)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, picture: Any, text: str) -> None:
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        name = f"{text.replace(', ', '-').replace(' ', '-')}-{len(rows[split]):03d}.png"
        rows[split].append({"image": {"bytes": file.getvalue(), "path": name}, "text": text})

    def add_scene(split: str, scene: tuple[str, str]) -> None:
        add(split, draw(scene, rng), f"{scene[0]}, {scene[1]}")

    def add_pair(split: str, pair: tuple[int, int]) -> None:
        add(split, handwriting.write(pair, split), f"digits {DIGITS[pair[0]]} {DIGITS[pair[1]]}")

    for scene in scenes[UNSEEN_SCENES:]:
        add_scene("train", scene)
    for pair in 2 * pairs[UNSEEN_PAIRS:]:
        add_pair("train", pair)
    for scene in scenes[UNSEEN_SCENES::6]:
        add_scene("validation", scene)
    for pair in pairs[UNSEEN_PAIRS::4]:
        add_pair("validation", pair)
    for scene in scenes[: 2 * UNSEEN_SCENES]:
        add_scene("test", scene)
    for pair in pairs[: 2 * UNSEEN_PAIRS]:
        add_pair("test", pair)
    return rows


def draw(scene: tuple[str, str], rng: np.random.Generator) -> Any:
    """An RGB picture of e.g. ("red circle", "blue ring"), side by side on a light ground."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(value) for value in rng.integers(225, 256, 3)))
    pen = ImageDraw.Draw(picture)
    for index, name in enumerate(scene):
        x, y = 16 + 32 * index + rng.uniform(-3, 3), HEIGHT / 2 + rng.uniform(-3, 3)
        _draw_object(pen, name, x, y, rng.uniform(17, 24) / 2)
    return picture


def _draw_object(pen: Any, name: str, x: float, y: float, half: float) -> None:
    colour, shape = name.split()
    fill, box, width = COLOURS[colour], (x - half, y - half, x + half, y + half), max(2, round(half / 3))
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=width)
    else:
        pen.line((x - half, y - half, x + half, y + half), fill=fill, width=width)
        pen.line((x - half, y + half, x + half, y - half), fill=fill, width=width)


class Handwriting:
    """scikit-learn's handwritten digits; the last third of each digit's pictures is for tests only."""

    def __init__(self, rng: np.random.Generator) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.pictures = [digits.images[digits.target == number] for number in range(10)]
        self.rng = rng

    def write(self, pair: tuple[int, int], split: str) -> Any:
        """A grey picture of two digits, black on white."""
        from PIL import Image

        picture = Image.new("L", (WIDTH, HEIGHT), "white")
        for index, number in enumerate(pair):
            glyph, size = self._glyph(number, split), int(self.rng.integers(26, 31))
            place = (1 + 32 * index + int(self.rng.integers(0, 3)), int(self.rng.integers(0, 4)))
            picture.paste(glyph.resize((size, size), Image.Resampling.BICUBIC), place)
        return picture

    def _glyph(self, number: int, split: str) -> Any:
        from PIL import Image

        pictures = self.pictures[number]
        border = 2 * len(pictures) // 3
        chosen = self.rng.integers(border, len(pictures)) if split == "test" else self.rng.integers(border)
        return Image.fromarray((255 - np.clip(pictures[chosen] * 16, 0, 255)).astype(np.uint8))
