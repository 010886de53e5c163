"""Pictures: pairs of handwritten digits, drawn scenes of two objects. Half the test captions are never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from drawing import DIGITS, OBJECTS, Handwriting, background, draw_object, speckled
from PIL import Image

WIDTH, HEIGHT = 64, 32
SCENES, UNSEEN_SCENES = 360, 60
UNSEEN_PAIRS = 20


def make(folder: Path, seed: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl with PNG files beside them."""
    rng = np.random.default_rng([seed, 2])
    captions = scene_captions(rng)
    scenes, unseen_scenes = captions[:SCENES], captions[SCENES : SCENES + UNSEEN_SCENES]
    order = rng.permutation(100).tolist()
    pairs = [(number // 10, number % 10) for number in order]
    handwriting = Handwriting()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, picture: Image.Image, text: str) -> None:
        name = f"{split}/{len(rows[split]):04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        speckled(picture, rng).save(folder / name)
        rows[split].append({"image": name, "text": text})

    for scene in scenes:
        for _ in range(3):
            add("train", draw_scene(scene, rng), caption_of(scene))
    for pair in pairs[UNSEEN_PAIRS:]:
        for _ in range(6):
            add("train", write_pair(pair, "train", handwriting, rng), pair_caption(pair))
    for scene in scenes[::4]:
        add("validation", draw_scene(scene, rng), caption_of(scene))
    for pair in pairs[UNSEEN_PAIRS::4]:
        add("validation", write_pair(pair, "train", handwriting, rng), pair_caption(pair))
    for scene in [*unseen_scenes, *scenes[:UNSEEN_SCENES]]:
        add("test", draw_scene(scene, rng), caption_of(scene))
    for pair in pairs[: 2 * UNSEEN_PAIRS]:
        for _ in range(2):
            add("test", write_pair(pair, "test", handwriting, rng), pair_caption(pair))
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def scene_captions(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(left object, right object), shuffled."""
    scenes = [(left, right) for left in OBJECTS for right in OBJECTS if left != right]
    return [scenes[index] for index in rng.permutation(len(scenes))]


def caption_of(scene: tuple[str, str]) -> str:
    return f"{scene[0]}, {scene[1]}"


def pair_caption(pair: tuple[int, int]) -> str:
    return f"digits {DIGITS[pair[0]]} {DIGITS[pair[1]]}"


def draw_scene(scene: tuple[str, str], rng: np.random.Generator) -> Image.Image:
    picture = background(WIDTH, HEIGHT, rng)
    for index, name in enumerate(scene):
        x, y = 16 + 32 * index + rng.uniform(-3, 3), HEIGHT / 2 + rng.uniform(-3, 3)
        draw_object(picture, name, x, y, rng.uniform(17, 24))
    return picture


def write_pair(pair: tuple[int, int], split: str, handwriting: Handwriting, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    for index, number in enumerate(pair):
        glyph = handwriting.glyph(number, split, int(rng.integers(26, 31)), rng)
        picture.paste(glyph, (1 + 32 * index + int(rng.integers(0, 3)), int(rng.integers(0, 4))))
    return picture
