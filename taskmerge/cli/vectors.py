"""extract, apply."""

from __future__ import annotations

from pathlib import Path

import typer

from taskmerge.cli.output import note

OUT = typer.Option(..., "--out", help="Folder to write.")
FRESH = typer.Option(False, "--fresh", help="Replace an existing folder.")


def extract(
    base: str = typer.Argument(help="The base model."),
    specialist: str = typer.Argument(help="The model fine-tuned from it."),
    out: Path = OUT,
    only: list[str] = typer.Option([], "--only", help="Components or name globs to take; all by default."),
    dtype: str = typer.Option("float32", "--dtype", help="Format of the deltas."),
    density: float = typer.Option(None, "--density", help="Keep only this share of each delta, the largest."),
    fresh: bool = FRESH,
) -> None:
    """Write a task vector (specialist - base) as a folder of its own."""
    from taskmerge.task_vectors import Checkpoint

    vector = Checkpoint.open(specialist) - Checkpoint.open(base)
    if only:
        vector = vector.only(*only)
    if density is not None:
        vector = vector.sparsify(density)
    path = vector.save(out, dtype=dtype, fresh=fresh)
    note(f"{len(vector)} deltas, {len(vector.own)} tensors of the specialist's own")
    print(path)


def apply(
    base: str = typer.Argument(help="The model to add to."),
    vector: str = typer.Argument(help="A folder written by `taskmerge extract`."),
    out: Path = OUT,
    weight: float = typer.Option(1.0, "--weight", help="What the task vector is multiplied by; -1 takes it away."),
    dtype: str = typer.Option(None, "--dtype", help="Format of the output; the base's by default."),
    shard_size: str = typer.Option("5GB", "--shard-size", help="Most bytes of one file."),
    fresh: bool = FRESH,
) -> None:
    """Add a task vector to a model."""
    from taskmerge.task_vectors import Checkpoint, TaskVector

    model = Checkpoint.open(base)
    moved = model + weight * TaskVector.load(vector, model)
    print(moved.save(out, dtype=dtype, shard_size=shard_size, fresh=fresh))


COMMANDS = (extract, apply)
