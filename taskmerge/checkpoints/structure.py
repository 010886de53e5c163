"""Structure of a model from shapes: stacks of layers, modules that take raw input, modules between two widths.

No name is used here, except for the numbers of layers: owners of models choose the names of their modules freely.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from taskmerge.words.numerals import is_whole

Path = tuple[str, ...]
_FEWEST_MATRICES = 3  # of one layer: a perceptron has one a level, a block of a tower three or more
_PLACES = re.compile(
    r"(.*_)?(pos|position|positions|positional|posemb)(_.*)?|.*pos_?emb(ed|edding)?s?|cls_token|class_.*"
)
_MATRIX = re.compile(
    r"(.*_)?(weight|kernel|matrix|proj|projection)(_\w+)?"
)  # other tables hold vectors: queries, marks
_PATCHES = re.compile(r"(.*_)?(patch|pixel)(es|s)?(_.*)?")


class HasHeader(Protocol):
    """The fields of a tensor's header that are used."""

    @property
    def dtype(self) -> str:
        """The storage dtype, in safetensors' names."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""


@dataclass(frozen=True)
class Stack:
    """Numbered layers. path: of what holds them.  width: the size most of their sides have.  layers: how many.

    inner: names inside a layer.  entries: of all its tensors together.
    """

    path: Path
    width: int
    layers: int
    inner: frozenset[str]
    entries: int


def stacks(tensors: Mapping[str, HasHeader]) -> list[Stack]:
    """Return every stack of layers, each named by the outermost number in its tensors' names that counts layers.

    A number counts layers when those that it tells apart have something alike in them; else it tells modules apart, an
    encoder and what follows it, and the next number is looked at.
    """
    found = [(tuple(name.split(".")), info.shape) for name, info in tensors.items()]
    return list(_stacks(found, 1))


def inside_of(stack: Stack, tensors: Mapping[str, HasHeader]) -> dict[str, HasHeader]:
    """Return the tensors in the only layer of a stack, outside further layers: it may be a list of one module."""
    before = (*stack.path, "")
    own = {name: info for name, info in tensors.items() if name.startswith(".".join(before))}
    names = [(tuple(name.split(".")), info.shape) for name, info in own.items()]
    return outside_layers(own, _stacks(names, len(before)))


_Layers = dict[int, list[tuple[str, tuple[int, ...]]]]


def _stacks(tensors: Iterable[tuple[Path, tuple[int, ...]]], start: int) -> Iterator[Stack]:
    """Of the tensors' names from part `start` on."""
    groups: dict[Path, list[tuple[Path, tuple[int, ...]]]] = {}
    for parts, shape in tensors:
        place = next((at for at, part in enumerate(parts) if at >= start and is_whole(part)), None)
        if place:
            groups.setdefault(parts[:place], []).append((parts, shape))
    for path, own in groups.items():
        layers: _Layers = {}
        for parts, shape in own:
            layers.setdefault(int(parts[len(path)]), []).append((".".join(parts[len(path) + 1 :]), shape))
        if _are_modules(layers):
            yield from _stacks(own, len(path) + 1)
        elif _is_stack(layers):
            yield _stack(path, layers)


def _are_modules(layers: Mapping[int, Sequence[tuple[str, tuple[int, ...]]]]) -> bool:
    """Whether the largest of several has no tensor of a name that any other has: these are not layers of one stack."""
    largest = max(layers, key=lambda number: sum(is_matrix(shape) for _, shape in layers[number]))
    own = {name for name, _ in layers[largest]}
    others = {name for number, layer in layers.items() if number != largest for name, _ in layer}
    return bool(others) and not own & others


def _is_stack(layers: Mapping[int, Sequence[tuple[str, tuple[int, ...]]]]) -> bool:
    return any(sum(is_matrix(shape) for _, shape in layer) >= _FEWEST_MATRICES for layer in layers.values())


