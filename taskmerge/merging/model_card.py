"""README.md of a fused model: what it was made from and how, in the form the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskmerge import __version__
from taskmerge.checkpoints.output import markdown
from taskmerge.merging.steps import Plan


def model_card(plan: Plan, name: str, recipe: str, sources: Mapping[str, str]) -> str:
    """Text of the card. sources: input label -> what the recipe called it (a hub id, a path).

    Only hub ids go into the front matter's `base_model`; a path of somebody's disk means nothing there.
    """
    parents = [text for text in sources.values() if "/" in text and not text.startswith((".", "/", "~"))]
    front: dict[str, Any] = {"tags": ["merge", "taskmerge"], "library_name": "transformers"}
    if parents:
        front["base_model"] = parents
        front["base_model_relation"] = "merge"
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    rows = "\n".join(
        f"| {component} | {counts['merge']} | {counts['keep']} | {counts['copy']} |"
        for component, counts in sorted(plan.table().items())
    )
    return f"""---
{header}
---
# {markdown.name(name)}

Fused with taskmerge {__version__} from {", ".join(markdown.code(text) for text in sources.values())}.

| component | merged | kept | copied |
|---|---|---|---|
{rows}

{markdown.block(recipe, "yaml")}

`taskmerge.json` holds the hashes of every input and output; `taskmerge verify` re-derives them.
"""
