"""Recipes: broken YAML, odd trees, odd values of every key that is declared."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzz.cases import Command, command, generator
from fuzz.generators.common import DRY
from fuzz.mutation import NAMES, damaged_bytes, damaged_value, odd_value
from fuzz.templates import RECIPE

FULL = """\
base: base
specialists:
  one: {model: one, weight: 0.5}
  two: {model: one, weight: [0.1, 0.9], density: 0.5}
components: {mine: ["model.layers.0.*"]}
copy: {one: [mine]}
seed: 3
merge:
  method: dare_ties
  density: 0.5
  scale: 1.0
  rules:
    - {match: "*.norm.weight", keep: base}
    - {match: "model.layers.{0..1}.*", method: ties, density: 0.3}
output: {path: out, dtype: float32, shard_size: 1KB}
drift: {specialist: one, probes: sounds.jsonl, limit: 0.05}
recover: {train: [mine], data: sounds.jsonl, steps: 2}
rehearse: {train: [mine], data: {text: texts.jsonl}, steps: 2}
evaluate: {retrieval: {text: texts.jsonl}}
"""
TEXTS = (
    "base: [unclosed",
    "- base",
    "3",
    "",
    "\t",
    "base:\tbase",
    "!!python/object/apply:os.system ['touch canary']",
    "base: !!python/name:os.system",
    "a: &a [*a]",
    "? [a, b]\n: c",
    "<<: {base: x}",
    "%YAML 9.9\n---\nbase: x",
    "---\n---\n",
    "base: !!binary aGVsbG8=",
    "base: !!timestamp 2026-01-01",
    "base: !!set {a, b}",
    "base: 2026-13-99",
    "base: 0x",
    "base: 1:30",
    "base: |\n  x\n",
    "base: >-\n x",
    "? a",
    "base: *nowhere",
    "base: !include /etc/passwd",
    "'" * 3,
    "{" * 3000,
    "a: " * 3000,
)


def _dumped(tree: Any) -> bytes:
    """YAML of a tree; of one too deep for the library that writes it the same in JSON's way of writing."""
    try:
        text = yaml.safe_dump(tree, sort_keys=False)
    except RecursionError:
        text = json.dumps(tree, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _commands(rng: Random) -> list[Command]:
    run = [
        command("run", "recipe.yaml", writes=["out"]),
        command("recover", "recipe.yaml"),
        command("rehearse", "recipe.yaml"),
        command("diagnose-drift", "recipe.yaml"),
        command("evaluate", "recipe.yaml"),
        command("specialize", "recipe.yaml"),
    ]
    fuse = command("fuse", "recipe.yaml", "--out", "out", writes=["out"])
    return [rng.choice((DRY, fuse)), *([rng.choice(run)] if rng.random() < 0.2 else [])]


@generator("tiny", share=7)
def recipe_texts(rng: Random, room: Path) -> list[Command]:
    """The recipe as text: bytes damaged, YAML's odder forms put in."""
    text = rng.choice((RECIPE, FULL))
    path = room / "recipe.yaml"
    what = rng.random()
    if what < 0.35:
        path.write_bytes(damaged_bytes(rng, text.encode()))
    elif what < 0.75:
        lines = text.splitlines()
        at = rng.randrange(len(lines) + 1)
        lines[at : at + rng.randint(0, 1)] = [rng.choice(TEXTS)]
        path.write_text("\n".join(lines))
    else:
        words = text.split(" ")
        for _ in range(rng.randint(1, 3)):
            odd = rng.choice((*NAMES, *TEXTS)).encode("utf-8", "replace").decode()
            words[rng.randrange(len(words))] = odd
        path.write_text(" ".join(words))
    return _commands(rng)


@generator("tiny", share=7)
def recipe_trees(rng: Random, room: Path) -> list[Command]:
    """The recipe as a tree: keys and values moved, taken away, of other types; still YAML."""
    tree = damaged_value(rng, yaml.safe_load(rng.choice((RECIPE, FULL, FULL))))
    (room / "recipe.yaml").write_bytes(_dumped(tree))
    return _commands(rng)


def _declared(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key that the recipe's own schema declares, as a path."""
    found: list[tuple[str, ...]] = []
    for key, row in schema.get("properties", {}).items():
        found.append((*path, key))
        for part in (row, *row.get("anyOf", ()), *row.get("oneOf", ())):
            found += _declared(part, (*path, key))
    return found


@generator("tiny", share=7)
def recipe_values(rng: Random, room: Path) -> list[Command]:
    """Odd values for keys that the schema declares, one to three at once."""
    from taskmerge.recipes import schema

    tree: dict[str, Any] = yaml.safe_load(rng.choice((RECIPE, FULL)))
    declared = _declared(schema())
    methods = (
        "ties",
        "dare_linear",
        "slerp",
        "breadcrumbs",
        "sce",
        "iso_c",
        "tsv",
        "della",
        "model_stock",
        "nuslerp",
        "os.system",
        "own.py:x",
    )
    for _ in range(rng.randint(1, 3)):
        *inside, key = rng.choice(declared)
        at: Any = tree
        for step in inside:
            if not isinstance(at.get(step), dict):
                at[step] = {}
            at = at[step]
        at[key] = rng.choice(
            (odd_value(rng), odd_value(rng), "one", "base", "../outside", "/dev/zero", 0.5, [0.1, 0.2], {"one": 0.5})
        )
        if key == "method":
            at[key] = rng.choice(methods)
    (room / "recipe.yaml").write_bytes(_dumped(tree))
    return _commands(rng)
