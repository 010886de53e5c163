"""Films of a moving object or digit, captioned by what moves where. A fifth of the captions is never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from drawing import DIGITS, OBJECTS, Handwriting, background, draw_object, speckled
from PIL import Image

SIZE, FRAMES = 32, 4
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
TAKES = 8


def make(folder: Path, seed: int) -> None:
    """train.jsonl, validation.jsonl and test.jsonl with animated PNG files beside them."""
    rng = np.random.default_rng([seed, 4])
    things = [*OBJECTS, *(f"digit {name}" for name in DIGITS)]
    motions = [(thing, direction) for thing in things for direction in DIRECTIONS]
    motions = [motions[index] for index in rng.permutation(len(motions))]
    unseen = len(motions) // 5
    handwriting = Handwriting()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}

    def add(split: str, motion: tuple[str, str]) -> None:
        name = f"{split}/{len(rows[split]):04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        first, *others = film(motion, split, handwriting, rng)
        first.save(folder / name, save_all=True, append_images=others)
        rows[split].append({"video": name, "text": f"{motion[0]} moves {motion[1]}"})

    for motion in motions[unseen:]:
        for _ in range(TAKES):
            add("train", motion)
        add("validation", motion)
    for motion in motions:
        add("test", motion)
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def film(motion: tuple[str, str], split: str, handwriting: Handwriting, rng: np.random.Generator) -> list[Image.Image]:
    """FRAMES pictures of SIZE x SIZE."""
    thing, direction = motion
    step = np.array(DIRECTIONS[direction]) * rng.uniform(4.2, 5.6)
    start = SIZE / 2 - (FRAMES - 1) / 2 * step + rng.uniform(-2, 2, 2)
    size = rng.uniform(12, 16)
    ground = background(SIZE, SIZE, rng)
    glyph = None
    if thing.startswith("digit "):
        glyph = handwriting.glyph(DIGITS.index(thing.split()[-1]), split, round(size) + 3, rng)
    frames = []
    for number in range(FRAMES):
        x, y = start + number * step
        frame = ground.copy()
        if glyph is None:
            draw_object(frame, thing, float(x), float(y), float(size))
        else:
            frame.paste(glyph, (round(x - glyph.width / 2), round(y - glyph.height / 2)))
        frames.append(speckled(frame, rng, 4.0))
    return frames
