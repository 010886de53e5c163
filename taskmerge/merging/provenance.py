"""The record next to a fused model: recipe, inputs, versions, the treatment of each tensor, sha256 of all."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.output.record import FILE, Record, new_record, read_record
from taskmerge.errors import CheckpointError
from taskmerge.merging.steps import Plan, TensorStep
from taskmerge.words.places import StoreUri

_LIBRARIES = ("numpy", "numba", "torch", "safetensors", "huggingface_hub")


def describe(
    plan: Plan, recipe: str, recipe_folder: Path, out: Path | StoreUri, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record as a table for JSON, without the output's own hashes. inputs: see `record.described`."""
    rules = sorted({sentence(step) for step in plan.steps})
    return new_record(
        "fused",
        "fuse",
        inputs,
        recipe=recipe,
        recipe_folder="." if isinstance(out, StoreUri) else os.path.relpath(recipe_folder, out),
        seed=plan.seed,
        versions=dict(versions()),
        components={name: dict(counts) for name, counts in plan.table().items()},
        rules=rules,
        tensors={step.info.name: rules.index(sentence(step)) for step in plan.steps},
        dropped={f"{drop.source.label}:{drop.source.name}": drop.rule for drop in plan.dropped},
    )


def sentence(step: TensorStep) -> str:
    """Describe the step of a tensor in words."""
    if step.action != "merge":
        return f"{step.action} from {step.source.label}: {step.rule}"
    shares = ", ".join(
        f"{source.label} {float(weight):g}" for source, weight in zip(step.specialists, step.weights, strict=True)
    )
    options = ", ".join(f"{name} {value}" for name, value in sorted(step.options.items()))
    return f"{step.method} ({options}) of {shares}: {step.rule}"


class FusedRecord(Record):
    """The fields of a fused model's record that are read again."""

    recipe: str
    recipe_folder: str
    tensors: dict[str, int]
    rules: list[str]


def read_provenance(folder: Path) -> FusedRecord:
    """Read the record of a fused model. Raises CheckpointError if it is missing or of another kind."""
    if (kind := read_record(folder)["kind"]) != "fused":
        raise CheckpointError(
            f"a folder of kind {kind!r}, which was not made from a recipe",
            str(folder),
            "give a folder that `taskmerge fuse` wrote",
        )
    path = folder / FILE
    move = "without its record the model cannot be verified; fuse it again"
    record: FusedRecord = read_json(path, FusedRecord, move)
    if not all(0 <= number < len(record["rules"]) for number in record["tensors"].values()):
        raise CheckpointError("tensors refer to rules that do not exist", str(path), move)
    if "\0" in record["recipe_folder"]:
        raise CheckpointError("contains a folder name with a zero byte", str(path), move)
    return record


@cache
def versions() -> Mapping[str, str | None]:
    """Return the versions of Python and of the libraries that a result may depend on; None if not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    table: dict[str, str | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            table[library] = version(library)
        except PackageNotFoundError:
            table[library] = None
    return table
