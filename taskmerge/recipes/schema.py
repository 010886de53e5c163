"""The recipe's grammar as a JSON Schema (draft 7), printed from the declarations; editors check recipes with it."""

from __future__ import annotations

from typing import Any

from taskmerge.declarations import fields_of, object_schema
from taskmerge.recipes.recipe import Recipe


def schema() -> dict[str, Any]:
    """JSON Schema of a whole recipe."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "taskmerge recipe",
        **object_schema(fields_of(Recipe)),
    }
