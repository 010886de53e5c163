"""Whether a fused model is what its record says: hashes of inputs and output, and every tensor derived again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.covariances import FILE as COVARIANCES
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.formats.table import is_weight_file
from taskmerge.checkpoints.hashing import content_sha256
from taskmerge.checkpoints.output.record import FUSED
from taskmerge.checkpoints.output.saving import CHUNK
from taskmerge.errors import Problem, RecipeError, few
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.identity import every_input
from taskmerge.merging.plan import plan
from taskmerge.merging.provenance import Record, read_provenance, sentence
from taskmerge.merging.steps import Plan
from taskmerge.recipes import loads

_OWN = (FUSED, "README.md")


@dataclass(frozen=True)
class Verified:
    """differences: every one between a model and its record. checked: what was compared, and how. unchecked: what lies
    there or is recorded, and was not."""

    differences: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def verify(folder: Path, rederive: bool = True, recipe_folder: Path | None = None) -> list[str]:
    """The differences that `verified` finds, as sentences; empty when there is none."""
    return list(verified(folder, rederive, recipe_folder).differences)


def verified(folder: Path, rederive: bool = True, recipe_folder: Path | None = None) -> Verified:
    """Compare the model in `folder` with its record.

    Args:
        folder: the model.
        rederive: also run the recorded recipe again and compare tensor by tensor (reads all inputs).
        recipe_folder: where the recipe's relative paths start; None: where it lay, seen from `folder`, which fails when
            that was moved alone.

    Raises: CheckpointError without a record, and what planning raises when inputs are gone.
    """
    record = read_provenance(folder)
    outputs, sides = record["outputs"], record.get("side_files")
    differences = [*_changed_files(folder, {**outputs, **(sides or {})}), *_unrecorded(folder, record)]
    start = folder / record["recipe_folder"] if recipe_folder is None else recipe_folder
    recipe = loads(record["recipe"], str(folder / FUSED), start)
    try:
        decided = plan(recipe)
    except RecipeError as error:
        if recipe_folder is not None:
            raise
        looked = f"seen from the model, the recipe lay in {os.path.normpath(start)}"
        move = "if the model was moved alone, say where the recipe's paths start: verify --recipe-folder FOLDER"
        raise RecipeError([*error.problems, Problem(looked, str(folder / FUSED), move)]) from None
    differences += [*_changed_inputs(decided, record), *_rules(decided, record)]
    inputs = every_input(decided)
    checked = [
        f"{len(outputs)} weight files of the model: sha256 of all bytes",
        f"{len(sides or ())} files beside them: sha256 of all bytes",
        f"{sum(len(one.beside.files) for one in inputs.values())} weight files of {len(inputs)} inputs: sha256 of all "
        "bytes",
        f"{len(decided.steps)} tensors: what the recipe plans for each",
    ]
    unchecked = [] if sides is not None else ["files beside the weights: this record holds no hashes of them"]
    if others := _others(folder, record):
        unchecked.append(f"files that are not in the record: {few(others)}")
    if rederive:
        differences += _tensors(folder, decided)
        checked.append(f"{len(decided.steps)} tensors: merged again, every bit compared")
    else:
        unchecked.append("tensors: not merged again (--hashes-only)")
    return Verified(tuple(differences), tuple(checked), tuple(unchecked))


def changed_outputs(folder: Path) -> list[str]:
    """Files of a fused model that are not the recorded ones, as sentences. Raises CheckpointError."""
    record = read_provenance(folder)
    return _changed_files(folder, {**record["outputs"], **record.get("side_files", {})}) + _unrecorded(folder, record)


def _changed_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    findings = []
    for name, digest in recorded.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            findings.append(f"{name}: lies outside the folder")
        elif not path.is_file():
            findings.append(f"{name}: missing")
        elif content_sha256(path) != digest:
            findings.append(f"{name}: its sha256 is not the recorded one")
    return findings


def _unrecorded(folder: Path, record: Record) -> list[str]:
    """Weights and code that a loader may take and that the record does not know."""
    return [f"{name}: not in the record" for name in _unknown(folder, record) if _decides(name)]


def _others(folder: Path, record: Record) -> list[str]:
    return [name for name in _unknown(folder, record) if not _decides(name)]


def _decides(name: str) -> bool:
    """Whether a file of this name would be loaded with the model."""
    return not name.startswith(f"{COVARIANCES.parent}/") and (is_weight_file(name) or name.endswith(".py"))


def _unknown(folder: Path, record: Record) -> list[str]:
    known = {*record["outputs"], *record.get("side_files", {}), *_OWN}
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    sides = record.get("side_files") is not None
    return [
        str(path)
        for path in paths
        if str(path) not in known
        and not any(part.startswith(".") for part in path.parts)
        and (sides or is_weight_file(str(path)))
    ]


def _changed_inputs(decided: Plan, record: Record) -> list[str]:
    findings = []
    for label, state_dict in every_input(decided).items():
        recorded = record["inputs"][label]["files"] if label in record["inputs"] else {}
        found = {name: content_sha256(file.path) for name, file in state_dict.beside.files.items()}
        changed = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
        findings += [f"input {label}: {name} is not the recorded file" for name in changed]
    return findings


def _rules(decided: Plan, record: Record) -> list[str]:
    recorded = {name: record["rules"][number] for name, number in record["tensors"].items()}
    planned = {step.info.name: sentence(step) for step in decided.steps}
    return [
        f"tensor {name}: recorded {recorded.get(name)!r}, planned now {planned.get(name)!r}"
        for name in sorted(recorded.keys() | planned.keys())
        if recorded.get(name) != planned.get(name)
    ]


def _tensors(folder: Path, decided: Plan) -> list[str]:
    stored, fused = open_stored(folder), FusedStateDict(decided)
    findings = []
    for name in sorted(stored.tensors.keys() | fused.tensors.keys()):
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
