"""Tokenizers: their vocabulary, added tokens, settings and templates."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.generators.common import DRY, some
from fuzz.mutation import NAMES, damaged_value, json_text, odd_value

MODES = ("base", "one", "union", "nobody", "merge")


@generator("merge", share=5)
def tokenizer_files(rng: Random, room: Path) -> list[Command]:
    """tokenizer.json and tokenizer_config.json of a model: ids missing, twice, negative, beyond the table."""
    folder = room / rng.choice(("base", "one"))
    path = folder / "tokenizer.json"
    table: dict[str, Any] = json.loads(path.read_text())
    words = table["model"]["vocab"]
    what = rng.random()
    if what < 0.4:
        for word in rng.sample(sorted(words), rng.randint(1, 4)):
            words[rng.choice((word, rng.choice(NAMES)))] = rng.choice(
                (words[word], 0, -1, 13, 14, 63, 64, 10**6, 2**40, 1.5, "3", None, True)
            )
        path.write_bytes(json.dumps(table).encode())
    elif what < 0.55:
        table["added_tokens"].append(
            {
                "id": rng.choice((0, 14, 63, 64, 10**6, -1, "x")),
                "content": rng.choice((*NAMES, "<pad>")),
                "special": True,
            }
        )
        path.write_bytes(json.dumps(table).encode())
    elif what < 0.7:
        words.update({f"w{number}": number for number in range(len(words), rng.choice((64, 65, 20_000)))})
        path.write_bytes(json.dumps(table).encode())
    elif what < 0.85:
        path.write_bytes(json_text(rng, damaged_value(rng, table)))
    else:
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text())
        template = rng.choice(
            ("{{ x }}", "{% for", "{% for i in range(10**9) %}a{% endfor %}", "{{ ''.__class__ }}", odd_value(rng))
        )
        settings[rng.choice(("chat_template", "model_max_length", "tokenizer_class", "auto_map", "padding_side"))] = (
            template
        )
        config.write_bytes(json_text(rng, settings))
    mode = rng.choice(MODES)
    text = (
        (room / "recipe.yaml").read_text().replace("output: {path: out}", f"output: {{path: out, tokenizer: {mode}}}")
    )
    if rng.random() < 0.6:
        (room / "recipe.yaml").write_text(text)
        return [command("fuse", "recipe.yaml", writes=["out"])]
    fuse = command("fuse", "recipe.yaml", writes=["out"])  # rows go by token: not the plain formula
    return [
        fuse if rng.random() < 0.8 else DRY,
        *some(rng, [command("check-model", "base"), command("diff", "base", "one")], 1),
    ]
