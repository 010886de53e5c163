"""Files that say where weights lie: the index of shards, modules.json of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from fuzz.cases import Command, generator
from fuzz.generators.common import merge_commands
from fuzz.mutation import NAMES, damaged_value, json_text


@generator("merge", share=4)
def index_files(rng: Random, room: Path) -> list[Command]:
    """model.safetensors.index.json: file names that lead elsewhere, tensors that are nowhere, broken JSON."""
    path = room / "one" / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    rows = table["weight_map"]
    if rng.random() < 0.5:
        files = [
            *NAMES,
            "../base/model.safetensors",
            "model.safetensors",
            str(room / "base/model.safetensors"),
            "config.json",
            "one",
        ]
        for name in rng.sample(sorted(rows), rng.randint(1, 3)):
            rows[name] = rng.choice(files)
        data = json.dumps(table).encode()
    else:
        data = json_text(rng, damaged_value(rng, table))
    path.write_bytes(data)
    if rng.random() < 0.2:
        next((room / "one").glob("*-00001-of-*")).unlink()
    return merge_commands(rng)


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@generator("tiny", share=4)
def module_lists(rng: Random, room: Path) -> list[Command]:
    """modules.json and the folders it names."""
    folder = room / rng.choice(("base", "one"))
    rows = json.loads(json.dumps(MODULES))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(
        json_text(rng, {"word_embedding_dimension": 8, "pooling_mode": "mean"})
    )
    what = rng.random()
    if what < 0.4:
        rng.choice(rows)["path"] = rng.choice(
            (*NAMES, "../one", "../../outside", "/etc", "1_Pooling/../..", "./1_Pooling")
        )
        data = json.dumps(rows).encode()
    else:
        data = json_text(rng, damaged_value(rng, rows))
    (folder / "modules.json").write_bytes(data)
    if rng.random() < 0.3:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return merge_commands(rng)
