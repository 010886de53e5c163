"""References to models in a mergekit configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.declarations import At
from taskmerge.recipes.mergekit.findings import Findings


@dataclass(frozen=True)
class Model:
    """A model, perhaps with an adapter over it. path: folder or hub id[@revision]."""

    path: str
    adapter: str | None = None


def read_model(value: Any, at: At, findings: Findings) -> Model | None:
    """Read a model from `path`, `path+lora`, {model: …, lora: …} or {path: …, revision: …}."""
    if isinstance(value, str) and value.strip():
        path, _, adapter = value.partition("+")
        return Model(path.strip(), adapter.strip() or None)
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        findings.ignored(value, ("path", "revision"), at)
        revision = value.get("revision")
        return Model(f"{value['path']}@{revision}" if revision else value["path"])
    if isinstance(value, Mapping) and "model" in value:
        findings.ignored(value, ("model", "lora", "override_architecture"), at)
        if value.get("override_architecture"):
            findings.note("override_architecture is not needed here: tensors are found by name",
                          at.child("override_architecture").place)  # fmt: skip
        model = read_model(value["model"], at.child("model"), findings)
        lora = read_model(value["lora"], at.child("lora"), findings) if value.get("lora") else None
        return model and Model(model.path, lora.path if lora else model.adapter)
    findings.problem(
        f"{at.name} must be the path or hub id of a model, not {value!r}", at.place, "write its path or hub id"
    )
    return None


def names_for(models: Iterable[Model]) -> dict[Model, str]:
    """Return a short name for each model: the last part of its path, numbered if two are the same."""
    names: dict[Model, str] = {}
    for model in models:
        last = re.split(r"[/\\@]", (model.adapter or model.path).rstrip("/\\"))[-1]
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", last).lstrip("_.-") or "model"
        name, count = plain, 1
        while name in names.values() or name in ("base", "union", "zero"):
            count += 1
            name = f"{plain}_{count}"
        names[model] = name
    return names
