"""Command lines: every command, options that are there, values that make no sense."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

from fuzz.cases import Command, command, generator
from fuzz.mutation import NAMES

NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "²",
    "١",
    "٣",
    "½",
    "1_000",
    "0x10",
    "9" * 400,
    "",
    " ",
    "one",
    "1,2",
    "-0",
    "+1",
    "1e3",
    "True",
)
SIZES = (
    "0",
    "1",
    "1B",
    "1KiB",
    "1TiB",
    "-5GB",
    "5 GB",
    "GB",
    "²GB",
    "1e400GB",
    "nanGB",
    "9" * 400 + "GB",
    "0.0001B",
    "1EB",
    "1YiB",
    "5gb",
    "∞",
)
PLACES = (
    "base",
    "one",
    "recipe.yaml",
    "out",
    "nowhere",
    "",
    ".",
    "/dev/null",
    "/dev/zero",
    "hf://a/b",
    "owner/name",
    "owner/name@x",
    "s3://x/y",
    "file:///",
    "~",
    "~nobody/x",
    "base/model.safetensors",
    "base/config.json",
    "/proc/self/mem",
)
OTHERS = (
    "cpu",
    "cuda",
    "cuda:99",
    "mps",
    "tpu",
    "meta",
    "float32",
    "bfloat16",
    "float13",
    "int8",
    "fp8",
    "dense",
    "sign",
    "low_rank",
    "audio",
    "image",
    "smell",
    "log_mel",
    "patches",
    "fuse",
    "evaluate",
    "x=y",
    "=",
    "a=",
    "=b",
    "text=base",
    "os:system",
    "own.py:x",
    "mlp",
)
WRITERS = ("demo", "push", "graft")


@functools.cache
def commands_of() -> dict[str, tuple[list[Any], list[Any]]]:
    """Command -> its arguments and its options, from the command line's own declaration."""
    import typer

    from taskmerge.cli.app import app

    group: Any = typer.main.get_command(app)
    found = {}
    for name, one in group.commands.items():
        arguments = [row for row in one.params if row.param_type_name == "argument"]
        found[name] = arguments, [row for row in one.params if row.param_type_name == "option"]
    return found


@generator("tiny", share=8)
def command_lines(rng: Random, room: Path) -> list[Command]:
    """Any command with any of its options and odd values, on healthy models."""
    every = commands_of()
    name = rng.choice([one for one in every if one not in ("demo", "push")])
    arguments, options = every[name]
    words: list[str] = [name]
    for row in arguments:
        words.append(
            rng.choice(
                ("recipe.yaml" if row.name == "recipe" else "base", "one", rng.choice(PLACES), rng.choice(NAMES))
            )
        )
    written = []
    for row in rng.sample(options, min(len(options), rng.choice((0, 1, 1, 2, 3)))):
        flag = max(row.opts, key=len)
        if flag == "--help":
            continue
        if getattr(row, "is_flag", False):
            words.append(flag)
            continue
        value = rng.choice((*NUMBERS, *NUMBERS, *SIZES, *PLACES, *OTHERS, *NAMES))
        if flag in ("--out", "--html", "--plot", "--results"):
            value = rng.choice(
                ("made", "made/page.html", "made.png", "made.xyz", "base/x.png" if flag == "--plot" else "made")
            )
            written += ["made", f"{value}.html", f"{value}.json"]  # a page's name ends with .html
        elif flag == "--results" or "size" in flag or flag == "--memory":
            value = rng.choice(SIZES)
        words += [rng.choice(row.opts), value]
    outs = {"-o", "--out"}
    chosen = outs & {*words}
    if not chosen and any(outs & {*row.opts} and row.required for row in options) and rng.random() < 0.9:
        words += ["--out", "made"]
        written.append("made")
    if not chosen:
        written += {"fuse": ["out"], "run": ["out"], "init": ["merge.yaml"]}.get(name, [])
    words = [word.encode("utf-8", "replace").decode().replace("\0", "") for word in words]  # no shell has others
    if name in ("fuse", "run", "recover", "rehearse", "specialize") and rng.random() < 0.05:
        words = [name, *words]
    allowed = ["base/x.png"] if "base/x.png" in words else []
    return [command(*words, writes=[*written, *allowed])]
