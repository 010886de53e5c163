"""Tensors that some files store under two names: token tables of encoder and decoder, a head's bias.

The classes of transformers that tie two parameters save one of them. Whole state dicts (older `pytorch_model.bin`, a
`torch.save` of one's own) hold both. A tensor with two names in one input and one name in another is the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskmerge.checkpoints.components import is_token_table
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.checkpoints.views import ViewedStateDict, whole
from taskmerge.numbers.rounding import decode

_CHUNK = 1 << 20
_OF_A_HEAD = ".decoder.bias"


@dataclass(frozen=True)
class Twins:
    """All inputs, what one of them ties under the base's names. same: specialist -> a name that was left out -> the
    tensor that it equals."""

    inputs: Mapping[str, StateDict]
    same: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def match_twins(inputs: Mapping[str, StateDict]) -> Twins:
    """Return the inputs with the base's names for tensors that some store under two names and others under one.

    Values are read only of tensors that an input lacks, and of what may equal them in another, up to where they differ.
    """
    first, *more = (state_dict.tensors.keys() for state_dict in inputs.values())
    uneven = set().union(*(first ^ names for names in more))
    doubtful = sorted(name for name in uneven if is_token_table(name) or name.endswith(_OF_A_HEAD))
    found, same = dict(inputs), {label: dict[str, str]() for label in inputs}
    for name in doubtful:
        other = _twin(name, inputs)
        if other is None:
            continue
        for label, state_dict in found.items():
            if name in inputs[BASE].tensors and name not in state_dict.tensors:
                found[label] = with_alias(state_dict, name, other)
            elif name not in inputs[BASE].tensors and name in state_dict.tensors:
                found[label] = without(state_dict, name)
                same[label][name] = other
    return Twins(found, {label: names for label, names in same.items() if names})


def main_table(tables: list[str]) -> str | None:
    """Return the token table that the others are tied to.

    It is the only one, the one named "shared", or the one at the place where encoder and decoder have theirs.
    """
    if len(tables) == 1:
        return tables[0]
    shared = [name for name in tables if name.split(".")[-2:] == ["shared", "weight"]]
    outside = {".".join(part for part in name.split(".") if part not in ("encoder", "decoder")) for name in tables}
    found = shared or [name for name in tables if {name} == outside]
    return found[0] if len(found) == 1 else None


def _twin(name: str, inputs: Mapping[str, StateDict]) -> str | None:
    """What `name` is another name of: in every input that has it both are equal, and every other input has that one."""
    having = [state_dict for state_dict in inputs.values() if name in state_dict.tensors]
    if name.endswith(_OF_A_HEAD):
        others = [f"{name.removesuffix(_OF_A_HEAD)}.bias"]
    else:
        tables = sorted(other for other in having[0].tensors if is_token_table(other) and other != name)
        others = sorted(tables, key=lambda other: other != main_table(tables))
    for other in others:
        everywhere = all(other in state_dict.tensors for state_dict in inputs.values())
        if everywhere and all(equal_tensors(state_dict, name, other) for state_dict in having):
            return other
    return None


def equal_tensors(state_dict: StateDict, first: str, second: str) -> bool:
    """Return whether two tensors of one input have the same numbers; read until the first difference."""
    one, two = state_dict.tensors[first], state_dict.tensors[second]
    if one.shape != two.shape or not (one.format.mergeable and two.format.mergeable):
        return False
    for start in range(0, one.count, _CHUNK):
        stop = min(start + _CHUNK, one.count)
        left, right = (decode(state_dict.read(info.name, start, stop), info.dtype) for info in (one, two))
        if not np.array_equal(left, right, equal_nan=True):
            return False
    return True


def with_alias(state_dict: StateDict, name: str, of: str) -> StateDict:
    """Return an input in which a tensor has a second name too."""
    return ViewedStateDict(state_dict, _views(state_dict) | {name: whole(state_dict.tensors[of], name)})


def without(state_dict: StateDict, name: str) -> StateDict:
    """Return an input without one of its tensors."""
    views = _views(state_dict)
    del views[name]
    return ViewedStateDict(state_dict, views)


def _views(state_dict: StateDict) -> dict[str, Any]:
    return {name: whole(info, name) for name, info in state_dict.tensors.items()}
