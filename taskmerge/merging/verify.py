"""Verification of a fused model against its record: hashes of inputs and output, and every tensor derived again."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.covariances import FILE as COVARIANCES
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.formats.table import is_weight_file
from taskmerge.checkpoints.hashing import content_sha256
from taskmerge.checkpoints.hub import locate
from taskmerge.checkpoints.output.checking import Checked, card_unchecked, files_checked, ways_compared
from taskmerge.checkpoints.output.layout import natural
from taskmerge.checkpoints.output.record import CARD, FILE, changed_files
from taskmerge.checkpoints.output.saving import CHUNK
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import Problem, RecipeError, few
from taskmerge.merging.few_bits import result_of, steps_in
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.identity import every_input
from taskmerge.merging.plan import plan
from taskmerge.merging.provenance import FusedRecord, read_provenance, sentence
from taskmerge.merging.steps import Plan
from taskmerge.recipes import loads
from taskmerge.words.named_objects import not_the_users
from taskmerge.words.parts import Part
from taskmerge.words.places import parse_place


def verify(
    folder: Path, rederive: bool = True, recipe_folder: Path | None = None, methods: Sequence[str] = ()
) -> list[str]:
    """Return the differences that `verified` finds, as sentences; empty without any."""
    return list(verified(folder, rederive, recipe_folder, methods).differences)


def model_folder(text: str) -> Path:
    """Return the folder that `verify` reads; for the uri of a store, its mirror. Raises CheckpointError."""
    if parse_place(text, "a model").kind != "store":
        return Path(text)
    place = locate(text)
    return place if isinstance(place, Path) else Path(text)


def verified(
    folder: Path,
    rederive: bool = True,
    recipe_folder: Path | None = None,
    methods: Sequence[str] = (),
    part: Part | None = None,
) -> Checked:
    """Compare the model in `folder` with its record.

    Args:
        folder: the model.
        rederive: also run the recorded recipe again and compare tensor by tensor (reads all inputs).
        recipe_folder: where the recipe's relative paths start; None: its earlier place, relative to `folder`, which
            fails when that was moved alone.
        methods: `file.py:name` of the user's own that the recorded recipe may use; no other code that it names is run.
        part: look at this share of the weight files and their tensors only; what is not of one file (inputs, rules, the
            small files) is looked at by the first part.

    Raises: CheckpointError without a record, and what planning raises when inputs are gone.
    """
    record = read_provenance(folder)
    first = part is None or part.number == 1
    hashed = [name for name in record["outputs"] if name != CARD]
    if part is not None:
        own = set(part.share(sorted((name for name in hashed if is_weight_file(name)), key=natural)))
        hashed = [name for name in hashed if name in own or (first and not is_weight_file(name))]
    differences = [*changed_files(folder, hashed), *(_unrecorded(folder, record) if first else ())]
    start = folder / record["recipe_folder"] if recipe_folder is None else recipe_folder
    with not_the_users(str(folder / FILE), methods):
        recipe = loads(record["recipe"], str(folder / FILE), start)
    try:
        decided = plan(recipe)
    except RecipeError as error:
        if recipe_folder is not None:
            raise
        looked = f"relative to the model, the recipe was in {os.path.normpath(start)}"
        move = (
            "if only the model was moved, give the folder in which the recipe's paths start: verify "
            "--recipe-folder FOLDER"
        )
        raise RecipeError([*error.problems, Problem(looked, str(folder / FILE), move)]) from None
    inputs = every_input(decided)
    steps = decided.steps
    checked = files_checked(hashed)
    if first:
        differences += [*_changed_inputs(decided, record), *_rules(decided, record)]
        checked += _looked_at(decided, inputs)
    names = None
    if part is not None:
        names = {name for shard in decided.shards if shard.file in hashed for name in shard.names}
        own_steps = steps_in(decided, names)
        steps = tuple(step for step in steps if step.info.name in own_steps)
    unchecked = card_unchecked(record) if first else []
    if part is not None:
        unchecked.append(f"everything outside part {part}")
    if first and (others := _others(folder, record)):
        unchecked.append(f"files that are not in the record: {few(others)}")
    if rederive:
        differences += _tensors(folder, decided, names)
        checked.append(f"{len(steps)} tensors: merged again, every bit compared")
    else:
        unchecked.append("tensors: not merged again (--hashes-only)")
    return Checked(tuple(differences), tuple(checked), tuple(unchecked))


def _looked_at(decided: Plan, inputs: Mapping[str, StateDict]) -> list[str]:
    """The comparisons in addition to the model's own files."""
    ways = ways_compared(file for one in inputs.values() for file in one.beside.files.values())
    return [
        *(f"{count} weight files of {len(inputs)} inputs: {way}" for way, count in ways.items()),
        f"{len(decided.steps)} tensors: compared with the recipe's plan",
    ]


