"""One row a modality: what every room says of it follows from the table."""

from __future__ import annotations

import subprocess
import sys

import pytest

from taskmerge.words import modalities

_DEPTH = """
from taskmerge.words import modalities as table
row = table.Modality("depth", "picture", "depth", ("disparity",), ("depth", "lidar"), ("bod",), "d")
table.MODALITIES += (row,)
source = open(table.__file__, encoding="utf-8").read().split("\\n")
start = next(i for i, line in enumerate(source) if line.startswith("NAMES"))
stop = next(i for i, line in enumerate(source) if line.startswith("def modality("))
exec("\\n".join(source[start:stop]), vars(table))  # what follows from the rows

import numpy as np
from taskmerge.checkpoints.components import COMPONENTS, component_map
from taskmerge.checkpoints.lineage.grafts import grafted_config
from taskmerge.embedders.grafting import graft
from taskmerge.embedders.pairs import read_pairs
from taskmerge.errors import UsageError
from taskmerge.words.modalities import letter_of
from taskmerge.pipeline.checks import Parts
from taskmerge.training.components import on_the_way

class Info:
    dtype, shape = "F32", (4,)

names = ["model.layers.0.w", "lidar_tower.layers.0.w", "model.depth_projector.weight"]
parts = component_map(dict.fromkeys(names, Info()), {})
assert dict(parts) == dict(zip(names, ["backbone", "depth_encoder", "depth_projector"])), dict(parts)
assert {"depth_encoder", "depth_projector"} <= set(COMPONENTS)
assert Parts(frozenset(parts.values())).modalities == ["text", "depth"]
theirs = {"depth_token_id": 5, "bod_token_id": 6}
assert grafted_config({"depth_token_id": 1, "bod_token_id": 3}, {"a": (theirs, {"depth_encoder"})}) == theirs
for column in ("depth", "disparity"):
    pairs = read_pairs([{column: np.zeros((4, 4, 3), np.uint8), "text": "a"}])
    assert pairs.modality == "depth" and pairs.load()[0].size == (4, 4)
assert on_the_way("depth_projector", "disparity") and not on_the_way("vision_projector", "depth")
assert letter_of("depth") == "d" and table.through("depth") == ("depth",)
try:
    graft("nowhere", "dept", "patches")
except UsageError as told:
    assert "'depth'" in str(told), told
"""


def test_a_new_modality_is_one_row() -> None:
    done = subprocess.run([sys.executable, "-c", _DEPTH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "modality", "tower", "media"),
    [
        ("image", "image", "vision", "picture"), ("document", "image", "vision", "picture"),
        ("video", "video", "vision", "film"), ("audio", "audio", "audio", "sound"), ("text", "text", "text", "text"),
        ("smell", "smell", "smell", "text"),
    ],
)  # fmt: skip
def test_what_a_name_means(name: str, modality: str, tower: str, media: str) -> None:
    assert modalities.modality_of_column(name) == modality
    assert modalities.tower_of(name) == tower
    assert modalities.media_of(name) == media


def test_no_word_and_no_column_means_two_things() -> None:
    towers: dict[str, str] = {}
    for row in modalities.MODALITIES:
        for word in (*row.words, *row.config_words):
            assert towers.setdefault(word, row.tower) == row.tower
    assert len(set(modalities.COLUMNS)) == len(modalities.COLUMNS)
    assert modalities.TOWERS == ("vision", "audio")
    assert [modalities.through(tower) for tower in modalities.TOWERS] == [("image", "video"), ("audio",)]