def _stack(path: Path, layers: Mapping[int, Sequence[tuple[str, tuple[int, ...]]]]) -> Stack:
    inside = [entry for layer in layers.values() for entry in layer]
    sides: Counter[int] = Counter()
    for _, shape in inside:
        sides.update(side for side in shape[:2] if side > 1)
    width = max(sides, key=lambda side: (sides[side], side))
    inner = frozenset(name for layer in layers.values() for name, _ in layer)
    return Stack(path, width, len(layers), inner, sum(_count(shape) for _, shape in inside))


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a tensor maps one width to another: a matrix, or a convolution."""
    return len(shape) >= 2 and shape[0] > 1 and shape[1] > 1


def _count(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def raw_input(tensors: Mapping[str, HasHeader]) -> str | None:
    """Return the kind of raw input that a module takes, with the reason: "vision: ..." or "audio: ..."; else None.

    tensors: those outside numbered layers, since convolutions inside them mix what is no longer raw.
    """
    for name, info in tensors.items():
        shape, parts = info.shape, name.split(".")
        if any(_PLACES.fullmatch(part) for part in parts[-2:]):
            continue
        if len(shape) in (4, 5) and shape[0] > 1 and shape[1] in (1, 3):
            kind = "vision" if shape[1] == 3 else "audio"
            return f"{kind}: {parts[-2] if len(parts) > 1 else name} is a convolution over {shape[1]} channel(s)"
        if len(shape) == 3 and shape[0] > 1 and parts[-1] == "weight" and 1 < shape[2] < max(shape[:2]):
            what = "a sound wave" if shape[1] == 1 else f"{shape[1]} bands of sound"
            return f"audio: {parts[-2] if len(parts) > 1 else name} is a convolution over {what}"
        if len(shape) == 2 and shape[1] % 3 == 0 and any(_PATCHES.fullmatch(part) for part in parts[-3:-1]):
            return f"vision: {parts[-2]} takes patches of 3 channels"
    return None


@dataclass(frozen=True)
class Leading:
    """From which widths to which a few modules lead. takes, gives: sides of their matrices that no other of them gives
    or takes.  inside: whether anything is a matrix at all.  sizes: of its vectors."""

    takes: frozenset[int]
    gives: frozenset[int]
    sides: tuple[tuple[int, int], ...]
    sizes: frozenset[int]

    @classmethod
    def of(cls, tensors: Mapping[str, HasHeader]) -> Leading:
        """Describe a module by its tensors, in any order."""
        sides = []
        sizes = set()
        for name, info in tensors.items():
            if any(_PLACES.fullmatch(part) for part in name.split(".")[-2:]):
                continue
            if is_matrix(info.shape) and _MATRIX.fullmatch(name.rpartition(".")[2]):
                sides.append((info.shape[0], info.shape[1]))
            else:
                sizes.add(info.shape[-1] if info.shape else 1)
        rows, columns = {out for out, _ in sides}, {into for _, into in sides}
        return cls(frozenset(columns), frozenset(rows - columns) or frozenset(rows), tuple(sides), frozenset(sizes))

    def leads_to(self, width: int) -> bool:
        """Return whether all outputs have this width."""
        rows = {out for out, _ in self.sides}
        columns = {into for _, into in self.sides}
        return width in rows and not rows - columns - {width}

    def takes_from(self, width: int) -> bool:
        """Return whether a module takes this width, or several of its vectors side by side."""
        return any(column == width for column in self.takes)

    def takes_several(self, width: int) -> bool:
        """Return whether a module takes a multiple of the width: stacked frames, joined neighbours."""
        return width > 1 and any(column % width == 0 for column in self.takes)


def under(tensors: Mapping[str, HasHeader], root: Path) -> dict[str, HasHeader]:
    """Return the tensors whose names begin with a path."""
    start = ".".join(root)
    return {name: info for name, info in tensors.items() if name == start or name.startswith(f"{start}.")}


def outside_layers(tensors: Mapping[str, HasHeader], layers: Iterable[Stack]) -> dict[str, HasHeader]:
    """Return the tensors that are in none of the stacks."""
    starts = tuple(".".join(stack.path) + "." for stack in layers)
    return {name: info for name, info in tensors.items() if not (starts and name.startswith(starts))}


def common(one: Sequence[str], two: Sequence[str]) -> int:
    """Return the number of parts in the common prefix of two paths."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
