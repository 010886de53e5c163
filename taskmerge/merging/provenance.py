"""The record that lies beside a fused model: recipe, inputs, versions, what became of each tensor, sha256 of all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from taskmerge import __version__
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.output.record import FUSED
from taskmerge.errors import CheckpointError
from taskmerge.merging.steps import Plan, TensorStep

_LIBRARIES = ("numpy", "numba", "torch", "safetensors", "huggingface_hub")


def describe(plan: Plan, recipe: str, recipe_folder: Path, out: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The record as a table for JSON, but for the output's own hashes. inputs: see `describe_inputs`."""
    rules = sorted({sentence(step) for step in plan.steps})
    return {
        "taskmerge": __version__,
        "recipe": recipe,
        "recipe_folder": os.path.relpath(recipe_folder, out),
        "seed": plan.seed,
        "inputs": inputs,
        "versions": dict(versions()),
        "rules": rules,
        "tensors": {step.info.name: rules.index(sentence(step)) for step in plan.steps},
        "dropped": {f"{drop.source.label}:{drop.source.name}": drop.rule for drop in plan.dropped},
    }


def sentence(step: TensorStep) -> str:
    """What happened to a tensor, in words."""
    if step.action != "merge":
        return f"{step.action} from {step.source.label}: {step.rule}"
    shares = ", ".join(
        f"{source.label} {float(weight):g}" for source, weight in zip(step.specialists, step.weights, strict=True)
    )
    options = ", ".join(f"{name} {value}" for name, value in sorted(step.options.items()))
    return f"{step.method} ({options}) of {shares}: {step.rule}"


class _InputRecord(TypedDict):
    files: dict[str, str]


class _Record(TypedDict):
    recipe: str
    recipe_folder: str
    inputs: dict[str, _InputRecord]
    outputs: dict[str, str]
    tensors: dict[str, int]
    rules: list[str]


class Record(_Record, total=False):
    """What of a taskmerge.json is read back. side_files: those beside the weights, name -> sha256."""

    side_files: dict[str, str]


def read_provenance(folder: Path) -> Record:
    """The record of a model made by taskmerge. Raises CheckpointError when there is none."""
    path = folder / FUSED
    if not path.is_file():
        move = "say what it should be: verify MODEL --base BASE --recipe FILE (or --adapter FOLDER, --specialist MODEL)"
        raise CheckpointError(f"has no {FUSED}: it was not made by taskmerge fuse", str(folder), move)
    move = "without its record the model cannot be verified; fuse it again"
    record: Record = read_json(path, Record, move)
    if not all(0 <= number < len(record["rules"]) for number in record["tensors"].values()):
        raise CheckpointError("tensors name rules that are not there", str(path), move)
    if any("\0" in text for text in (record["recipe_folder"], *record["outputs"], *record.get("side_files", {}))):
        raise CheckpointError("names files with a zero byte", str(path), move)
    return record


def render(record: Mapping[str, Any]) -> str:
    """The file's text: the same record gives the same bytes."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@cache
def versions() -> Mapping[str, str | None]:
    """Those of Python and of the libraries that a result may depend on; None for one that is not there."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    table: dict[str, str | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            table[library] = version(library)
        except PackageNotFoundError:
            table[library] = None
    return table
