"""One naming for all inputs of a lineage: every specialist's tensors under the base's own file names.

Three ways, the cheapest that accounts for every tensor wins:

1. identical: the names agree; nothing is imported.
2. structure: inside one component (`components`) the names differ by a prefix only, or by packing of experts.
3. transformers: both sides go through the renaming that transformers applies on load (`conversion`).

What is still unexplained on both sides of one component is an error, never a silent "names in common".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskmerge.checkpoints.components import BACKBONE, BUFFERS, EMBEDDINGS, HEAD, Components, component_map, is_buffer
from taskmerge.checkpoints.lineage.experts import repack_experts
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.views import View, ViewedStateDict, whole
from taskmerge.errors import MergeError, Problem
from taskmerge.words.numerals import is_whole

How = Literal["identical", "structure", "transformers"]
_SHOWN = 4
_WRAPPERS = ("model", "language_model", "thinker", "vlm")  # path components that may precede a head


@dataclass(frozen=True)
class NameMap:
    """The correspondence between the tensor names of a specialist's file and the base's.

    pairs: base's file name -> the specialist's.  base_only, other_only: names without a counterpart, in file order.
    how: the rule that explained the names.
    """

    pairs: Mapping[str, str]
    base_only: tuple[str, ...]
    other_only: tuple[str, ...]
    how: How

    @property
    def renamed(self) -> dict[str, str]:
        """The pairs whose two names differ."""
        return {ours: theirs for ours, theirs in self.pairs.items() if ours != theirs}


def match_names(base: StateDict, other: StateDict, overrides: Mapping[str, Sequence[str]] | None = None) -> NameMap:
    """Match `other`'s tensors with `base`'s, from headers and configs alone.

    overrides: the recipe's `components`, for names that the rules do not know. Raises MergeError, with examples of both
    sides, if a component that is present in both cannot be matched.
    """
    ours, theirs = list(base.tensors), list(other.tensors)
    pairs = {name: name for name in ours if name in other.tensors}
    if len(pairs) in (len(ours), len(theirs)):
        return _named(base, other, pairs, "identical")
    parts = [component_map(one.tensors, one.config, overrides, strict=False) for one in (base, other)]
    sides = _Sides(base, other, parts[0], parts[1])
    pairs = _by_structure(sides)
    unexplained = _unexplained(sides, pairs)
    if not unexplained:
        pairs |= _moved_buffers(sides, pairs)
        return _named(base, other, pairs, "structure" if any(a != b for a, b in pairs.items()) else "identical")
    known = _by_transformers(sides)
    if known is not None:
        left = _unexplained(sides, known)
        if not left:
            return _named(base, other, known | _moved_buffers(sides, known), "transformers")
        unexplained = left if len(left) < len(unexplained) else unexplained
    raise _cannot_match(base, other, unexplained)


@dataclass(frozen=True)
class Aligned:
    """A specialist under the base's names. extra: its tensors that the base lacks, by the names they have here."""

    state_dict: StateDict
    names: NameMap
    extra: tuple[str, ...] = ()


def align(base: StateDict, other: StateDict, overrides: Mapping[str, Sequence[str]] | None = None) -> Aligned:
    """Return `other` as a `StateDict` under the base's file names, experts packed as in the base.

    Tensors only `other` has keep their names, put under the base's prefix where all others moved by one. Raises
    MergeError as `match_names`.
    """
    repacked = repack_experts(base, other)
    names = match_names(base, repacked, overrides)
    if not names.renamed:
        return Aligned(repacked, names, names.other_only)
    move = _common_move({one: two for one, two in names.renamed.items() if not is_buffer(one, base.tensors[one])})
    views: dict[str, View] = {ours: whole(repacked.tensors[theirs], ours) for ours, theirs in names.pairs.items()}
    extra = []
    for theirs in names.other_only:
        ours = move(theirs)
        ours = theirs if ours in views else ours
        views[ours] = whole(repacked.tensors[theirs], ours)
        extra.append(ours)
    return Aligned(ViewedStateDict(repacked, views), names, tuple(extra))


