"""Commands that fit a template's room, for generators to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from fuzz import independent
from fuzz.cases import Command, command

INSPECT = command("inspect", "base", "--json", "--tensors", check=independent.inspected("base"))
FUSE = command("fuse", "recipe.yaml", writes=["out"], check=independent.fused())
DRY = command("fuse", "recipe.yaml", "--dry-run")
MERGE: tuple[Command, ...] = (
    command("compare", "base", "one"),
    command("diff", "base", "one"),
    command("inspect", "one"),
    command("extract", "base", "one", "--out", "vector", writes=["vector"]),
    command("extract", "base", "one", "--out", "lora", "--lora", "2", writes=["lora"]),
    command("extract", "base", "one", "--out", "sign", "--form", "sign", writes=["sign"]),
    command("verify", "base", "--hashes-only"),
    command("check-model", "base", "--json"),
    command("graft", "base", "--modality", "image", "--encoder", "patches", "--out", "out", writes=["out"]),
    command("soup", "[bo]*e", "--out", "out", writes=["out"]),
)
CHEAP = MERGE[:7]


def some(rng: Random, commands: Sequence[Command], most: int = 2) -> list[Command]:
    return rng.sample(list(commands), min(len(commands), rng.randint(1, most)))


def merge_commands(rng: Random) -> list[Command]:
    """Looking, fusing, and one or two others."""
    first = [INSPECT, FUSE] if rng.random() < 0.8 else [DRY]
    return first + some(rng, CHEAP, 2)
