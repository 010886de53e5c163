"""Search for the model among the tables in a file of `torch.save`: trainers wrap it, and save other data with it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskmerge.checkpoints.formats.unpickling import Record, Reference, Storage
from taskmerge.checkpoints.formats.whisper import whisper_config, whisper_names
from taskmerge.errors import CheckpointError, few

SAVE_ANEW = "save only its tensors: torch.save(model.state_dict(), FILE), or transformers' save_pretrained"
_MODEL = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network", "weights", "params")
"""Keys under which trainers save the model, the likeliest first."""
_AVERAGE = re.compile(r".*(ema|swa|average|shadow|teacher|momentum).*", re.IGNORECASE)
_TRAINER = re.compile(r".*(optim|sched|scaler|rng|callback|loop|hparams|hyper_param|grad|criterion).*", re.IGNORECASE)
_DEEPEST = 4


@dataclass(frozen=True)
class Found:
    """tensors: the model's. notes: what was assumed about the file, and what of it is left out. config: of the model,
    as far as the file says it."""

    tensors: Mapping[str, Reference]
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def find_model(root: Any, place: str) -> Found:
    """Return the model in a saved object: named tensors themselves, or a table of them under a key.

    Raises CheckpointError when there is none, or several and no telling which is meant.
    """
    spot = _spot(root, place)
    found = _named(spot, place)
    return found if spot.dims is None else _of_whisper(found, spot.dims)


def find_pieces(root: Any, place: str) -> Mapping[str, Any]:
    """Find the model as `find_model` does; its tensors may be one rank's parts."""
    table = _spot(root, place).table
    return {name: value for name, value in table.items() if _is_tensor(value)}


def model_under(
    paths: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]], place: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Select the model's tensors among those at paths of keys: name -> key of `paths`; and notes for the user."""
    root: dict[str, Any] = {}
    for key, path in paths.items():
        table = root
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise CheckpointError(f"{key!r} is listed inside a tensor", place, SAVE_ANEW)
        table[path[-1]] = Reference(Storage(key, "", 0), "", 0, shapes[key], shapes[key])
    found = _named(_spot(root, place), place)
    return {name: value.storage.key for name, value in found.tensors.items()}, found.notes


@dataclass(frozen=True)
class _Spot:
    """The place of the model: its table, the keys that lead to it, the data next to it, openai-whisper's sizes."""

    table: Mapping[str, Any]
    path: tuple[str, ...]
    left: tuple[str, ...]
    dims: Mapping[str, Any] | None = None


def _spot(root: Any, place: str) -> _Spot:
    path: list[str] = []
    left: list[str] = []
    table, dims = _table(root), None
    for _ in range(_DEEPEST):
        if table is None:
            break
        key = _model_key(table, place)
        if key is None and any(_is_tensor(value) or _is_numbers(value) for value in table.values()):
            return _Spot(table, tuple(path), tuple(left), dims)
        if key is None:
            break
        left += [other for other in table if other != key]
        dims = table["dims"] if isinstance(table.get("dims"), Mapping) else dims
        path.append(key)
        table = _table(table[key])
    raise CheckpointError("contains no named tensors" + _instead(root), place, SAVE_ANEW)


def _table(value: Any) -> Mapping[str, Any] | None:
    """A table by names, also where it is a class of its own."""
    if isinstance(value, Record):
        value = value.items
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        return value
    return None


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether a value is a table of tensors, or of one such table and more."""
    table = _table(value)
    if table is None or depth > _DEEPEST:
        return False
    return any(_is_tensor(one) or _holds_tensors(one, depth + 1) for one in table.values())


def _model_key(table: Mapping[str, Any], place: str) -> str | None:
    """The key that the model is under; None where the table is the model itself, or holds none."""
    holding = [key for key, value in table.items() if _holds_tensors(value)]
    models = [key for key in holding if not _TRAINER.fullmatch(key)]
    plain = [key for key in models if not _AVERAGE.fullmatch(key)] or models
    known = [key for key in _MODEL if key in plain]
    own = [value for value in table.values() if _is_tensor(value)]
    if any(not _is_number(value) for value in own) or (own and not known):
        return None
    if known:
        return known[0]
    if len(plain) > 1:
        raise CheckpointError(
            f"contains several tables of tensors: {few(map(repr, plain), 6)}",
            place,
            f"save the one that you want separately: torch.save(torch.load(FILE)[{plain[0]!r}], 'model.pt')",
        )
    return plain[0] if plain else None


def _is_number(value: Any) -> bool:
    """Whether a tensor is one number: a step, a loss."""
    return isinstance(value, Reference) and math.prod(value.shape) == 1


def _named(spot: _Spot, place: str) -> Found:
    table = spot.table
    tensors = {name: value for name, value in table.items() if isinstance(value, Reference)}
    others = [name for name in table if name not in tensors]
    refused = [name for name in others if _holds_tensors(table[name]) or _is_numbers(table[name])]
    if refused:
        raise CheckpointError(
            f"contains more than a table of named tensors: {few([_said(name, table[name]) for name in refused], 3)}",
            place,
            SAVE_ANEW,
        )
    notes = []
    if spot.path:
        where = "".join(f"[{key!r}]" for key in spot.path)
        beside = f", not {few(map(repr, spot.left), 6)}" if spot.left else ""
        notes.append(f"the model is taken from {where}{beside}")
    if others:
        notes.append(f"left out, not tensors: {few(map(repr, others), 6)}")
    return Found(tensors, tuple(notes))


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or a rank's piece of one."""
    return isinstance(value, Reference) or (isinstance(value, Record) and value.is_a("DTensor", "ShardedTensor"))


def _is_numbers(value: Any) -> bool:
    """Whether a value is numbers of a kind that is not read: sparse, quantised, of a tensor class of its own."""
    return isinstance(value, Record) and (_is_tensor(value) or "_rebuild" in value.qualified)


def _said(name: str, value: Any) -> str:
    return f"{name!r} ({value.qualified})" if isinstance(value, Record) else repr(name)


def _instead(root: Any) -> str:
    if isinstance(root, Record):
        return f": a complete {root.qualified} was saved"
    if isinstance(root, Mapping):
        return f": its keys are {few(map(repr, root), 6)}" if root else ": it is empty"
    return f": a {type(root).__name__} was saved"


def _of_whisper(found: Found, dims: Mapping[str, Any]) -> Found:
    notes = (*found.notes, "openai-whisper's names are read as those of transformers' Whisper")
    return Found(whisper_names(found.tensors), notes, whisper_config(dims))
