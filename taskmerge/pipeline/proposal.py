"""A first recipe for a base and its specialists: what their headers tell, each choice with its reason.

The proposed text is an ordinary recipe. It is planned before it is given out: what cannot be merged is told now.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoints.components import COMPONENTS
from taskmerge.errors import UsageError
from taskmerge.merging import plan
from taskmerge.merging.steps import Plan
from taskmerge.recipes import Recipe, loads
from taskmerge.words.modalities import NAMES, TEXT, modality, through

_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE)
_PLAIN = re.compile(r"[\w./][\w./@-]*")
_OF_ANOTHER_KIND = re.compile(r"[-\d._e]+|true|false|null|yes|no|on|off|y|n", re.IGNORECASE)
_METHOD_REASON = (
    "# The plain sum of task vectors: on language models no other method reliably beats it (arXiv "
    "2511.21437).\n# `taskmerge methods` lists the rest; `taskmerge compare` shows how much the specialists "
    "conflict."
)


@dataclass(frozen=True)
class Proposal:
    """text: the recipe, commented.  plan: what it does."""

    text: str
    plan: Plan


def propose(base: str, specialists: Sequence[str], folder: Path, out: str = "out/merged") -> Proposal:
    """Propose a recipe for a base and models trained from it; headers are read, no tensor is.

    Args:
        base: path, hub id or hf:// uri, as a recipe takes them.
        specialists: the same, each also as name=path; models, adapters or task vectors.
        folder: of the recipe, from which its relative paths start.
        out: the output folder that it names.

    Returns:
        The recipe's text and its plan.

    Raises:
        UsageError: for no specialist, two of one name, or a model without a name.
        CheckpointError, MergeError: for what cannot be opened or does not fit together.
    """
    models = {name: _from(folder, path) for name, path in _named(specialists).items()}
    head = _head(_from(folder, base), models, round(1 / len(models), 3), out)
    said = loads(head, "the proposed recipe", folder)
    decided = plan(said)
    own = _own_components(decided)
    text = head + _copied(own) + _drift(own, said)
    return Proposal(text, plan(loads(text, "the proposed recipe", folder)))


def _named(specialists: Sequence[str]) -> dict[str, str]:
    if not specialists:
        raise UsageError("no specialist", next_move="give the models trained from the base: taskmerge init BASE MODEL…")
    models: dict[str, str] = {}
    for text in specialists:
        name, given, path = text.partition("=")
        if not given or Path(text).exists():
            name, path = _name_of(text, models), text
        if name in models:
            raise UsageError(f"two specialists are called {name!r}", next_move="give them names: a=PATH b=PATH")
        models[name] = path
    return models


def _from(folder: Path, text: str) -> str:
    """A path of the current folder as the recipe's folder sees it; hub ids, uris and whole paths as they are."""
    if not text.strip():
        raise UsageError(f"{text!r} is not a model", next_move="give a path, a hub id or a hf:// uri")
    if not Path(text).exists() or Path(text).is_absolute():
        return text
    return os.path.relpath(text, folder)


def _name_of(path: str, taken: Mapping[str, str]) -> str:
    """A modality that the path speaks of, else the last part of the path, else that with a number."""
    words = _WORD.findall(path.rstrip("/").rpartition("/")[2].partition("@")[0].lower())
    spoken = [row.name for word in words if (row := modality(word)) is not None and row.name != TEXT]
    name = spoken[0] if len(set(spoken)) == 1 else "_".join(words) or "specialist"
    name = name if name not in ("base", "union") else f"{name}_model"
    return name if name not in taken else f"{name}_{len(taken) + 1}"


def _head(base: str, models: Mapping[str, str], weight: float, out: str) -> str:
    width = max(map(len, models))
    rows = [
        f"  {name + ':':<{width + 1}} {{model: {_text(path)}, weight: {weight:g}}}" for name, path in models.items()
    ]
    share = "its complete task vector" if len(models) == 1 else f"1/{len(models)} each: their mean"
    return "\n".join(
        [
            "# Proposed by `taskmerge init`; edit it as you like. `taskmerge fuse --dry-run` shows the plan.",
            f"base: {_text(base)}",
            "",
            f"# Weights: {share}. A larger weight favours a specialist. Choose by scores on held-out pairs.",
            "specialists:",
            *rows,
            "",
            _METHOD_REASON,
            "merge: {method: task_arithmetic}",
            "",
            f"output: {{path: {_text(out)}}}",
            "",
        ]
    )


def _text(value: str) -> str:
    """A text as YAML takes it, quoted where it has to be."""
    plain = _PLAIN.fullmatch(value) and not _OF_ANOTHER_KIND.fullmatch(value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _own_components(decided: Plan) -> dict[str, list[str]]:
    """Specialist -> components that only it has, whose tensors are copied from it."""
    found: dict[str, set[str]] = {}
    for step in decided.steps:
        if step.action == "copy" and step.component in COMPONENTS:
            found.setdefault(step.source.label, set()).add(step.component)
    return {name: sorted(parts, key=COMPONENTS.index) for name, parts in found.items()}


def _copied(own: Mapping[str, Sequence[str]]) -> str:
    if not own:
        return ""
    lines = ["", "# Components that only one specialist has are copied from it (also without these lines):"]
    rows = ", ".join(f"{name}: [{', '.join(parts)}]" for name, parts in own.items())
    return "\n".join([*lines, f"copy: {{{rows}}}", ""])


def _drift(own: Mapping[str, Sequence[str]], said: Recipe) -> str:
    """What to measure and repair, left commented: it needs pairs, which nothing here can know."""
    drifting = {name: [part for part in parts if part.endswith("projector")] for name, parts in own.items()}
    drifting = {name: parts for name, parts in drifting.items() if parts}
    names = list(said.specialists)
    if not drifting:
        sets = ", ".join(f"{name}: data/{name}_test.jsonl" for name in names)
        return "\n".join(
            [
                "",
                "# Measure what the fusion lost, on pairs that no specialist was trained on:",
                f"# evaluate: {{retrieval: {{{sets}}}}}",
                "",
            ]
        )
    parts = sorted({part for found in drifting.values() for part in found})
    data = {name: _modality_of(name, found) for name, found in drifting.items()}
    probes = ", ".join(f"{name}: data/{of}_probes.jsonl" for name, of in data.items())
    pairs = ", ".join(f"{of}: data/{of}_pairs.jsonl" for of in dict.fromkeys(data.values()))
    tests = ", ".join(f"{of}: data/{of}_test.jsonl" for of in dict.fromkeys(data.values()))
    return "\n".join(
        [
            "",
            f"# {', '.join(parts)} {'was' if len(parts) == 1 else 'were'} trained for a backbone that the "
            f"fusion changes.",
            "# About 200 pairs show whether retrieval broke; a few hundred more repair it. Add your own "
            "pairs, then `taskmerge run`.",
            f"# drift: {{specialist: [{', '.join(drifting)}], probes: {{{probes}}}}}",
            f"# recover: {{train: [{', '.join(parts)}], data: {{{pairs}}}}}",
            f"# evaluate: {{retrieval: {{{tests}}}}}",
            "",
        ]
    )


def _modality_of(name: str, parts: Sequence[str]) -> str:
    """The modality whose pairs probe a specialist: its name where that is one, else what its projector is of."""
    if name in NAMES:
        return name
    tower = parts[0].removesuffix("projector").rstrip("_")
    return next(iter(through(tower)), name) if tower else name
