"""extract, apply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taskmerge.cli.options import FRESH, JSON, OUT_FOLDER, OUT_NEW
from taskmerge.cli.output import announce_notes, announce_preparing, next_move, note, print_json, say
from taskmerge.errors import UsageError
from taskmerge.words.parts import parse_part
from taskmerge.words.places import StoreUri
from taskmerge.words.sizes import parse_size
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from taskmerge.checkpoints.output.sharing import Saving
    from taskmerge.words.parts import Part


def extract(
    base: str = typer.Argument(help="The base model."),
    specialist: str = typer.Argument(help="The model fine-tuned from it."),
    out: Any = OUT_NEW,
    only: list[str] = typer.Option([], "--only", help="Components or name patterns to include; all by default."),
    dtype: str = typer.Option(None, "--dtype", help="Number format of the deltas; float32 by default."),
    density: float = typer.Option(
        None, "--density", help="Keep only this share of the entries of each delta: the largest ones."
    ),
    form: str = typer.Option(
        "dense", "--form", help="dense, sparse (--density), low_rank (--rank) or sign (one bit per entry)."
    ),
    rank: int = typer.Option(None, "--rank", help="Rank of the low_rank form."),
    lora: int = typer.Option(None, "--lora", help="Write a PEFT adapter of this rank instead of a task vector."),
    shard_size: str = typer.Option(None, "--shard-size", help="Maximum number of bytes per file; 5GB by default."),
    part: str = typer.Option(None, "--part", help="Write only this part of the files (2/8), of the dense form."),
    finish: bool = typer.Option(False, "--finish", help="Check the files of all parts and publish the output."),
    fresh: bool = FRESH,
    as_json: bool = JSON,
) -> None:
    """Write the task vector (specialist - base) to a separate folder."""
    from taskmerge.checkpoints.formats.json_files import read_json
    from taskmerge.checkpoints.vectors.folder import VECTOR_FILE, VectorMarks
    from taskmerge.merging.algebra import Checkpoint

    share = None if part is None else parse_part(part)
    shared = share is not None or finish or isinstance(out, StoreUri)
    if share is not None and finish:
        raise UsageError(
            "--part writes one part, --finish publishes all parts", next_move="run --finish when all parts are written"
        )
    if (lora is not None or form != "dense") and shared:
        what = f"{out}: only the dense form can be written in parts or to a store"
        raise UsageError(what, next_move="leave out --form and --lora, or write to a folder without --part")
    _check_form(form, rank, lora, {"--dtype": dtype, "--shard-size": shard_size})
    dtype, shard_size = dtype or "float32", shard_size or "5GB"
    announce_preparing()
    announce_notes(here=False)
    vector = Checkpoint.open(specialist) - Checkpoint.open(base)
    for line in vector.warnings:
        note(f"warning: {line}")
    if only:
        vector = vector.only(*only)
    if density is not None and form != "sparse":
        vector = vector.sparsify(density)
    found: dict[str, Any] = {"path": str(out), "form": form, "deltas": len(vector), "own": len(vector.own),
                             "bytes": None, "relative_error": None, "left_out": [], "part": part,
                             "warnings": list(vector.warnings)}  # fmt: skip
    if shared:
        _shared(vector.shared(out, dtype=dtype, shard_size=parse_size(shard_size), fresh=fresh), share, finish)
        _end(found, base, as_json)
        return
    if lora is not None:
        made = vector.save_lora(out, lora, base_name=base, fresh=fresh)
        left = f", {counted(len(made.left_out), 'tensor')} left out" if made.left_out else ""
        note(f"{made.bytes:,} bytes, relative error {made.relative_error:.3g}{left}")
        written = {"bytes": made.bytes, "relative_error": made.relative_error, "left_out": list(made.left_out)}
        _end({**found, "form": "lora", **written}, base, as_json)
        return
    share_kept = density if form == "sparse" else None
    path = vector.save(out, dtype=dtype, form=form, density=share_kept, rank=rank, shard_size=shard_size, fresh=fresh)
    note(f"{counted(len(vector), 'delta')}, {counted(len(vector.own), 'tensor')} that only the specialist has")
    if form != "dense":
        marks: VectorMarks = read_json(path / VECTOR_FILE, VectorMarks)
        report = marks["report"]
        share = report["bytes"] / max(report["dense_bytes"], 1)
        note(f"{report['bytes']:,} bytes ({share:.1%} of float32), relative error {report['relative_error']:.3g}")
        found |= {"bytes": report["bytes"], "relative_error": report["relative_error"]}
    _end(found, base, as_json)


def _check_form(form: str, rank: int | None, lora: int | None, files: Mapping[str, str | None]) -> None:
    """Raise UsageError for options that the form does not use. files: options of files, and their values."""
    if rank is not None and form != "low_rank":
        raise UsageError("--rank belongs to --form low_rank", next_move="add --form low_rank, or leave out --rank")
    if lora is not None:
        given = ["--form"] * (form != "dense") + [option for option, value in files.items() if value is not None]
        if given:
            what = f"--lora writes an adapter in one file, in float32: {', '.join(given)} does not apply"
            raise UsageError(what, next_move="leave it out")


def _end(found: Mapping[str, Any], base: str, as_json: bool) -> None:
    """Say where the task vector is."""
    if found["part"] is None:
        next_move(f"taskmerge apply {base} {found['path']} --out MODEL, or name it as a specialist in a recipe")
    if as_json:
        print_json(found)
    elif found["part"] is None:
        say(found["path"])


def _shared(saving: Saving, part: Part | None, finish: bool) -> None:
    from taskmerge.checkpoints.output.sharing import write_part, write_whole

    if part is not None:
        note(f"part {part}: {counted(write_part(saving, part), 'file')}; run `--finish` when all parts are written")
        return
    write_whole(saving, finish)


def apply(
    base: str = typer.Argument(help="The model to add to."),
    vector: str = typer.Argument(help="A folder written by `taskmerge extract`, or a PEFT adapter."),
    out: Path = OUT_FOLDER,
    weight: float = typer.Option(
        1.0, "--weight", help="Number that the task vector is multiplied by; -1 subtracts it."
    ),
    dtype: str = typer.Option(None, "--dtype", help="Number format of the output; that of the base by default."),
    shard_size: str = typer.Option("5GB", "--shard-size", help="Maximum number of bytes per file."),
    fresh: bool = FRESH,
    as_json: bool = JSON,
) -> None:
    """Add a task vector to a model."""
    from taskmerge.checkpoints.output.saving import save_state_dict
    from taskmerge.merging.algebra import Checkpoint, TaskVector

    announce_preparing()
    announce_notes()
    model = Checkpoint.open(base)
    moved = model + weight * TaskVector.load(vector, model)
    made = save_state_dict(
        moved.underlying, out, dtype=dtype, shard_size=shard_size, fresh=fresh, made=("model", "apply")
    )
    next_move(f"taskmerge diff {base} {made}")
    print_json({"path": str(made)}) if as_json else say(made)


COMMANDS = (extract, apply)
