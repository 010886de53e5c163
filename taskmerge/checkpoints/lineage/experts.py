"""Mixture-of-experts weights: one file tensor per expert, or all experts of a layer packed into one.

transformers packs on load: `experts.{e}.gate_proj` and `experts.{e}.up_proj`, each (I, H), become
`experts.gate_up_proj` (E, 2I, H); `experts.{e}.down_proj` (H, I) become `experts.down_proj` (E, H, I). Mixtral and its
heirs call the three `w1`, `w3` and `w2`.
Both layouts hold the same entries in runs, so either is read from the other without a copy on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.checkpoints.views import Piece, View, ViewedStateDict, whole
from taskmerge.errors import MergeError

_SINGLE = re.compile(
    r"(?P<stem>.*\bexperts)\.(?P<expert>[0-9]+)\.(?P<leaf>gate_proj|up_proj|down_proj|w1|w3|w2)\.weight"
)
_PACKED = re.compile(r"(?P<stem>.*\bexperts)\.(?P<leaf>gate_up_proj|down_proj)")
_SPELLINGS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def repack_experts(base: StateDict, other: StateDict) -> StateDict:
    """Return `other` with its experts in the layout of `base`; `other` itself if they agree already.

    Raises MergeError when a packed tensor's shape is not the one described above (transposed or interleaved layouts).
    """
    base_single, other_single = _any(_SINGLE, base), _any(_SINGLE, other)
    base_packed, other_packed = _any(_PACKED, base), _any(_PACKED, other)
    if base_single and other_packed and not other_single:
        return _unpack(other, *_expert_shape(base))
    if base_packed and other_single and not other_packed:
        return _pack(other)
    return other


def pack_experts(state_dict: StateDict) -> StateDict:
    """Return `state_dict` with all experts of a layer in one tensor; itself if they are, or without experts.

    Raises MergeError where the experts of a layer are not alike.
    """
    return _pack(state_dict) if _any(_SINGLE, state_dict) else state_dict


def _any(pattern: re.Pattern[str], state_dict: StateDict) -> bool:
    return any(pattern.fullmatch(name) for name in state_dict.tensors)


def _expert_shape(state_dict: StateDict) -> tuple[tuple[int, int], tuple[str, str, str]]:
    """(I, H) of one expert's gate or up projection, and what its gate, up and down projections are called."""
    for name, info in state_dict.tensors.items():
        match = _SINGLE.fullmatch(name)
        if match and match["leaf"] not in ("down_proj", "w2") and len(info.shape) == 2:
            return (info.shape[0], info.shape[1]), _spelling(match["leaf"])
    raise MergeError(
        "experts without an up projection",
        state_dict.label,
        "save base and specialist with the same version of transformers",
    )


def _spelling(leaf: str) -> tuple[str, str, str]:
    return next(leaves for leaves in _SPELLINGS if leaf in leaves)


def _unpack(state_dict: StateDict, expert_shape: tuple[int, int], spelling: tuple[str, str, str]) -> StateDict:
    inner, hidden = expert_shape
    gate, up, down = spelling
    views: dict[str, View] = {}
    for name, info in state_dict.tensors.items():
        match = _PACKED.fullmatch(name)
        if not match:
            views[name] = whole(info, name)
            continue
        leaves = (gate, up) if match["leaf"] == "gate_up_proj" else (down,)
        shape = (inner, hidden) if len(leaves) == 2 else (hidden, inner)
        expected = (len(leaves) * shape[0], shape[1])
        if len(info.shape) != 3 or info.shape[1:] != expected:
            raise MergeError(
                f"packed experts of shape {list(info.shape)}; storing one tensor per expert needs "
                f"[experts, {expected[0]}, {expected[1]}]",
                f"{state_dict.label}: {name}",
                "save base and specialist with the same version of transformers",
            )
        count, place = shape[0] * shape[1], 0
        for expert in range(info.shape[0]):
            for leaf in leaves:
                own = f"{match['stem']}.{expert}.{leaf}.weight"
                views[own] = View(TensorInfo(own, info.dtype, shape), (Piece(name, place, count),))
                place += count
    return ViewedStateDict(state_dict, views)


def _pack(state_dict: StateDict) -> StateDict:
    views: dict[str, View] = {}
    stems: dict[str, dict[tuple[int, str], TensorInfo]] = {}
    for name, info in state_dict.tensors.items():
        match = _SINGLE.fullmatch(name)
        if match:
            stems.setdefault(match["stem"], {})[int(match["expert"]), match["leaf"]] = info
        else:
            views[name] = whole(info, name)
    for stem, singles in stems.items():
        gate, up, down = _spelling(next(leaf for _, leaf in singles))
        for packed, leaves in (("gate_up_proj", (gate, up)), ("down_proj", (down,))):
            views[f"{stem}.{packed}"] = _packed_view(state_dict.label, f"{stem}.{packed}", singles, leaves)
    return ViewedStateDict(state_dict, views)


def _packed_view(label: str, name: str, singles: Mapping[tuple[int, str], TensorInfo], leaves: tuple[str, ...]) -> View:
    experts = 1 + max(expert for expert, _ in singles)
    parts = [singles.get((expert, leaf)) for expert in range(experts) for leaf in leaves]
    present = [part for part in parts if part is not None]
    first = present[0] if present else None
    if (
        first is None
        or len(present) < len(parts)
        or {(one.shape, one.dtype) for one in present} != {(first.shape, first.dtype)}
    ):
        raise MergeError(
            f"{experts} experts whose {' and '.join(leaves)} are not all present and of one shape",
            f"{label}: {name}",
            "get the file again",
        )
    rows, columns = first.shape
    info = TensorInfo(name, first.dtype, (experts, len(leaves) * rows, columns))
    return View(info, tuple(Piece(part.name, 0, part.count) for part in present))
