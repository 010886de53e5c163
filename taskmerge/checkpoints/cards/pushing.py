"""The content of an upload of a model made here: the files of its record and its card, and no other file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmerge.checkpoints.cards.card import Card, Score, card, kept_card, kept_in
from taskmerge.checkpoints.cards.declared import is_id
from taskmerge.checkpoints.cards.kinds import in_folder
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.hashing import sha256_of
from taskmerge.checkpoints.output.record import (
    CARD,
    FILE,
    LOCK,
    UNFINISHED,
    Record,
    changed_files,
    contents,
    read_record,
    render,
)
from taskmerge.checkpoints.output.replacing import beside
from taskmerge.errors import CheckpointError, UsageError, few
from taskmerge.words.places import repository_of

PUSHED = ("fused", "model", "trained", "recovered", "grafted", "task vector", "adapter")
"""Kinds of folders that hold something to use; reports, demos and the work of a training are not uploaded."""
_SIDE = ("statistics/",)
"""Prefixes of recorded files that were measured with the model and do not belong to it."""


@dataclass(frozen=True)
class Upload:
    """The files of an upload, and the files that are left out.

    files: name -> bytes.  left: name -> reason for leaving it out.  card: the card in the record; the user's own card
    replaces it if there is one.  texts: texts written for the upload only: name -> text.  local_paths: paths of this
    disk in taskmerge.json.
    """

    folder: Path
    repository: str
    files: Mapping[str, int]
    left: Mapping[str, str]
    card: Card
    texts: Mapping[str, str]
    local_paths: Sequence[str]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.folder),
            "repository": self.repository,
            "files": dict(self.files),
            "bytes": self.size,
            "left": dict(self.left),
            "card": self.texts.get(CARD) or (self.folder / CARD).read_text("utf-8", errors="replace"),
            "own_card": CARD not in self.texts,
            "findings": list(self.card.findings),
            "licence_conflict": self.card.conflict,
            "local_paths": list(self.local_paths),
        }

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Make a folder with exactly the upload: links to the model's files, and texts written for the hub."""
        with TemporaryDirectory(prefix="taskmerge-push-") as text:
            place = Path(text) / self.folder.name
            for name in self.files:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                if name in self.texts:
                    (place / name).write_bytes(self.texts[name].encode())
                else:
                    (place / name).symlink_to((self.folder / name).resolve())
            yield place


def upload_of(folder: Path, repository: str, scores: Sequence[Score] = ()) -> Upload:
    """Return what an upload of the model in `folder` would hold. Nothing is written.

    Args:
        folder: made here, and as its record says: every file is hashed.
        repository: owner/name on the hub.
        scores: of an evaluation of this very model, for its card.

    Raises:
        CheckpointError: for a folder that was not made here, holds no model, is not finished, was changed, or holds
            links. UsageError: for a repository that cannot be one.
    """
    if repository_of(repository) is None or "@" in repository or not is_id(repository):
        raise UsageError(f"{repository!r} is not the name of a repository", next_move="write owner/name")
    folder = Path(folder).absolute()
    record = _checked(folder)
    others = contents(folder).others
    if links := [name for name in others if (folder / name.rstrip("/")).is_symlink()]:
        what = f"contains links, which taskmerge did not write and an upload would follow: {few(links)}"
        raise CheckpointError(what, str(folder), "remove them, or replace them by copies of their targets")
    own = [name for name in record["outputs"] if not name.startswith(_SIDE)]
    left = {name: "measured with the model, not a part of it" for name in record["outputs"] if name.startswith(_SIDE)}
    left |= {name: "taskmerge did not write it" for name in others if name.removesuffix(" (changed since)") != CARD}
    left |= {name: "unfinished" for name in (LOCK, UNFINISHED) if (folder / name).is_file()}
    made, texts = _card(folder, repository, record, scores)
    if left_out := set(record["outputs"]) - set(own):
        record["outputs"] = {name: digest for name, digest in record["outputs"].items() if name not in left_out}
    if CARD in texts:
        record["outputs"][CARD] = hashlib.sha256(texts[CARD].encode()).hexdigest()
    if texts or left_out:
        texts[FILE] = render(record)
    names = sorted({*own, CARD, FILE})
    sizes = {name: len(texts[name].encode()) if name in texts else (folder / name).stat().st_size for name in names}
    return Upload(folder, repository, sizes, left, made, texts, _local_paths(record))


def _checked(folder: Path) -> dict[str, Any]:
    """The record of a folder that is finished and as it was made."""
    unfinished = beside(folder, "partial")
    if folder.name.startswith(".") and folder.name.endswith(".partial"):
        unfinished = folder
    if unfinished.exists() and (folder == unfinished or not folder.exists()):
        move = "run the command that made it again: it resumes and publishes the model"
        raise CheckpointError("an unfinished output, not a model", str(unfinished), move)
    record: Record = read_record(folder)
    if record["kind"] not in PUSHED:
        raise CheckpointError(f"a folder of kind {record['kind']!r}, not a model", str(folder), "push the model itself")
    if findings := changed_files(folder):
        what = f"does not match its record: {'; '.join(findings[:3])}"
        raise CheckpointError(what, str(folder), "`taskmerge verify` shows details")
    whole: dict[str, Any] = read_json(folder / FILE, dict[str, Any], own=True)
    return whole


def _card(
    folder: Path, repository: str, record: Mapping[str, Any], scores: Sequence[Score]
) -> tuple[Card, dict[str, str]]:
    """The card with the name on the hub, to be written where the user has not edited or written one."""
    path = folder / CARD
    own = path.is_file() and sha256_of(path) != record["outputs"].get(CARD)
    kept = kept_in(path.read_text("utf-8")) if path.is_file() and not own else kept_card(_base_folder(folder, record))
    made = card(repository, record, in_folder(folder), kept=kept, scores=scores)
    return made, {} if own else {CARD: made.text}


def _base_folder(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The place of the first input of a model, if it still exists."""
    first: Mapping[str, Any] = next(iter(record["inputs"].values()), {})
    source = first.get("source", "")
    for place in (folder / source, Path(source)) if source else ():
        if place.is_dir():
            return place
    return None


def _local_paths(record: Mapping[str, Any]) -> list[str]:
    sources = (row for row in record["inputs"].values() if "commit" not in row)
    return list(dict.fromkeys(row["source"] for row in sources if "/" in row["source"] or "\\" in row["source"]))
