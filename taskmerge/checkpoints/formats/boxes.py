"""Tensors that are stored in pieces in several files: each piece a box of the whole, put together where it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Entry
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError


@dataclass(frozen=True)
class Box:
    """A piece of a tensor: the tensor `name` of `file`, which fills sizes entries from offsets on, per axis."""

    file: WeightFile
    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return the rows [first, last) of the box itself."""
        width = math.prod(self.sizes[1:])
        return self.file.read(self.name, first * width, last * width).reshape(last - first, *self.sizes[1:])


class JoinedFile(WeightFile):
    """Several files as one, with the interface of a safetensors file.

    parts: the files. boxes: tensor -> its pieces, of equal dtype. infos: tensor -> header. Raises CheckpointError
    where pieces overlap, or leave some of a tensor out.
    """

    def __init__(self, name: str, path: Path, parts: Sequence[WeightFile], infos: Mapping[str, TensorInfo],
                 boxes: Mapping[str, Sequence[Box]]) -> None:  # fmt: skip
        super().__init__(name, path, entries={own: Entry(info, 0, 0) for own, info in infos.items()})
        self._parts, self._boxes = tuple(parts), {own: _distinct(pieces) for own, pieces in boxes.items()}
        for own, info in infos.items():
            _check_covers(info, self._boxes[own], str(path))

    @property
    def parts(self) -> tuple[WeightFile, ...]:
        """See `WeightFile.parts`."""
        return self._parts

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """See `WeightFile.read`; a tensor in several pieces is copied together."""
        info, boxes = self.entries[name].info, self._boxes[name]
        storage = info.format.storage
        assert storage is not None
        stop = info.count if stop is None else min(stop, info.count)
        if len(boxes) == 1:
            return boxes[0].file.read(boxes[0].name, start, stop)
        if start >= stop:
            return np.empty(0, storage)
        width = math.prod(info.shape[1:])
        first, last = start // width, -(-stop // width)
        out = np.empty((last - first, *info.shape[1:]), storage)
        for box in boxes:
            low, high = max(first, box.offsets[0]), min(last, box.offsets[0] + box.sizes[0])
            if low < high:
                across = (slice(at, at + size) for at, size in zip(box.offsets[1:], box.sizes[1:], strict=True))
                out[(slice(low - first, high - first), *across)] = box.rows(low - box.offsets[0], high - box.offsets[0])
        return out.reshape(-1)[start - first * width : stop - first * width]

    def view(self, name: str) -> np.ndarray | None:
        """See `WeightFile.view`."""
        boxes = self._boxes[name]
        return boxes[0].file.view(boxes[0].name) if len(boxes) == 1 else None

    def release(self, name: str, start: int, stop: int) -> None:
        """See `WeightFile.release`."""
        boxes = self._boxes[name]
        if len(boxes) == 1:
            boxes[0].file.release(boxes[0].name, start, stop)


def _distinct(boxes: Sequence[Box]) -> list[Box]:
    """The boxes without empty ones and without copies of others (replicas)."""
    return list({(box.offsets, box.sizes): box for box in reversed(boxes) if math.prod(box.sizes)}.values())[::-1]


def _check_covers(info: TensorInfo, boxes: Sequence[Box], place: str) -> None:
    inside = all(_is_inside(box, info.shape) for box in boxes)
    if not inside or sum(math.prod(box.sizes) for box in boxes) != info.count or _overlap(boxes):
        raise CheckpointError(
            f"the pieces of {info.name!r} {list(info.shape)} do not add up to the complete tensor",
            place,
            "a file is missing, or is from another run: get all files of the checkpoint again",
        )


def _is_inside(box: Box, shape: tuple[int, ...]) -> bool:
    if not len(box.sizes) == len(box.offsets) == len(shape):
        return False
    return all(at >= 0 and at + size <= whole for at, size, whole in zip(box.offsets, box.sizes, shape, strict=True))


def _overlap(boxes: Sequence[Box]) -> bool:
    if not boxes or not boxes[0].sizes:
        return len(boxes) > 1
    ordered = sorted(boxes, key=lambda box: box.offsets)
    for place, one in enumerate(ordered):
        for two in ordered[place + 1 :]:
            if two.offsets[0] >= one.offsets[0] + one.sizes[0]:
                break
            if all(
                a < b + other and b < a + own
                for a, own, b, other in zip(one.offsets, one.sizes, two.offsets, two.sizes, strict=True)
            ):
                return True
    return False
