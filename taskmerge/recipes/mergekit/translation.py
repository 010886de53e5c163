"""A mergekit configuration -> the plain values of a recipe that gives its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import RecipeError, did_you_mean
from taskmerge.recipes.mergekit.cast import Cast, cast
from taskmerge.recipes.mergekit.findings import Findings
from taskmerge.recipes.mergekit.methods import PEERS, Peer
from taskmerge.recipes.mergekit.models import read_model
from taskmerge.recipes.mergekit.modules import PATTERNS, TEXT, read_modules
from taskmerge.recipes.mergekit.rules import Region, merged_by
from taskmerge.recipes.mergekit.settings import Level, Reader
from taskmerge.recipes.mergekit.slices import Slice, read_slices, stack_of
from taskmerge.recipes.mergekit.tokenizer import read_output

KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
ITSELF = "itself"
"""What the recipe calls the base as a specialist, where a configuration lists nothing else."""


def translate(config: Mapping[str, Any], at: At, results: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of an equivalent recipe, and notes for the user about ignored or assumed settings.

    results: the folders of models that earlier documents made, by name. Raises RecipeError with everything that cannot
    be done.
    """
    findings = Findings()
    recipe = _recipe(config, at, findings)
    if findings.problems:
        raise RecipeError(list(dict.fromkeys(findings.problems)))
    recipe["base"] = results.get(recipe["base"], recipe["base"])
    for specialist in recipe["specialists"].values():
        specialist["model"] = results.get(specialist["model"], specialist["model"])
    return recipe, findings.notes


def _recipe(config: Mapping[str, Any], at: At, findings: Findings) -> dict[str, Any]:
    findings.ignored(config, KEYS, at)
    peer = _peer(config, at, findings)
    base = read_model(config["base_model"], at.child("base_model"), findings) if config.get("base_model") else None
    sections = read_modules(config, at, findings)
    slices = {name: read_slices(section, place, findings) for name, (section, place) in sections.items()}
    own = config.get("parameters") or {}
    if not isinstance(own, Mapping):
        findings.problem("parameters must be a mapping", at.child("parameters").place)
    if peer is None or findings.problems or not slices:
        return {}
    method, place = str(config["merge_method"]), at.child("merge_method")
    everything = [part for parts in slices.values() for part in parts]
    whole = all(source.layers is None for part in everything for source in part.sources)
    roles = cast(method, peer, base, everything, place, whole, findings)
    if roles is None or findings.problems:
        return {}
    regions = _regions(sections, slices, roles, peer, (own, at.child("parameters")), place, findings)
    recipe = _models(roles)
    if not roles.names:  # nothing but the base: the result is the base
        recipe["specialists"] = {ITSELF: {"model": "base"}}
        recipe["merge"] = {"edges": "first", "rules": [{"match": ["*"], "keep": "base"}]}
    else:
        recipe["merge"] = _merge(regions, roles, peer, findings)
    stack = _stack(regions, roles, findings)
    return recipe | ({"stack": stack} if stack else {}) | {"output": read_output(config, at, roles, base, findings)}


def _peer(config: Mapping[str, Any], at: At, findings: Findings) -> Peer | None:
    name = config.get("merge_method")
    if isinstance(name, str) and name in PEERS:
        return PEERS[name]
    what = f"mergekit's merge method {name!r} is not supported" if name else "the configuration lacks 'merge_method'"
    findings.problem(what, at.child("merge_method").place, did_you_mean(str(name), PEERS))
    return None


def _regions(
    sections: Mapping[str, tuple[Mapping[str, Any], At]],
    slices: Mapping[str, list[Slice]],
    roles: Cast,
    peer: Peer,
    whole: Level,
    method: At,
    findings: Findings,
) -> dict[str, Region]:
    """The modules, each with its slices as the cast has them. whole: the configuration's own parameters."""
    found, start = {}, 0
    for name, (section, at) in sections.items():
        parts = roles.slices[start : start + len(slices[name])]
        start += len(parts)
        levels: list[Level] = [whole]
        if at.path:
            levels = [(section.get("parameters") or {}, at.child("parameters")), whole]
        reader = Reader(peer, roles.names, levels, method, findings)
        reader.check(parts)
        found[name] = Region(PATTERNS[name] if len(sections) > 1 else None, parts, reader)
    return found


def _models(roles: Cast) -> dict[str, Any]:
    recipe: dict[str, Any] = {"base": roles.base.path, "specialists": {}}
    if roles.base.adapter:
        recipe["base_adapter"] = roles.base.adapter
    for model, name in roles.names.items():
        # `base` alone would mean the recipe's base.
        path = "./base" if model.path == "base" else model.path
        recipe["specialists"][name] = {"model": path} | ({"adapter": model.adapter} if model.adapter else {})
    return recipe


def _merge(regions: Mapping[str, Region], roles: Cast, peer: Peer, findings: Findings) -> dict[str, Any]:
    merge = {"method": peer.method, "edges": "first", **peer.fixed}
    if peer.spaces and not roles.starts:
        merge["space"] = "model"
    rules: list[dict[str, Any]] = []
    for region in regions.values():
        general, some = merged_by(region, findings)
        if peer.base == "none" and not _scales([general, *some]):
            general, some = {}, []
            rules.append({"match": [region.pattern or "*"], "optional": True, "keep": "base"})
        if region.pattern is None:
            merge |= general
        else:
            _check_models(region, roles, peer, findings)
            some = [_padded(rule, roles) for rule in some]
            some += [{"match": [region.pattern], "optional": True, **_padded(general, roles)}] if general else []
        rules += some
    if len(regions) > 1:
        findings.note(
            "tensors of modules that are not listed are taken from the base",
            regions[next(iter(regions))].reader.at.place,
        )
        rules.append({"match": ["*"], "optional": True, "keep": "base"})
    return {**merge, "rules": rules} if rules else merge


def _scales(said: list[dict[str, Any]]) -> bool:
    """Whether passthrough multiplies anything."""
    return any(weight != 1.0 for rule in said for weight in rule.get("weight", {}).values())


def _check_models(region: Region, roles: Cast, peer: Peer, findings: Findings) -> None:
    """A method without weights counts every model that has a tensor, so that each must be in each module."""
    here = {source.model for part in region.slices for source in part.sources}
    missing = [name for model, name in roles.names.items() if model not in here]
    if missing and not peer.weight and peer.base != "none":
        place = region.slices[0].sources[0].at.place
        findings.problem(f"{missing[0]} is in another module but not in this one", place, "list it in each module")


def _padded(said: dict[str, Any], roles: Cast) -> dict[str, Any]:
    """Models that a module leaves out weigh nothing there."""
    if "weight" not in said:
        return said
    return {**said, "weight": {**dict.fromkeys(roles.names.values(), 0.0), **said["weight"]}}


def _stack(regions: Mapping[str, Region], roles: Cast, findings: Findings) -> list[dict[str, str]] | None:
    """The layers of the output, as the module that has the backbone says."""
    labels = {model: roles.label(model) for model in (*roles.names, *([roles.base] if roles.starts else []))}
    stack: list[dict[str, str]] | None = None
    for name, region in regions.items():
        if name in TEXT:
            stack = stack_of(region.slices, labels)
        elif len(region.slices) > 1 or any(part.moves_layers for part in region.slices):
            place = region.slices[0].sources[0].at.place
            findings.problem(
                f"the layers of {name} are rearranged, which is supported only for the text decoder", place
            )
    if stack and not roles.names:
        stack = [{**entry, ITSELF: entry["base"]} for entry in stack]
    return stack
