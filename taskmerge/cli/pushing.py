"""push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from taskmerge.cli.options import JSON
from taskmerge.cli.output import note, print_json, print_table, say
from taskmerge.errors import few
from taskmerge.words.sizes import show_bytes
from taskmerge.words.tables import counted

if TYPE_CHECKING:
    from taskmerge.checkpoints.cards.pushing import Upload


def push(
    folder: Path = typer.Argument(help="A model, adapter or task vector made by taskmerge."),
    repository: str = typer.Argument(help="owner/name on the hub; created if it does not exist."),
    private: bool = typer.Option(False, "--private", help="Make a new repository private."),
    revision: str = typer.Option(None, "--revision", help="Branch to upload to."),
    scores: Path = typer.Option(
        None,
        "--scores",
        help="JSON file of an evaluation of this model, for its card; by default the one in OUT-report.",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the files and the card without uploading anything."),
    as_json: bool = JSON,
) -> None:
    """Upload a model made by taskmerge with its model card, after checking it against its record.

    All files are hashed first. Only the files of the record are uploaded; other files in the folder are listed and
    skipped. The card is written for the name on the hub, unless you have edited it. No licence is claimed if the
    inputs' licences differ or one states none.
    """
    from taskmerge.checkpoints.cards.pushing import upload_of
    from taskmerge.measuring.evaluation.of_model import scores_of

    found = upload_of(folder, repository, scores_of(folder, scores))
    _warn(found)
    if dry_run:
        print_json({**found.as_dict(), "address": None}) if as_json else _show(found)
        return
    from taskmerge.checkpoints.hub import upload

    note(f"uploading {folder} to {repository}, {show_bytes(found.size)} in {counted(len(found.files), 'file')}")
    with found.staged() as place:
        address = upload(place, repository, private=private, revision=revision)
    print_json({**found.as_dict(), "address": address}) if as_json else say(address)


def _warn(found: Upload) -> None:
    for line in found.card.findings:
        note(f"warning: {line}" if found.card.conflict and "licence" in line else f"model card: {line}")
    if found.left:
        note(f"not uploaded: {few(f'{name} ({why})' for name, why in found.left.items())}")
    if found.local_paths:
        note(f"taskmerge.json is uploaded too and contains paths of this machine: {few(found.local_paths)}")


def _show(found: Upload) -> None:
    print_table(("file", "bytes"), [(name, f"{size:,}") for name, size in found.files.items()], found.repository)
    say(f"\n{found.as_dict()['card']}")
    own = " (the folder's own, as you have edited it)" if found.as_dict()["own_card"] else ""
    note(
        f"{show_bytes(found.size)} in {counted(len(found.files), 'file')}, and the card above{own}; nothing was "
        f"uploaded"
    )


COMMANDS = (push,)