def _unrecorded(folder: Path, record: FusedRecord) -> list[str]:
    """Weights and code that a loader may take and that the record does not know."""
    return [f"{name}: not in the record" for name in _unknown(folder, record) if _decides(name)]


def _others(folder: Path, record: FusedRecord) -> list[str]:
    return [name for name in _unknown(folder, record) if not _decides(name)]


def _decides(name: str) -> bool:
    """Whether a file of this name would be loaded with the model."""
    return not name.startswith(f"{COVARIANCES.parent}/") and (is_weight_file(name) or name.endswith(".py"))


def _unknown(folder: Path, record: FusedRecord) -> list[str]:
    known = {*record["outputs"], FILE, CARD}
    below = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    paths = (path.relative_to(folder) for path in below)
    return [str(path) for path in paths if str(path) not in known and not any(part[0] == "." for part in path.parts)]


def _changed_inputs(decided: Plan, record: FusedRecord) -> list[str]:
    findings = []
    for label, state_dict in every_input(decided).items():
        recorded = record["inputs"][label].get("files", {}) if label in record["inputs"] else {}
        found = {name: file.state or content_sha256(file.path) for name, file in state_dict.beside.files.items()}
        changed = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
        findings += [f"input {label}: {name} is not the recorded file" for name in changed]
    return findings


def _rules(decided: Plan, record: FusedRecord) -> list[str]:
    recorded = {name: record["rules"][number] for name, number in record["tensors"].items()}
    planned = {step.info.name: sentence(step) for step in decided.steps}
    return [
        f"tensor {name}: recorded {recorded.get(name)!r}, planned now {planned.get(name)!r}"
        for name in sorted(recorded.keys() | planned.keys())
        if recorded.get(name) != planned.get(name)
    ]


def _tensors(folder: Path, decided: Plan, names: Collection[str] | None = None) -> list[str]:
    """Differences of tensors, or of those of these names."""
    stored, fused = open_stored(folder), result_of(FusedStateDict(decided))
    findings = []
    every = stored.tensors.keys() | fused.tensors.keys()
    for name in sorted(every if names is None else every & set(names)):
        if name not in stored.tensors or name not in fused.tensors:
            findings.append(f"tensor {name}: {'missing' if name in fused.tensors else 'not planned'}")
        elif stored.tensors[name] != fused.tensors[name]:
            findings.append(f"tensor {name}: {stored.tensors[name]} stored, {fused.tensors[name]} derived")
        else:
            differing, first = _compare(stored, fused, name)
            if differing:
                findings.append(f"tensor {name}: {differing:,} entries differ, first at entry {first:,}")
    return findings


def _compare(stored: Any, fused: Any, name: str) -> tuple[int, int]:
    """Number of differing entries and the first of them."""
    count, differing, first = stored.tensors[name].count, 0, -1
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        one = stored.read(name, start, stop).view(np.uint8).reshape(stop - start, -1)
        two = fused.read(name, start, stop).view(np.uint8).reshape(stop - start, -1)
        unequal = np.flatnonzero((one != two).any(axis=1))
        if unequal.size and first < 0:
            first = start + int(unequal[0])
        differing += unequal.size
    return differing, first
