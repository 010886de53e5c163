"""JSON Schema of sections that name a merge method: each method with its own parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.declarations import Parameter
from taskmerge.methods import MergeMethod, all_methods

FILE_METHOD = r"\.py:[A-Za-z_][A-Za-z_0-9]*$"


def by_method(
    own: Sequence[Parameter],
    key: str,
    *,
    required: Sequence[str] = (),
    replaced: Mapping[str, Any] | None = None,
    default: str | None = None,
    partial: bool = False,
) -> dict[str, Any]:
    """Return the schema of a mapping with its own keys and the parameters of the method in it.

    default: the method when none is named.  partial: none need be named, and then any method's parameters are allowed.
    """
    properties = {row.name: row.schema() for row in own} | dict(replaced or {})
    methods = all_methods()
    names = [name for method in methods for name in (method.name, *method.aliases)]
    properties[key] = {**properties[key], "anyOf": [{"enum": names}, {"type": "string", "pattern": FILE_METHOD}]}
    properties[key].pop("type", None)
    cases = [_case(method, key, properties, default, partial) for method in methods]
    if partial:
        cases.append({"if": {"not": {"required": [key]}}, "then": _closed(properties, _any_parameter(methods))})
    schema = {"type": "object", "properties": properties, "allOf": cases}
    return {**schema, "required": list(required)} if required else schema


def _case(
    method: MergeMethod, key: str, properties: Mapping[str, Any], default: str | None, partial: bool
) -> dict[str, Any]:
    names = [method.name, *method.aliases]
    chosen: dict[str, Any] = {"properties": {key: {"enum": names}}}
    if default not in names:
        chosen["required"] = [key]
    rows = {row.name: row.schema() for row in method.recipe_parameters}
    needed = [row.name for row in method.recipe_parameters if row.required]
    then = _closed(properties, rows)
    return {"if": chosen, "then": {**then, "required": needed} if needed else then}


def _closed(properties: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Names only for the section's own keys, which are described once, outside."""
    return {"properties": {**dict.fromkeys(properties, True), **more}, "additionalProperties": False}


def _any_parameter(methods: Sequence[MergeMethod]) -> dict[str, Any]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        for row in method.recipe_parameters:
            schema = row.kind.schema()
            if schema not in kinds.setdefault(row.name, []):
                kinds[row.name].append(schema)
    return {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in kinds.items()}
