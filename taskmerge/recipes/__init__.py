"""Recipes: YAML in, frozen and checked dataclasses out."""

from taskmerge.recipes.depth import Standing, at_depth, layer_depth
from taskmerge.recipes.merging import Merge, Rule, Settings
from taskmerge.recipes.recipe import Recipe, from_dict, load, load_all, loads
from taskmerge.recipes.schema import schema
from taskmerge.recipes.searching import Floor, Range, Search
from taskmerge.recipes.sections import Output, Specialist, TokenRow
from taskmerge.recipes.stacking import runs_of
from taskmerge.recipes.stages import (
    Balance,
    Drift,
    Evaluate,
    FailAbove,
    Graft,
    Lora,
    Prompts,
    Recover,
    Rehearse,
    RolePrompts,
    Specialize,
    Training,
)

__all__ = [
    "Balance",
    "Drift",
    "Evaluate",
    "FailAbove",
    "Floor",
    "Graft",
    "Lora",
    "Merge",
    "Output",
    "Prompts",
    "Range",
    "Recipe",
    "Recover",
    "Rehearse",
    "RolePrompts",
    "Rule",
    "Search",
    "Settings",
    "Specialist",
    "Specialize",
    "Standing",
    "TokenRow",
    "Training",
    "at_depth",
    "from_dict",
    "layer_depth",
    "load",
    "load_all",
    "loads",
    "runs_of",
    "schema",
]
