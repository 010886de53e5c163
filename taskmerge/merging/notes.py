"""Notes for the user about decisions that a fuse made itself: the class, copied tensors, and omissions with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from taskmerge.checkpoints.components import BUFFERS, HEAD
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.classes import class_name
from taskmerge.checkpoints.lineage.heads import Heads
from taskmerge.checkpoints.state_dict import BASE
from taskmerge.merging.steps import Dropped, TensorStep


def notes(
    census: Census, heads: Heads, steps: Sequence[TensorStep], dropped: Iterable[Dropped], config: Mapping[str, Any]
) -> list[str]:
    """Return one line per decision. config: the result's."""
    copied = [step for step in steps if step.action == "copy" and step.info.name not in census.base.tensors]
    return [
        *_class(census, config, copied),
        *_copied(census, copied),
        *_head(heads, steps, census),
        *_left_out(census, dropped),
    ]


def _class(census: Census, config: Mapping[str, Any], copied: Sequence[TensorStep]) -> Iterator[str]:
    naming = census.naming
    own = class_name(config) or str(config.get("model_type") or "")
    if naming.label != BASE:
        yield (
            f"config.json, tensor names and code: from {naming.label} ({own or 'no class is given'}), because of "
            "the tensors that it adds"
        )
    for label in naming.others:
        names = [step.info.name for step in copied if step.source.label == label]
        if names:
            theirs = class_name(census.inputs[label].config) or "no class is given"
            yield (
                f"warning: {label} has another class ({theirs}): its {_some(names)} are copied, "
                f"but {own or 'the class'} does not load them; load the result with a class that has both"
            )
    if naming.label == BASE and census.grafts:
        before = census.base.config
        gained = [key for key in config if config[key] != before.get(key)]
        added = f", with {', '.join(gained)} from {' and '.join(census.grafts)}" if gained else ""
        roots = tuple(".".join(one.root) + "." for one in census.components.inferred)
        unknown = [step.info.name for step in copied if roots and step.info.name.startswith(roots)]
        if gained or unknown:
            yield f"config.json: from the base{added}"
        if unknown:
            yield (
                f"warning: no config tells which class uses {_some(unknown)}; {own or 'the base'} may ignore "
                f"them: load the result with the class that saved {' and '.join(census.grafts)}"
            )


def _copied(census: Census, copied: Sequence[TensorStep]) -> Iterator[str]:
    groups: dict[str, dict[str, list[str]]] = {}
    for step in copied:
        home = census.components.home(step.info.name)
        groups.setdefault(step.source.label, {}).setdefault(home, []).append(step.info.name)
    for label, components in groups.items():
        yield f"copied from {label}: " + "; ".join(f"{home} {_some(names)}" for home, names in components.items())
    heads = [step.info.name for step in copied if step.component == HEAD and step.source.label != census.naming.label]
    if heads:
        own = class_name(census.inputs[census.naming.label].config)
        yield f"warning: {_some(heads)}: {own or 'the class of the result'} is not known to have such a head"


def _head(heads: Heads, steps: Sequence[TensorStep], census: Census) -> Iterator[str]:
    if heads.untied is not None and any(step.info.name == heads.untied for step in steps):
        ties = "the base ties it" if heads.by != BASE else "its config ties it"
        yield (
            f"{heads.by} has a separate output head, but {ties} to the token table: the result "
            f"stores {heads.untied} and sets tie_word_embeddings: false; to tie it, drop it with a rule"
        )


def _left_out(census: Census, dropped: Iterable[Dropped]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for drop in dropped:
        if not drop.asked:
            groups.setdefault((drop.source.label, drop.rule), []).append(drop.source.name)
    for (label, rule), names in groups.items():
        known = [name for name in names if name in census.components]
        buffers = bool(known) and all(census.components[name] == BUFFERS for name in known)
        keep = "" if buffers or not known else f"; to keep them, write copy: {{{label}: [{pattern_of(names, census)}]}}"
        if any("/" in name for name in names):
            keep = "; to keep them, make the base a folder with the same modules.json"
        yield f"left out of {label}: {_some(names)}: {rule}{keep}"


def pattern_of(names: Sequence[str], census: Census) -> str:
    """Return the pattern that selects these tensors in a recipe: their component if it has no others, else a glob."""
    component = census.components[names[0]]
    everybody = [name for name in census.own if census.components[name] == component]
    if set(everybody) == set(names) and not any(census.components[name] == component for name in census.base.tensors):
        return component
    return repr(names[0] if len(names) == 1 else f"{_start(names)}*")


def _start(names: Sequence[str]) -> str:
    """What all names begin with, character by character."""
    first, last = min(names), max(names)
    return first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _some(names: Sequence[str]) -> str:
    """How many tensors, and what their names begin with: "(37 tensors, whisper.*)"."""
    if len(names) == 1:
        return f"(1 tensor, {names[0]})"
    start = _start(names).rpartition(".")[0]
    return f"({len(names)} tensors, {f'{start}.*' if start else f'{names[0]}, …'})"
