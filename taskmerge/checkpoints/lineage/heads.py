"""Output heads that are token tables: which inputs store one of their own, and what stands for it in the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taskmerge.checkpoints.components import is_token_table
from taskmerge.checkpoints.lineage.classes import class_name, lacks_head
from taskmerge.checkpoints.views import ViewedWeights, whole
from taskmerge.checkpoints.weights import BASE, Weights
from taskmerge.numbers.rounding import decode

_CHUNK = 1 << 20
_HEADS = (
    ("lm_head", "weight"), ("embed_out", "weight"), ("proj_out", "weight"), ("vocab_projector", "weight"),
    ("generator_lm_head", "weight"), ("predictions", "decoder", "weight"), ("lm_head", "decoder", "weight"),
)  # fmt: skip


@dataclass(frozen=True)
class Heads:
    """All inputs with the same output heads.

    untied: the head that the result stores though its config ties it to the table; None where nothing changes. by: an
    input with a head of its own. same: specialists that store their table twice -> the head's name for it.
    """

    inputs: Mapping[str, Weights]
    untied: str | None = None
    by: str = ""
    same: Mapping[str, str] = field(default_factory=dict)


def is_output_head(name: str) -> bool:
    """Whether a tensor bears the name of an output head that may be tied to the token table."""
    parts = tuple(name.split("."))
    return any(parts[-len(ending) :] == ending for ending in _HEADS)


def ties_its_head(config: Mapping[str, Any]) -> bool | None:
    """Whether the output head is the token table; None when the config does not say."""
    parts = [config, *(part for key in ("text_config", "llm_config") if isinstance(part := config.get(key), Mapping))]
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return bool(said[0]) if said else None


def match_heads(inputs: Mapping[str, Weights], naming: str = BASE) -> Heads:
    """The inputs, under one naming, with a head wherever one of them has its own.

    An input that ties its head to its token table has that table for a head. Where the result's config (that of the
    input `naming`) ties and some head is another than its table, the result must store one, whatever
    `tie_word_embeddings` says beside it. Only then are values read, of table and head, up to where they differ.
    """
    stored = {label: name for label, weights in inputs.items() if (name := _stored(weights)) is not None}
    base = inputs[BASE]
    if not stored or (BASE not in stored and not _ties(base, base)):
        return Heads(inputs)
    if BASE in stored:
        matched = _with_head(inputs, stored[BASE], list(stored), base)
        ties = ties_its_head(inputs[naming].config)
        by = next((label for label, name in stored.items() if ties and _is_its_own(inputs[label], name)), None)
        return Heads(matched, stored[BASE] if by else None, by or "")
    own = [label for label, name in stored.items() if _is_its_own(inputs[label], name)]
    same = {label: name for label, name in stored.items() if label not in own}
    slim = {label: _without(inputs[label], stored[label]) if label in same else inputs[label] for label in inputs}
    if not own:
        return Heads(slim, same=same)
    head = stored[own[0]]
    return Heads(_with_head(slim, head, own, base), head, own[0], same)


def with_own_head(weights: Weights) -> Weights:
    """A model that ties its head as one that stores it, under the name that goes with its token table's; itself where
    it does not tie, or has no head."""
    table = _table(weights)
    has_none = lacks_head(weights.config, "lm_head.weight") is not None or not class_name(weights.config)
    if table is None or _stored(weights) is not None or has_none or not ties_its_head(weights.config):
        return weights
    parts = table.split(".")
    inside = parts.index("model") if "model" in parts else 0
    head = ".".join([*parts[:inside], "lm_head", "weight"])
    return _untied(_add(weights, head, table))


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says, wherever it spoke of it, that the head is not the token table."""
    said: dict[str, Any] = {"tie_word_embeddings": False}
    for key, value in config.items():
        if key != "tie_word_embeddings":
            inner = isinstance(value, Mapping) and "tie_word_embeddings" in value
            said[key] = untied_config(value) if inner else value
    return {key: said[key] for key in [*config, *said]}


def _with_head(inputs: Mapping[str, Weights], head: str, own: list[str], base: Weights) -> dict[str, Weights]:
    found: dict[str, Weights] = {}
    for label, weights in inputs.items():
        table = _table(weights)
        name = _stored(weights)
        if name is not None and name != head and label in own and head not in weights.tensors:
            found[label] = _renamed(weights, name, head)
        elif name is None and table is not None and _ties(weights, base):
            found[label] = _add(weights, head, table)
        else:
            found[label] = weights
    return found


def _stored(weights: Weights) -> str | None:
    table = _table(weights)
    width = weights.tensors[table].shape[1:] if table is not None else None
    for name, info in weights.tensors.items():
        if is_output_head(name) and len(info.shape) == 2 and (width is None or info.shape[1:] == width):
            return name
    return None


def _table(weights: Weights) -> str | None:
    """The token table, where there is just one that a head could be."""
    tables = [
        name for name, info in weights.tensors.items()
        if is_token_table(name) and len(info.shape) == 2 and "per_layer" not in name
    ]  # fmt: skip
    return tables[0] if len(tables) == 1 else None


def _ties(weights: Weights, base: Weights) -> bool:
    """Whether a model that stores no head has its token table for one. A class with a head must have it somewhere; what
    has no config, such as a task vector, is as the base."""
    if not weights.config:
        return weights is not base and bool(base.config) and _ties(base, base)
    said, has_none = ties_its_head(weights.config), lacks_head(weights.config, "lm_head.weight") is not None
    if said is None or (weights is base and has_none):
        return bool(class_name(weights.config)) and not has_none
    return said


def _is_its_own(weights: Weights, head: str) -> bool:
    """Whether a stored head is another than the model's token table."""
    table = _table(weights)
    if table is None or weights.tensors[table].shape != weights.tensors[head].shape:
        return True
    one, two = weights.tensors[table], weights.tensors[head]
    for start in range(0, one.count, _CHUNK):
        stop = min(start + _CHUNK, one.count)
        first, second = (decode(weights.read(info.name, start, stop), info.dtype) for info in (one, two))
        if not np.array_equal(first, second, equal_nan=True):
            return True
    return False


def _views(weights: Weights) -> dict[str, Any]:
    return {name: whole(info, name) for name, info in weights.tensors.items()}


def _add(weights: Weights, head: str, table: str) -> Weights:
    return ViewedWeights(weights, _views(weights) | {head: whole(weights.tensors[table], head)})


def _renamed(weights: Weights, name: str, head: str) -> Weights:
    views = {head if own == name else own: whole(info, head if own == name else own)
             for own, info in weights.tensors.items()}  # fmt: skip
    return ViewedWeights(weights, views)


def _without(weights: Weights, head: str) -> Weights:
    views = _views(weights)
    del views[head]
    return ViewedWeights(weights, views)


def _untied(weights: Weights) -> Weights:
    weights.beside = replace(weights.beside, config=untied_config(weights.config))
    return weights
