"""init."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import typer

from taskmerge.cli.options import JSON, OUT_RECIPE
from taskmerge.cli.output import next_move, note, print_json, say
from taskmerge.errors import UsageError
from taskmerge.words.tables import counted


def init(
    base: str = typer.Argument(None, help="The base model: path, hub id[@revision] or hf:// uri."),
    specialists: list[str] = typer.Argument(
        None, help="Specialists: models trained from the base, adapters, task vectors; or name=path."
    ),
    out: Path = OUT_RECIPE,
    as_json: bool = JSON,
) -> None:
    """Propose a commented recipe for a base and its specialists.

    Only headers are read, not the tensors. The recipe is planned before it is written, so that incompatible models are
    reported now. On a terminal, missing arguments are asked for.
    """
    from taskmerge.pipeline.proposal import propose

    given = list(specialists or [])
    if base is None or not given:
        base, given = _asked(base, given)
    if out.exists():
        raise UsageError("exists already", str(out), "choose another file with --out, or remove it first")
    found = propose(base, given, out.absolute().parent)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(found.text)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(out), "choose another file with --out") from None
    counts = Counter(step.action for step in found.plan.steps)
    said = (
        f"{counted(counts['merge'], 'tensor')} merged, {counts['copy']} copied from one specialist, "
        f"{counts['keep']} kept"
    )
    note(f"plan: {said}")
    for line in found.plan.warnings:
        note(f"warning: {line}")
    for line in found.plan.notes:
        note(line)
    next_move(f"taskmerge fuse {out} --dry-run")
    if as_json:
        table = {"merged": counts["merge"], "copied": counts["copy"], "kept": counts["keep"]}
        print_json({"path": str(out), **table, "notes": list(found.plan.notes)})
        return
    say(out)


def _asked(base: str | None, specialists: list[str]) -> tuple[str, list[str]]:
    if not sys.stdin.isatty():
        what = f"{'the base' if base is None else 'a specialist'} is missing, and there is no terminal to ask for it"
        raise UsageError(what, next_move="give both: taskmerge init BASE SPECIALIST…")
    base = base or str(typer.prompt("Base model (path or hub id)", err=True))
    specialists = specialists or [str(typer.prompt("A specialist trained from this base (path or hub id)", err=True))]
    while more := str(
        typer.prompt("Another specialist (leave empty to finish)", default="", show_default=False, err=True)
    ):
        specialists.append(more)
    return base, specialists


COMMANDS = (init,)