# ---------------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True)
class _Sides:
    base: StateDict
    other: StateDict
    base_components: Components
    other_components: Components

    def groups(self) -> Iterable[tuple[str, list[str], list[str]]]:
        """Component, the base's names at home in it, the specialist's."""
        theirs: dict[str, list[str]] = {}
        for name in self.other_components:
            theirs.setdefault(self.other_components.home(name), []).append(name)
        ours: dict[str, list[str]] = {}
        for name in self.base_components:
            ours.setdefault(self.base_components.home(name), []).append(name)
        for home, names in ours.items():
            yield home, names, theirs.get(home, [])

    def may_pair(self, ours: str, theirs: str) -> bool:
        """Equal shapes, or tables whose rows alone differ (vocabularies of different sizes)."""
        one, two = self.base.tensors[ours].shape, self.other.tensors[theirs].shape
        rows_may_differ = self.base_components.home(ours) in (EMBEDDINGS, HEAD)
        return one == two or (rows_may_differ and len(one) == len(two) and one[1:] == two[1:])


def _by_structure(sides: _Sides) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for home, ours, theirs in sides.groups():
        left_ours = [name for name in ours if name not in sides.other.tensors]
        left_theirs = [name for name in theirs if name not in sides.base.tensors]
        pairs |= {name: name for name in ours if name in sides.other.tensors}
        while left_ours and left_theirs:
            moved = _best_move(sides, home, left_ours, left_theirs)
            if not moved:
                break
            pairs |= moved
            taken = set(moved.values())
            left_ours = [name for name in left_ours if name not in moved]
            left_theirs = [name for name in left_theirs if name not in taken]
    return {name: pairs[name] for name in sides.base.tensors if name in pairs}


def _moved_buffers(sides: _Sides, pairs: Mapping[str, str]) -> dict[str, str]:
    """The base's buffers -> the specialist's of the same component, layer, last name and shape.

    A class may keep them in another module than its files do. Only where one of each is left.
    """
    taken = set(pairs.values())
    ours = [name for name in sides.base.tensors if name not in pairs and sides.base_components[name] == BUFFERS]
    theirs = [name for name in sides.other.tensors if name not in taken and sides.other_components[name] == BUFFERS]
    mine, other = _by_place(ours, sides.base_components), _by_place(theirs, sides.other_components)
    found = {names[0]: other[place][0] for place, names in mine.items() if len(names) == len(other.get(place, ())) == 1}
    return {one: two for one, two in found.items() if sides.base.tensors[one].shape == sides.other.tensors[two].shape}


def _by_place(names: Iterable[str], components: Components) -> dict[tuple[str, ...], list[str]]:
    """Component, numbers in a name, and its last part -> the names that have them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        *inner, last = name.split(".")
        place = (components.home(name), *(part for part in inner if is_whole(part)), last)
        found.setdefault(place, []).append(name)
    return found


def _best_move(sides: _Sides, home: str, ours: list[str], theirs: list[str]) -> dict[str, str]:
    """The change of prefix that pairs most names and leaves nothing over on one side of it; {} when there is none."""
    best: dict[str, str] = {}
    every_theirs = [_inner(theirs, prefix) for prefix in _prefixes(theirs, home, sides.other_components)]
    for our_prefix in _prefixes(ours, home, sides.base_components):
        inner_ours = _inner(ours, our_prefix)
        for inner_theirs in every_theirs:
            common = [inner for inner in inner_ours if inner in inner_theirs]
            whole = len(common) in (len(inner_ours), len(inner_theirs))
            moved = {inner_ours[inner]: inner_theirs[inner] for inner in common}
            if whole and len(moved) > len(best) and all(sides.may_pair(a, b) for a, b in moved.items()):
                best = moved
    return best


def _prefixes(names: list[str], home: str, components: Components) -> list[str]:
    """ "" and every leading path of a name that ends before its first number. A head keeps what names it, all but what
    comes before the backbone too: a pooler's dense layer is not a classifier's.
    """
    found = {""}
    wrappers = {*_WRAPPERS, *components.root(BACKBONE).split(".")}
    for name in names:
        parts = name.split(".")
        for stop in range(1, len(parts)):
            if is_whole(parts[stop - 1]) or (home == HEAD and parts[stop - 1] not in wrappers):
                break
            found.add(".".join(parts[:stop]) + ".")
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _inner(names: list[str], prefix: str) -> dict[str, str]:
    """Name inside the prefix, in one spelling -> name. A bare "weight" or a leading number says too little."""
    found = {}
    for name in names:
        inner = name[len(prefix) :]
        first = inner.partition(".")[0]
        if name.startswith(prefix) and first not in ("weight", "bias") and not is_whole(first):
            found[_one_spelling(inner)] = name
    return found


def _one_spelling(name: str) -> str:
    """Older spellings of the same parameter: LayerNorm.gamma/beta, weight norm's weight_g/weight_v."""
    if not name.endswith(("gamma", "beta", "weight_g", "weight_v")):
        return name
    name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
    name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
    name = re.sub(r"(?<=\.)weight_g$", "parametrizations.weight.original0", name)
    return re.sub(r"(?<=\.)weight_v$", "parametrizations.weight.original1", name)


