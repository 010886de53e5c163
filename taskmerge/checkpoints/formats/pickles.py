"""PyTorch's own files (.bin, .pt, .pth, .ckpt): their tensors, mapped; no code that a pickle names is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from taskmerge.checkpoints.formats.archives import Archive, read_archive
from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Entry
from taskmerge.checkpoints.formats.unpickling import Reference
from taskmerge.checkpoints.formats.wrappers import SAVE_ANEW, find_model
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError
from taskmerge.numbers.dtypes import BY_TORCH_NAME

_MOST_EXPANDED = 64 << 20


class PickleFile(WeightFile):
    """One such file, with the interface of a safetensors file. Raises CheckpointError for any other file.

    archive: the part that was read already, for tensors in an inner archive. notes: what was assumed about it.
    """

    def __init__(self, name: str, path: Path, archive: Archive | None = None,
                 tensors: Mapping[str, Reference] | None = None) -> None:  # fmt: skip
        # Replaces WeightFile's own, which reads a safetensors header.
        super().__init__(name, path, entries={})
        archive = archive or read_archive(path)
        if tensors is None:
            found = find_model(archive.root, str(path))
            tensors, self.notes, self.config = found.tensors, found.notes, found.config
        self._strides: dict[str, tuple[int, ...]] = {}
        for own, reference in tensors.items():
            self.entries[own] = self._entry(own, reference, archive, path)

    def _entry(self, name: str, reference: Reference, archive: Archive, path: Path) -> Entry:
        """The place of a tensor; one that is not contiguous keeps its strides."""
        row = BY_TORCH_NAME.get(reference.dtype)
        if row is None or row.storage is None:
            raise CheckpointError(f"{name!r} is {reference.dtype}, which is not supported", str(path), SAVE_ANEW)
        info = TensorInfo(name, row.name, reference.shape)
        start, stop = archive.places[reference.storage.key]
        first = start + reference.offset * row.size
        numbers = (*info.shape, *reference.stride, reference.offset)
        sound = len(info.shape) == len(reference.stride) and all(type(one) is int and one >= 0 for one in numbers)
        steps = [(size - 1) * step for size, step in zip(info.shape, reference.stride, strict=False)]
        last = first if not sound or info.count == 0 else first + (sum(steps) + 1) * row.size
        if not sound or last > stop:
            raise CheckpointError(f"{name!r} reaches beyond its bytes in the file", str(path), "get the file again")
        if info.count and not _in_order(info.shape, reference.stride):
            if info.nbytes > max(_MOST_EXPANDED, path.stat().st_size):
                raise CheckpointError(
                    f"{name!r} would repeat a few stored numbers over {info.nbytes:,} bytes", str(path), SAVE_ANEW
                )
            self._strides[name] = tuple(step * row.size for step in reference.stride)
        return Entry(info, first, last)

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Return entries [start, stop) of one tensor, as `StateDict.read` does."""
        entry = self.entries[name]
        storage, info = entry.info.format.storage, entry.info
        assert storage is not None
        stop = info.count if stop is None else min(stop, info.count)
        if name not in self._strides:
            found = self.mapped()[entry.start + start * storage.itemsize : entry.start + stop * storage.itemsize]
            return (found if entry.start % storage.itemsize == 0 else found.copy()).view(storage)
        width = math.prod(info.shape[1:])
        first, last = start // width, -(-stop // width)
        if first >= last:
            return np.empty(0, storage)
        step = self._strides[name]
        begin = entry.start + first * step[0]
        shape = (last - first, *info.shape[1:])
        reach = sum((size - 1) * one for size, one in zip(shape, step, strict=True)) + storage.itemsize
        data = self.mapped()[begin : begin + reach].copy()
        rows = np.lib.stride_tricks.as_strided(data[: storage.itemsize].view(storage), shape, step, writeable=False)
        return rows.reshape(-1)[start - first * width : stop - first * width]

    def view(self, name: str) -> np.ndarray | None:
        """See `WeightFile.view`."""
        entry = self.entries[name]
        assert entry.info.format.storage is not None
        whole = name not in self._strides and entry.start % entry.info.format.storage.itemsize == 0
        return self.read(name, 0, None) if whole else None

    def release(self, name: str, start: int, stop: int) -> None:
        """See `WeightFile.release`."""
        if name not in self._strides:
            super().release(name, start, stop)


def _in_order(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
