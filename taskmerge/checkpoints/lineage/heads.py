"""Output heads that are token tables: inputs that store a head of their own, and its substitute in the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from taskmerge.checkpoints.components import is_token_table
from taskmerge.checkpoints.lineage.classes import class_name, lacks_head
from taskmerge.checkpoints.lineage.twins import equal_tensors, main_table, with_alias, without
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.views import ViewedStateDict, whole

_HEADS = (
    ("lm_head", "weight"), ("embed_out", "weight"), ("proj_out", "weight"), ("vocab_projector", "weight"),
    ("generator_lm_head", "weight"), ("predictions", "decoder", "weight"), ("lm_head", "decoder", "weight"),
)  # fmt: skip
# Names that other modules bear too: a head where it has the token table's shape.
_MAYBE_HEADS = (
    ("decoder", "weight"), ("head", "weight"), ("output", "weight"), ("output_projection", "weight"),
    ("lm_loss", "weight"), ("pred_layer", "proj", "weight"), ("lm_head", "out_proj", "weight"),
)  # fmt: skip

_LAST = tuple(".".join(ending) for ending in (*_HEADS, *_MAYBE_HEADS))


@dataclass(frozen=True)
class Heads:
    """All inputs with the same output heads.

    untied: the head that the result stores though its config ties it to the table; None where nothing changes. by: an
    input with a head of its own. same: specialists that store their table twice -> the head's name for it.
    """

    inputs: Mapping[str, StateDict]
    untied: str | None = None
    by: str = ""
    same: Mapping[str, str] = field(default_factory=dict)


def _is_output_head(name: str, shape: tuple[int, ...], table: tuple[int, ...] | None) -> bool:
    """Whether a tensor has the name of an output head that may be tied to the token table, and a shape that fits."""
    if not name.endswith(_LAST) or len(shape) != 2:  # nearly always, and names may be very many
        return False
    parts = tuple(name.split("."))
    if any(parts[-len(ending) :] == ending for ending in _HEADS):
        return table is None or shape[1:] == table[1:]
    return shape == table and any(parts[-len(ending) :] == ending for ending in _MAYBE_HEADS)


def ties_its_head(config: Mapping[str, Any]) -> bool | None:
    """Return whether the output head is the token table; None if the config does not state it."""
    parts = [config, *(part for key in ("text_config", "llm_config") if isinstance(part := config.get(key), Mapping))]
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return bool(said[0]) if said else None


def match_heads(inputs: Mapping[str, StateDict], naming: str = BASE) -> Heads:
    """Return the inputs, under one naming, each with a head if one of them has its own.

    An input that ties its head to its token table has that table for a head. Where the result's config (that of the
    input `naming`) ties and some head is another than its table, the result must store one, whatever
    `tie_word_embeddings` states in addition. Only then are values read, of table and head, up to where they differ.
    """
    stored = {label: name for label, state_dict in inputs.items() if (name := _stored(state_dict)) is not None}
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
    slim = {label: without(inputs[label], stored[label]) if label in same else inputs[label] for label in inputs}
    if not own:
        return Heads(slim, same=same)
    head = stored[own[0]]
    return Heads(_with_head(slim, head, own, base), head, own[0], same)


def with_own_head(state_dict: StateDict, name: str | None = None) -> StateDict:
    """Return a model with a tied head as one that stores it; itself if the head is not tied or missing.

    name: the head's; left out: what goes with the token table's name, of a class that is known to have a head.
    """
    table = _table(state_dict)
    ties = ties_its_head(state_dict.config) is not False if name is not None else _ties(state_dict, state_dict)
    if table is None or _stored(state_dict) is not None or not ties:
        return state_dict
    parts = table.split(".")
    inside = parts.index("model") if "model" in parts else 0
    return _untied(with_alias(state_dict, name or ".".join([*parts[:inside], "lm_head", "weight"]), table))


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in which every statement about a tied head is false."""
    said: dict[str, Any] = {"tie_word_embeddings": False}
    for key, value in config.items():
        if key != "tie_word_embeddings":
            inner = isinstance(value, Mapping) and "tie_word_embeddings" in value
            said[key] = untied_config(value) if inner else value
    return {key: said[key] for key in [*config, *said]}


def _with_head(inputs: Mapping[str, StateDict], head: str, own: list[str], base: StateDict) -> dict[str, StateDict]:
    found: dict[str, StateDict] = {}
    for label, state_dict in inputs.items():
        table = _table(state_dict)
        name = _stored(state_dict)
        if name is not None and name != head and label in own and head not in state_dict.tensors:
            found[label] = _renamed(state_dict, name, head)
        elif name is None and table is not None and _ties(state_dict, base):
            found[label] = with_alias(state_dict, head, table)
        else:
            found[label] = state_dict
    return found


def _stored(state_dict: StateDict) -> str | None:
    table = _table(state_dict)
    shape = state_dict.tensors[table].shape if table is not None else None
    return next((name for name, info in state_dict.tensors.items() if _is_output_head(name, info.shape, shape)), None)


def _table(state_dict: StateDict) -> str | None:
    """The token table that a head could be: the only one, or the one to which others are tied."""
    tables = [
        name for name, info in state_dict.tensors.items()
        if is_token_table(name) and len(info.shape) == 2 and "per_layer" not in name
    ]  # fmt: skip
    return main_table(tables)


def _ties(state_dict: StateDict, base: StateDict) -> bool:
    """Whether a model that stores no head has its token table for one. A class with a head must have it somewhere; what
    has no config, such as a task vector, is as the base."""
    if not state_dict.config:
        return state_dict is not base and bool(base.config) and _ties(base, base)
    said, has_none = ties_its_head(state_dict.config), lacks_head(state_dict.config, "lm_head.weight") is not None
    if said is None or (state_dict is base and has_none):
        return bool(class_name(state_dict.config)) and not has_none
    return said


def _is_its_own(state_dict: StateDict, head: str) -> bool:
    """Whether a stored head is another than the model's token table."""
    table = _table(state_dict)
    return table is None or not equal_tensors(state_dict, table, head)


def _renamed(state_dict: StateDict, name: str, head: str) -> StateDict:
    views = {head if own == name else own: whole(info, head if own == name else own)
             for own, info in state_dict.tensors.items()}  # fmt: skip
    return ViewedStateDict(state_dict, views)


def _untied(state_dict: StateDict) -> StateDict:
    state_dict.beside = replace(state_dict.beside, config=untied_config(state_dict.config))
    return state_dict
