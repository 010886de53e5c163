"""taskmerge.json, the record in every folder made here: what made it, from what, and the sha256 of each file.

A folder without one was not made here: nothing in it is ever replaced or removed, and of a folder with one only the
files that are as the record says.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypedDict

from taskmerge import __version__
from taskmerge.checkpoints.cards.declared import Declared, declared
from taskmerge.checkpoints.formats.header import read_file_header
from taskmerge.checkpoints.formats.json_files import LARGEST, read_json
from taskmerge.checkpoints.formats.links import check_link
from taskmerge.checkpoints.formats.table import SAFETENSORS, is_weight_file
from taskmerge.checkpoints.hashing import content_sha256, sha256_of
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.stores.mirrors import remote_bytes
from taskmerge.errors import CheckpointError
from taskmerge.whole_files import unfinished_of, write_whole
from taskmerge.words.places import repository_of

FILE = "taskmerge.json"
UNFINISHED = unfinished_of(Path(FILE)).name
"""Its next version, while that is written."""
CARD = "README.md"
"""The model card: written once, and the user's to edit from then on."""
FORMER = ("taskmerge_training.json", "taskmerge_recovery.json")
"""Records of trained models before there was one record for all; they do not say which files are theirs."""
LOCK = ".lock"
LOCK_MARK = b"taskmerge\n"
"""What a lock of ours begins with; the names of files that were begun follow, one JSON text a line."""

Kind = Literal["fused", "model", "trained", "recovered", "grafted", "task vector", "adapter", "report", "demo", "work"]


class Source(TypedDict, total=False):
    """Something a folder was made from. source: as the user named it. files: name -> sha256, of a
    file in a store its version there (`etag:…`). commit: on the hub. declared: what it says of itself."""

    source: str
    files: dict[str, str]
    commit: str
    declared: list[Declared]


class Record(TypedDict):
    """The fields of every record; some kinds of folders have further ones.

    taskmerge: version. stage: command that made it (fuse, recover, extract, …). inputs: label -> source of the input.
    outputs: every file of the folder except the record itself, relative name -> sha256.
    """

    taskmerge: str
    kind: Kind
    stage: str
    inputs: dict[str, Source]
    outputs: dict[str, str]


