"""README.md of a fused model: what it was made from and how, in the form the hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from taskmerge import __version__
from taskmerge.merging.steps import Plan
from taskmerge.printable import printable, printable_line

_PLAIN = re.compile(r"[A-Za-z0-9]+([.-][A-Za-z0-9]+)*")

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
    fence = "`" * max(3, _longest_run(recipe) + 1)
    return f"""---
{header}
---
# {name if _PLAIN.fullmatch(name) else _code(name)}

Fused with taskmerge {__version__} from {", ".join(_code(text) for text in sources.values())}.

| component | merged | kept | copied |
|---|---|---|---|
{rows}

{fence}yaml
{printable(recipe).rstrip()}
{fence}

`taskmerge.json` holds the hashes of every input and output; `taskmerge verify` re-derives them.
"""


def _code(text: str) -> str:
    """A text as a code span: no markup, no HTML and no link is read in it."""
    text = printable_line(text)
    ticks = "`" * (_longest_run(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
