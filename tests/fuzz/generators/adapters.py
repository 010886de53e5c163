"""PEFT adapters: settings, patterns, weights, and the folder they lie in."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.generators.safetensors_files import joined, split
from fuzz.mutation import damaged_bytes, damaged_value, json_text, odd_value

RECIPE = (
    "base: base\nspecialists:\n  one: {model: base, adapter: adapter, weight: 0.5}\nmerge: {method: task_arithmetic}\n"
)
PATTERNS = (
    "(.|.)*!",
    "(a+)+$",
    "(",
    "[",
    "(?P<x>",
    "(?=(a*)*b)",
    "\\",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    ".*" * 40 + "!",
    "(?:(?:x?){60}){60}",
    "a{1,65535}{1,65535}",
    "q_proj",
    "",
    "(?i)Q_PROJ",
    "\ud800",
    "(\\w|\\d|_)*$x",
    "(.*)*(.*)*(.*)*Z",
)
KINDS = ("LORA", "LOHA", "IA3", "VERA", "ADALORA", "OFT", None, 3, "lora", "PROMPT_TUNING")


def _commands(rng: Random) -> list[Command]:
    every = [
        command("fuse", "recipe.yaml", "--out", "out", writes=["out"]),
        command("apply", "base", "adapter", "--out", "out", writes=["out"]),
        command("inspect", "adapter"),
        command("compare", "base", "adapter"),
        command("soup", "adapt*", "--base", "base", "--out", "soup", writes=["soup"]),
        command("fuse", "recipe.yaml", "--dry-run"),
    ]
    return rng.sample(every, 3)


@generator("merge", share=5)
def adapter_settings(rng: Random, room: Path) -> list[Command]:
    """adapter_config.json: odd values of every key, costly and broken patterns."""
    (room / "recipe.yaml").write_text(RECIPE)
    path = room / "adapter" / "adapter_config.json"
    table: dict[str, Any] = json.loads(path.read_text())
    what = rng.random()
    if what < 0.35:
        key = rng.choice(("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "target_parameters"))
        pattern = rng.choice(PATTERNS)
        table[key] = {pattern: rng.choice((2, 4, odd_value(rng)))} if key.endswith("pattern") else pattern
        data = json.dumps(table).encode()
    elif what < 0.7:
        for key in rng.sample(sorted(table), rng.randint(1, 3)):
            table[key] = rng.choice((odd_value(rng), True, 2, rng.choice(KINDS)))
        data = json_text(rng, table)
    else:
        data = json_text(rng, damaged_value(rng, table))
    path.write_bytes(data)
    return _commands(rng)


@generator("merge", share=4)
def adapter_weights(rng: Random, room: Path) -> list[Command]:
    """adapter_model.safetensors: factors missing, of other shapes or modules, bytes damaged, pickled instead."""
    (room / "recipe.yaml").write_text(RECIPE)
    path = room / "adapter" / "adapter_model.safetensors"
    table, data = split(path.read_bytes())
    names = [name for name in table if name != "__metadata__"]
    what = rng.random()
    if what < 0.3:
        for name in rng.sample(names, rng.randint(1, 2)):
            old, new = rng.choice(
                (
                    ("lora_A", "lora_B"),
                    ("lora_A", "lora_embedding_A"),
                    ("q_proj", "x_proj"),
                    ("base_model.model.", ""),
                    ("weight", "default.weight"),
                    ("lora_B", "lora_magnitude_vector"),
                    ("layers.0", "layers.77"),
                    ("self_attn", "\x1b[1m"),
                    ("lora_A.weight", "bias"),
                )
            )
            row = table.pop(name)
            table.setdefault(name.replace(old, new), row)
    elif what < 0.6:
        row = table[rng.choice(names)]
        row["shape"] = rng.choice(
            (row["shape"][::-1], [row["shape"][0] * row["shape"][1]], [1, *row["shape"]], [0], [])
        )
    elif what < 0.8:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        return _commands(rng)
    else:
        (room / "adapter" / "adapter_model.bin").write_bytes(rng.randbytes(rng.choice((0, 10, 1000))))
        if rng.random() < 0.7:
            path.unlink()
            return _commands(rng)
    path.write_bytes(joined(json.dumps(table).encode(), data))
    return _commands(rng)
