"""README.md of a model that no recipe describes: what it was made from and how, in the form the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from taskmerge import __version__
from taskmerge.checkpoints.output import markdown
from taskmerge.checkpoints.output.record import Source

_DONE = {
    "specialize": "Trained on one modality",
    "recover": "A fused model whose projectors were trained again",
    "rehearse": "A fused model trained on all its modalities in turn",
    "graft": "An encoder attached to a backbone through a fresh projector that nothing was trained on",
    "apply": "A model plus a task vector",
    "soup": "The mean of several checkpoints",
    "extract": "A task vector: what training changed, to be added to its base",
}


def card(name: str, record: Mapping[str, Any]) -> str:
    """Text of the card of a folder, from its record.

    Paths of somebody's disk mean nothing to others: of them only the last part is named.
    """
    stage, sources, trained = record["stage"], record["inputs"], record["kind"] in ("trained", "recovered")
    front: dict[str, Any] = {"tags": ["taskmerge", stage]}
    if trained or record["kind"] == "grafted":
        front["library_name"] = "sentence-transformers"
    if hub := [row["source"] for row in sources.values() if "commit" in row]:
        front["base_model"] = hub
        front["base_model_relation"] = "finetune" if trained else "merge"
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    rows = "\n".join(
        f"| {markdown.code(_named(label), True)} | {markdown.code(_place(row), True)} |"
        for label, row in sources.items()
    )
    return f"""---
{header}
---
# {markdown.name(name)}

{_DONE.get(stage, "Written")}, with taskmerge {__version__} (`{stage}`).

| from | model |
|---|---|
{rows}

{_scores(record.get("report", {}))}
`taskmerge.json` holds the sha256 of every file and of what it was made from; `taskmerge verify` compares them.
"""


def _named(label: str) -> str:
    return PurePath(label).name or label


def _place(row: Source) -> str:
    return row["source"] if "commit" in row else PurePath(row["source"]).name


def _scores(report: Mapping[str, Any]) -> str:
    """The held-out scores before and after, or those of every arm that was tried."""
    if "arms" in report:
        lines = [f"| {markdown.name(arm['name'])} | {arm['scores']['mrr']:.3f} |" for arm in report["arms"]]
        return "\n".join(["| way | held-out MRR |", "|---|---|", *lines, "", f"Kept: {report['kept']}.", ""])
    before, after = report.get("before", {}), report.get("after", {})
    if not after:
        return ""
    lines = [f"| {markdown.name(name)} | {before[name]:.3f} | {after[name]:.3f} |" for name in after if name in before]
    return "\n".join(["| held out | before | after |", "|---|---|---|", *lines, ""])