def _by_transformers(sides: _Sides) -> dict[str, str] | None:
    ours, theirs = dict(sides.base.config), dict(sides.other.config)
    if not ours.get("model_type") or ours.get("model_type") != theirs.get("model_type"):
        return None
    from taskmerge.checkpoints.lineage.conversion import canonical_names

    classes = [*(ours.get("architectures") or ()), *(theirs.get("architectures") or ())]
    base_known = canonical_names(sides.base.tensors, ours, classes)
    other_known = canonical_names(sides.other.tensors, theirs, classes)
    if base_known is None or other_known is None:
        return None
    by_key = {other_known.get(name, name): name for name in sides.other.tensors}
    pairs = {}
    for name in sides.base.tensors:
        match = by_key.get(base_known.get(name, name))
        if match is not None and sides.may_pair(name, match):
            pairs[name] = match
    return pairs


def _unexplained(sides: _Sides, pairs: Mapping[str, str]) -> dict[str, tuple[list[str], list[str]]]:
    """Component -> names left over on both sides of it. Heads may differ; buffers may come and go."""
    taken = set(pairs.values())
    found = {}
    for home, ours, theirs in sides.groups():
        left_ours = [name for name in ours if name not in pairs and sides.base_components[name] != BUFFERS]
        left_theirs = [name for name in theirs if name not in taken and sides.other_components[name] != BUFFERS]
        if home != HEAD and left_ours and left_theirs:
            found[home] = (left_ours, left_theirs)
    shared = {*sides.base_components.values()} & {*sides.other_components.values()} - {HEAD, BUFFERS}
    if not pairs and not found and not shared:
        found["any component"] = (list(sides.base.tensors), list(sides.other.tensors))
    return found


def _named(base: StateDict, other: StateDict, pairs: Mapping[str, str], how: How) -> NameMap:
    taken = set(pairs.values())
    return NameMap(
        dict(pairs),
        tuple(name for name in base.tensors if name not in pairs),
        tuple(name for name in other.tensors if name not in taken),
        how,
    )


def _cannot_match(base: StateDict, other: StateDict, found: Mapping[str, tuple[list[str], list[str]]]) -> MergeError:
    def some(names: list[str]) -> str:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more

    problems = [
        Problem(
            f"{home}: the names in {other.label} cannot be matched to those in {base.label}\n    only "
            f"in {base.label}: {some(ours)}\n    only in {other.label}: {some(theirs)}",
            other.label,
            "check that both were trained from the same model; then load and save one of them with the class "
            "that saved the other",
        )
        for home, (ours, theirs) in found.items()
    ]
    return MergeError(problems)


def _common_move(renamed: Mapping[str, str]) -> Callable[[str], str]:
    """How names move when every renamed pair moved by one prefix; else the identity."""
    moves = set()
    for ours, theirs in renamed.items():
        one, two = ours.split("."), theirs.split(".")
        while one and two and one[-1] == two[-1]:
            one.pop()
            two.pop()
        moves.add((".".join(one), ".".join(two)))
    if len(moves) != 1:
        return lambda name: name
    to, gone = moves.pop()

    def move(name: str) -> str:
        if gone and not name.startswith(gone + "."):
            return name
        inner = name[len(gone) + 1 :] if gone else name
        return f"{to}.{inner}" if to else inner

    return move