def new_record(kind: Kind, stage: str, inputs: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the record of a folder, without its files. more: additional fields of this kind of folder."""
    return {"taskmerge": __version__, "kind": kind, "stage": stage, "inputs": dict(inputs or {}), "outputs": {}, **more}


def render(record: Mapping[str, Any]) -> str:
    """Return the file's text: the same record gives the same bytes."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def read_record(folder: Path) -> Record:
    """Read the record of a folder made here. Raises CheckpointError for a missing or invalid record."""
    path = folder / FILE
    if not path.is_file():
        older = next((name for name in FORMER if (folder / name).is_file()), None)
        what = f"has no {FILE}: it was not made by taskmerge"
        if older:
            what = f"has {older} of an older taskmerge and no {FILE}, which describes each file"
        move = "`verify MODEL --base BASE` with --recipe, --adapter or --specialist checks a merge made by any program"
        raise CheckpointError(what, str(folder), move)
    move = "without its record it is impossible to check whether the folder was changed; make it again"
    check_link(path, folder)
    record: Record = read_json(path, Record, move, own=True)
    if any("\0" in name for name in record["outputs"]):
        raise CheckpointError("lists file names with a zero byte", str(path), move)
    return record


def is_made_here(folder: Path, *kinds: Kind) -> bool:
    """Return whether a folder (not a link to one) has our record; kinds: of one of these kinds."""
    try:
        return not folder.is_symlink() and (read_record(folder)["kind"] in kinds or not kinds)
    except (CheckpointError, OSError):
        return False


def described(inputs: Mapping[str, StateDict]) -> dict[str, Source]:
    """Describe the inputs by label: the text that named each, commit on the hub, sha256 of each file, its card."""
    table: dict[str, Source] = {}
    for label, state_dict in inputs.items():
        files = {name: file.state or sha256_of(file.path) for name, file in state_dict.beside.files.items()}
        table[label] = {"source": state_dict.label, "files": files}
        if commit := state_dict.beside.commit:
            table[label]["commit"] = commit
        named = repository_of(state_dict.label.removeprefix("hf://")) if commit else None
        if said := declared(state_dict.beside.folders, named[0] if named else None):  # [{}]: looked, nothing said
            table[label]["declared"] = said
    return table


def weights_digest(folder: Path) -> str | None:
    """Return one hash of all weight files of a folder made here, from its record; None for any other folder."""
    if not is_made_here(folder):
        return None
    rows = sorted((name, digest) for name, digest in read_record(folder)["outputs"].items() if is_weight_file(name))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class Contents(NamedTuple):
    """The content of a folder made here.

    own: names of the files that the record lists and that are unchanged, and of the record. others: files that are not
    ours: not in the record or changed since, links, folders, mount points.
    """

    own: dict[str, os.stat_result]
    others: list[str]


def contents(folder: Path) -> Contents:
    """Separate the files of a folder that were written here and are unchanged from everything else.

    Raises CheckpointError for a folder without a record.
    """
    outputs = read_record(folder)["outputs"]
    parents = {str(parent) for name in outputs for parent in PurePosixPath(name).parents}
    own: dict[str, os.stat_result] = {}
    others: list[str] = []
    for name, entry in _entries(folder, parents):
        if entry is not None and _is_own(folder, name, outputs):
            own[name] = entry
        else:
            others.append(f"{name} (changed since)" if entry is not None and name in outputs else name)
    return Contents(own, sorted(others))


def _is_own(folder: Path, name: str, outputs: Mapping[str, str]) -> bool:
    if name in (FILE, UNFINISHED) or (name == LOCK and is_lock(folder / name)):
        return True
    return name in outputs and _could_be_ours(folder / name) and sha256_of(folder / name) == outputs[name]


def _entries(folder: Path, parents: set[str], inside: str = "") -> Iterator[tuple[str, os.stat_result | None]]:
    """Every regular file below a folder, with its state; links, folders of no file of ours and the like with None."""
    home = folder.stat().st_dev
    with os.scandir(folder) as found:
        rows = sorted(found, key=lambda row: row.name)
    for row in rows:
        name, state = inside + row.name, row.stat(follow_symlinks=False)
        if stat.S_ISREG(state.st_mode):
            yield name, state
        elif stat.S_ISDIR(state.st_mode) and name in parents and state.st_dev == home:
            yield from _entries(Path(row.path), parents, name + "/")
        else:
            yield name + "/" * stat.S_ISDIR(state.st_mode), None


def _could_be_ours(path: Path) -> bool:
    """Whether it is worth hashing a file: what took its place may be a terabyte of holes."""
    if path.suffix == ".json":
        return path.stat().st_size <= LARGEST
    if SAFETENSORS.called(path.name) and remote_bytes(path) is None:
        try:
            read_file_header(path)
        except CheckpointError:
            return False
    return True


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock of ours, or one that was created and not yet written to."""
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(len(LOCK_MARK))
        return start == LOCK_MARK[: state.st_size]
    except OSError:
        return False


def add_to_record(folder: Path, name: str) -> None:
    """Says of a file that was written into a folder made here that it is ours too; of any other folder nothing."""
    if not is_made_here(folder):
        return
    record: dict[str, Any] = read_json(folder / FILE, dict[str, Any])
    record["outputs"][name] = sha256_of(folder / name)
    write_record(folder, record)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record into a folder, completely or not at all. Raises OSError."""
    write_whole(folder / FILE, render(record))


def changed_files(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """Describe the files of a folder made here that differ from its record; the card may have been edited.

    names: which of the record's files to look at. Raises CheckpointError without a record.
    """
    findings, outputs = [], read_record(folder)["outputs"]
    for name in outputs if names is None else names:
        path = folder / name
        if name == CARD:
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            findings.append(f"{name}: is outside the folder")
        elif not path.is_file():
            findings.append(f"{name}: missing")
        elif not _could_be_ours(path) or content_sha256(path) != outputs[name]:
            findings.append(f"{name}: its sha256 is not the recorded one")
    return findings
