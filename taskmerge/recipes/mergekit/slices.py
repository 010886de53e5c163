"""The slices of layers that a mergekit configuration takes from models, and the output's layers that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.declarations import At
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.models import Model, read_model


@dataclass(frozen=True)
class Source:
    """One model's part in a slice. layers: [first, end).  parameters: as written, with their place."""

    model: Model
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]
    at: At


@dataclass(frozen=True)
class Slice:
    """A run of output layers (all of them: no source has layers) and where they come from."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    at: At | None = None

    @property
    def height(self) -> int | None:
        """The number of its layers; None: as many as the models have."""
        layers = self.sources[0].layers
        return None if layers is None else layers[1] - layers[0]

    @property
    def moves_layers(self) -> bool:
        """True if its sources provide different layers."""
        return len({source.layers for source in self.sources}) > 1


def read_slices(config: Mapping[str, Any], at: At, findings: Findings) -> list[Slice]:
    """Return the slices of a configuration or of a module, for `models` as well as for `slices`."""
    given = [key for key in ("models", "slices") if config.get(key) is not None]
    if len(given) == 2:
        findings.problem("a configuration has `models` or `slices`, not both", at.child("slices").place)
    if not given:
        move = "give `models` or `slices` to merge"
        findings.problem("a configuration must list models or slices", at.place, move)
        return []
    if given[0] == "models":
        sources = _sources(config["models"], at.child("models"), ("model", "parameters"), findings)
        return [Slice(sources)] if sources else []
    listed, here = config["slices"], at.child("slices")
    if not isinstance(listed, (list, tuple)) or not listed:
        findings.problem("slices must be a list", here.place, "give models or slices to merge")
        return []
    found = [_slice(entry, here.child(index), findings) for index, entry in enumerate(listed)]
    return [part for part in found if part is not None]


def _slice(entry: Any, at: At, findings: Findings) -> Slice | None:
    if not isinstance(entry, Mapping) or "sources" not in entry:
        findings.problem("a slice must be a mapping with `sources`", at.place)
        return None
    findings.ignored(entry, ("sources", "parameters", "base_model", "residual_weight"), at)
    for key in ("base_model", "residual_weight"):
        if entry.get(key) is not None:
            findings.problem(
                f"{key} of a single slice is not supported", at.child(key).place, "set it for the complete merge"
            )
    sources = _sources(entry["sources"], at.child("sources"), ("model", "layer_range", "parameters"), findings)
    if len({end - first for source in sources if source.layers for first, end in [source.layers]}) > 1:
        findings.problem("the sources of a slice give different numbers of layers", at.child("sources").place,
                         "give every source a layer_range of the same length")  # fmt: skip
    return Slice(sources, _parameters(entry, at, findings), at.child("parameters")) if sources else None


def _sources(value: Any, at: At, keys: Sequence[str], findings: Findings) -> tuple[Source, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        findings.problem(f"{at.name} must be a list of models", at.place)
        return ()
    found: list[Source] = []
    for index, entry in enumerate(value):
        here = at.child(index)
        if not isinstance(entry, Mapping) or "model" not in entry:
            findings.problem(f"{here.name} must be a mapping with `model`", here.place)
            continue
        findings.ignored(entry, keys, here)
        model = read_model(entry["model"], here.child("model"), findings)
        layers = _layers(entry.get("layer_range"), here, findings) if "layer_range" in keys else None
        if model is None:
            continue
        if any(model == source.model for source in found):
            findings.problem(f"{model.path!r} is listed twice", here.place, "list it once, with one weight")
        found.append(Source(model, layers, _parameters(entry, here, findings), here.child("parameters")))
    return tuple(found)


def _parameters(entry: Mapping[str, Any], at: At, findings: Findings) -> Mapping[str, Any]:
    value = entry.get("parameters") or {}
    if isinstance(value, Mapping):
        return value
    findings.problem("parameters must be a mapping", at.child("parameters").place)
    return {}


def _layers(value: Any, at: At, findings: Findings) -> tuple[int, int] | None:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(end) is int for end in value)
    if whole and 0 <= value[0] < value[1]:
        return int(value[0]), int(value[1])
    findings.problem(f"layer_range must be [first, end), not {value!r}", at.child("layer_range").place)
    return None


def stack_of(slices: Sequence[Slice], names: Mapping[Model, str]) -> list[dict[str, str]] | None:
    """Return the recipe's `stack` for these slices; None if all layers keep their places.

    names: what the recipe calls each model.
    """
    if any(source.layers is None for part in slices for source in part.sources):
        return None
    return [
        {names[source.model]: f"{source.layers[0]}..{source.layers[1] - 1}" for source in part.sources if source.layers}
        for part in slices
    ]
