"""How a mergekit configuration names models, and the slices of layers it takes from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import Problem


@dataclass(frozen=True)
class Model:
    """A model, perhaps with an adapter over it. path: folder or hub id[@revision]."""

    path: str
    adapter: str | None = None


@dataclass(frozen=True)
class Source:
    """One model's part in a slice. parameters: as written, with their place."""

    model: Model
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]
    at: At


@dataclass(frozen=True)
class Slice:
    """A run of output layers (all of them: layers None) and where they come from."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    at: At | None = None

    @property
    def layers(self) -> tuple[int, int] | None:
        return self.sources[0].layers


def read_model(value: Any, at: At, problems: list[Problem]) -> Model | None:
    """`path`, `path+lora`, {model: …, lora: …} or {path: …, revision: …}."""
    if isinstance(value, str) and value.strip():
        path, _, adapter = value.partition("+")
        return Model(path.strip(), adapter.strip() or None)
    if isinstance(value, Mapping) and set(value) <= {"path", "revision"} and isinstance(value.get("path"), str):
        revision = value.get("revision")
        return Model(f"{value['path']}@{revision}" if revision else value["path"])
    if isinstance(value, Mapping) and "model" in value and set(value) <= {"model", "lora"}:
        model = read_model(value["model"], at.child("model"), problems)
        lora = read_model(value["lora"], at.child("lora"), problems) if value.get("lora") else None
        if model is None or model.adapter is None or lora is None:
            return model and Model(model.path, lora.path if lora else model.adapter)
    unknown = (
        [key for key in value if key not in ("model", "lora", "path", "revision")] if isinstance(value, Mapping) else []
    )
    what = f"{unknown[0]!r} of a model is not read" if unknown else f"{at.name} must name a model, not {value!r}"
    problems.append(Problem(what, at.child(unknown[0]).place if unknown else at.place, "write its path or hub id"))
    return None


def read_slices(config: Mapping[str, Any], at: At, problems: list[Problem]) -> list[Slice]:
    """The output's slices, whether given as `models` or as `slices`."""
    if "models" in config and "slices" in config:
        problems.append(Problem("a configuration has `models` or `slices`, not both", at.child("slices").place))
    if "models" in config:
        sources = _sources(config["models"], at.child("models"), {"model", "parameters"}, problems)
        return [Slice(sources)] if sources else []
    slices = []
    listed = config.get("slices")
    if not isinstance(listed, (list, tuple)) or not listed:
        problems.append(Problem("slices must be a list", at.child("slices").place, "name models or slices to merge"))
        return []
    for index, entry in enumerate(listed):
        here = at.child("slices").child(index)
        if not isinstance(entry, Mapping) or "sources" not in entry:
            problems.append(Problem("a slice must be a mapping with `sources`", here.place))
            continue
        refuse_others(entry, {"sources", "parameters"}, here, problems)
        sources = _sources(entry["sources"], here.child("sources"), {"model", "layer_range", "parameters"}, problems)
        if sources:
            slices.append(Slice(sources, _parameters(entry, here, problems), here.child("parameters")))
    return slices


def _sources(value: Any, at: At, keys: set[str], problems: list[Problem]) -> tuple[Source, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        problems.append(Problem(f"{at.name} must be a list of models", at.place))
        return ()
    found: list[Source] = []
    for index, entry in enumerate(value):
        here = at.child(index)
        if not isinstance(entry, Mapping) or "model" not in entry:
            problems.append(Problem(f"{here.name} must be a mapping with `model`", here.place))
            continue
        refuse_others(entry, keys, here, problems)
        model = read_model(entry["model"], here.child("model"), problems)
        layers = _layers(entry.get("layer_range"), here, problems) if "layer_range" in keys else None
        if model is None:
            continue
        if any(model == source.model for source in found):
            problems.append(Problem(f"{model.path!r} is named twice", here.place, "give it once, with one weight"))
        found.append(Source(model, layers, _parameters(entry, here, problems), here.child("parameters")))
    return tuple(found)


def _parameters(entry: Mapping[str, Any], at: At, problems: list[Problem]) -> Mapping[str, Any]:
    value = entry.get("parameters") or {}
    if isinstance(value, Mapping):
        return value
    problems.append(Problem("parameters must be a mapping", at.child("parameters").place))
    return {}


def _layers(value: Any, at: At, problems: list[Problem]) -> tuple[int, int] | None:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(end) is int for end in value)
    if whole and 0 <= value[0] < value[1]:
        return int(value[0]), int(value[1])
    problems.append(Problem(f"layer_range must be [first, end), not {value!r}", at.child("layer_range").place))
    return None


def refuse_others(value: Mapping[str, Any], known: Iterable[str], at: At, problems: list[Problem]) -> None:
    """A problem for every key that is not known: what it asks for would not be done."""
    for key in value:
        if key not in known:
            what = f"{key!r} in {at.dotted} is not read from mergekit configurations"
            problems.append(Problem(what, at.child(key).place, "remove it, or write a taskmerge recipe"))


def check_layout(slices: list[Slice], problems: list[Problem]) -> int | None:
    """The number of layers when slices cover a model in order; None when all layers are taken as they come.

    What rearranges layers is refused.
    """
    if len(slices) == 1 and slices[0].layers is None:
        return None
    end = 0
    for part in slices:
        for source in part.sources:
            if source.layers is None or source.layers != part.layers or source.layers[0] != end:
                problems.append(
                    Problem(
                        "these slices rearrange layers, which taskmerge does not do",
                        source.at.place,
                        "slices must follow one another from layer 0 on, with the same layer_range in each source",
                    )
                )
                return None
        end = part.layers[1] if part.layers else end
    return end


def names_for(models: Iterable[Model]) -> dict[Model, str]:
    """A short name for each model: the last part of its path, numbered where two are the same."""
    names: dict[Model, str] = {}
    for model in models:
        last = re.split(r"[/\\@]", (model.adapter or model.path).rstrip("/\\"))[-1]
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", last).lstrip("_.-") or "model"
        name, count = plain, 1
        while name in names.values() or name in ("base", "union"):
            count += 1
            name = f"{plain}_{count}"
        names[model] = name
    return names
