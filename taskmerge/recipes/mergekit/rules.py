"""From slices of layers and filters to rules: which tensors are merged how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.recipes.depth import layer_depth
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.settings import Reader, Settings
from taskmerge.recipes.mergekit.slices import Slice
from taskmerge.recipes.mergekit.values import literal, outer, situations

_LAYERS = "{layers,layer,h,blocks,block,decoder_layers}"


@dataclass(frozen=True)
class Region:
    """A part of the model with slices of its own. pattern: what names its tensors; None: all."""

    pattern: str | None
    slices: Sequence[Slice]
    reader: Reader


def merged_by(region: Region, findings: Findings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings for a region's tensors in general, and the rules for some of them."""
    if len(region.slices) == 1:
        return _by_filter(region, region.slices[0])
    rules: list[dict[str, Any]] = []
    start = 0
    for part in region.slices:
        rules += _layer_rules(region, part, start, findings)
        start += part.height or 0
    first = region.reader.settings(region.slices[0])
    for contained in situations(list(first.values())):
        rules.append(_rule(region, ["embeddings"], contained, region.reader.said(first, contained, 0.0)))
    closing, filtered = _by_filter(region, region.slices[-1], 0.0)
    return closing, [*rules, *filtered]


def _by_filter(region: Region, part: Slice, at: float | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One slice: a rule for each combination of filters that decides, the rest in general. at: see `Reader.said`."""
    settings = region.reader.settings(part)
    *filtered, rest = situations(list(settings.values()))
    rules = []
    for contained in filtered:
        first, *others = [f"*{literal(text)}*" for text in outer(contained)]
        said = region.reader.said(settings, contained, at)
        rules.append(_rule(region, [first], frozenset(), said, others))
    return region.reader.said(settings, rest, at), rules


def _layer_rules(region: Region, part: Slice, start: int, findings: Findings) -> list[dict[str, Any]]:
    """The rules for the layers of one slice, which begin at `start` in the output."""
    settings = region.reader.settings(part)
    height = part.height or 0
    _check_filters(settings, part, start, findings)
    if not any(one.varies for one in settings.values()):
        return _at_layers(region, settings, f"{{{start}..{start + height - 1}}}", None)
    return [
        rule
        for layer in range(height)
        for rule in _at_layers(region, settings, str(start + layer), layer_depth(layer, height))
    ]


def _at_layers(region: Region, settings: Settings, layers: str, depth: float | None) -> list[dict[str, Any]]:
    # A name inside its component begins with the layers, or with their prefix.
    match = [f"backbone.{_LAYERS}.{layers}.*", f"backbone.*.{_LAYERS}.{layers}.*"]
    return [
        _rule(region, match, contained, region.reader.said(settings, contained, depth))
        for contained in situations(list(settings.values()))
    ]


def _check_filters(settings: Settings, part: Slice, start: int, findings: Findings) -> None:
    """mergekit looks for a filter in the name that a tensor has in its source; we know the output's."""
    moved = any(source.layers and source.layers[0] != start for source in part.sources)
    numbered = [text for one in settings.values() for text in one.filters if any(sign.isdigit() for sign in text)]
    if moved and numbered:
        what = f"the filter {numbered[0]!r} refers to layer numbers that the slices change"
        findings.problem(what, part.sources[0].at.place, "put that layer into its own slice")


def _rule(
    region: Region, match: list[str], contained: frozenset[str], said: dict[str, Any], also: Sequence[str] = ()
) -> dict[str, Any]:
    also = [*([region.pattern] if region.pattern else []), *also, *(f"*{literal(text)}*" for text in outer(contained))]
    return {"match": match, **({"also": also} if also else {}), "optional": True, **said}
