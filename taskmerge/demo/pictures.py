"""Pictures: two drawn objects, or two handwritten digits. Half the held-out captions are never trained on."""

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
SCENES, PAIRS = 400, 70
"""Captions trained on: of scenes, and of the hundred pairs of digits."""
UNSEEN = {"validation": (20, 10), "test": (40, 20)}
"""Captions of scenes and pairs that only this split has; it has as many again that are trained on."""
TAKES = {"train": (2, 4), "validation": (2, 2), "test": (2, 2)}
"""Pictures of each scene and each pair."""
Scene = tuple[str, str]
Pair = tuple[int, int]


def make(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return rows {"image": {"bytes", "path"}, "text"} of train, validation and test."""
    rng = np.random.default_rng([seed, 2])
    handwriting = Handwriting(rng)

    def row(split: str, number: int, picture: Any, text: str) -> dict[str, Any]:
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        name = f"{split}-{number:04d}.png"
        return {"image": {"bytes": file.getvalue(), "path": name}, "text": text}

    def rows(split: str, scenes: list[Scene], pairs: list[Pair]) -> list[dict[str, Any]]:
        of_scene, of_pair = TAKES[split]
        drawn = [(draw(scene, rng), f"{scene[0]}, {scene[1]}") for scene in scenes for _ in range(of_scene)]
        for pair in pairs:
            caption = f"digits {DIGITS[pair[0]]} {DIGITS[pair[1]]}"
            drawn += [(handwriting.write(pair, split), caption) for _ in range(of_pair)]
        return [row(split, number, picture, text) for number, (picture, text) in enumerate(drawn)]

    return {split: rows(split, *captions) for split, captions in _captions(rng).items()}


def _captions(rng: np.random.Generator) -> dict[str, tuple[list[Scene], list[Pair]]]:
    """Scenes and pairs of each split."""
    objects = list(permutations(OBJECTS, 2))
    scenes = [objects[index] for index in rng.permutation(len(objects))]
    pairs = [(int(index) // 10, int(index) % 10) for index in rng.permutation(100)]
    train_scenes, train_pairs = scenes[:SCENES], pairs[:PAIRS]
    captions = {"train": (train_scenes, train_pairs)}
    scenes, pairs = scenes[SCENES:], pairs[PAIRS:]
    for split, (of_scene, of_pair) in UNSEEN.items():
        captions[split] = (scenes[:of_scene] + train_scenes[:of_scene], pairs[:of_pair] + train_pairs[:of_pair])
        scenes, pairs = scenes[of_scene:], pairs[of_pair:]
    return captions


def draw(scene: tuple[str, str], rng: np.random.Generator) -> Any:
    """Return an RGB picture of e.g. ("red circle", "blue ring"), side by side on a light ground."""
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
    """scikit-learn's handwritten digits: half of each to train on, a sixth to choose by, a third to test."""

    def __init__(self, rng: np.random.Generator) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.pictures = [digits.images[digits.target == number] for number in range(10)]
        self.rng = rng

    def write(self, pair: tuple[int, int], split: str) -> Any:
        """Return a grey picture of two digits, black on white."""
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
        half, two_thirds = len(pictures) // 2, 2 * len(pictures) // 3
        first, last = {"train": (0, half), "validation": (half, two_thirds), "test": (two_thirds, len(pictures))}[split]
        chosen = self.rng.integers(first, last)
        return Image.fromarray((255 - np.clip(pictures[chosen] * 16, 0, 255)).astype(np.uint8))
