"""Check of a folder made here against its record: all its files, and the tensors that a training left frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.reading import StoredStateDict, open_stored
from taskmerge.checkpoints.hashing import content_sha256
from taskmerge.checkpoints.output.record import CARD, FILE, Record, Source, changed_files, contents, read_record
from taskmerge.checkpoints.output.saving import CHUNK
from taskmerge.errors import InputError, few


class Checked(NamedTuple):
    """The result of checking a folder made here.

    differences: from its record, as sentences. checked: the comparisons that were made, and their method. unchecked:
    files that are in the folder or in the record, and were not compared.
    """

    differences: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


class _Trained(TypedDict):
    trained: list[str]


def check_made(folder: Path) -> Checked:
    """Compare a folder with its record: every file, what it was made from, and the tensors that training left alone.

    Those of the model that was trained are compared entry by entry where it is still at hand. Raises CheckpointError
    without a record.
    """
    record = read_record(folder)
    differences, checked, unchecked = changed_files(folder), files_checked(record["outputs"]), card_unchecked(record)
    others = [name.removesuffix(" (changed since)") for name in contents(folder).others]
    if strange := [name for name in others if name not in record["outputs"]]:
        unchecked.append(f"files that are not in the record: {few(strange)}")
    at_hand = {}
    for label, source in record["inputs"].items():
        place = folder / source.get("source", "")
        if not source.get("files") or not place.exists():
            unchecked.append(f"input {label}: not available: {source.get('source', '')}")
            continue
        try:
            stored = open_stored(place)
        except InputError as error:
            differences.append(f"input {label} cannot be opened: {error.problems[0].what} ({source.get('source', '')})")
            continue
        changed = list(_changed(stored, source))
        differences += [f"input {label}: {name} is not the recorded file" for name in changed]
        if not changed:
            at_hand[label] = stored
            ways = ways_compared(stored.beside.files.values())
            checked += [f"input {label}, {count} weight files: {way}" for way, count in ways.items()]
    if record["kind"] in ("trained", "recovered") and "model" in at_hand:
        trained: _Trained = read_json(folder / FILE, _Trained, own=True)
        counted, moved = _frozen(open_stored(folder), at_hand["model"], frozenset(trained["trained"]))
        differences += moved
        checked.append(f"{counted:,} tensors that were not trained: every bit compared with the previous model")
    return Checked(tuple(differences), tuple(checked), tuple(unchecked))


def files_checked(names: Iterable[str]) -> list[str]:
    """Describe the comparison that `changed_files` makes of these files."""
    return [f"{len([name for name in names if name != CARD]):,} files of the folder: sha256 of all bytes"]


def ways_compared(files: Iterable[WeightFile]) -> dict[str, int]:
    """Count the input files by method of comparison, in words; files in a store are not read for it."""
    stated = [file.state is not None for file in files]
    ways = {"sha256 of all bytes": stated.count(False), "version that the store or the hub states": sum(stated)}
    return {way: count for way, count in ways.items() if count}


def card_unchecked(record: Record) -> list[str]:
    """Describe the recorded file that `changed_files` leaves out."""
    return [f"{CARD}: not compared, because users may edit the card"] if CARD in record["outputs"] else []


def _changed(stored: StoredStateDict, source: Source) -> Iterator[str]:
    recorded = source.get("files", {})
    found = {name: file.state or content_sha256(file.path) for name, file in stored.beside.files.items()}
    yield from sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))


def _frozen(now: StoredStateDict, before: StoredStateDict, trained: frozenset[str]) -> tuple[int, list[str]]:
    """Number of tensors compared, and those that differ though they were not trained."""
    counted, differences = 0, []
    for name, info in now.tensors.items():
        if name in trained or before.tensors.get(name) != info:
            continue
        counted += 1
        for start in range(0, info.count, CHUNK):
            stop = min(start + CHUNK, info.count)
            if now.read(name, start, stop).tobytes() != before.read(name, start, stop).tobytes():
                differences.append(f"tensor {name}: was not trained, but differs from the previous model")
                break
    return counted, differences
