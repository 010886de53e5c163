"""Models in few bits as plain numbers, and a merged model in the few bits that its base has.

What no specialist moves keeps its bytes: a block, row or group of which every number is the base's own is copied as it
is stored. The rest is rounded to the format again, with new scales.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from taskmerge.checkpoints.formats.mxfp4 import FourBitFloats
from taskmerge.checkpoints.formats.packed import Codec, EightBits, codecs
from taskmerge.checkpoints.formats.quantized import BYPRODUCTS
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.numbers.rounding import decode, encode

_STRIP = 1 << 22
"""Numbers worked on at a time, more or less."""
_KEPT = 3
"""Whole weights in few bits that are kept, since their bytes and their scales are asked for one after the other."""


class Unpacked(StateDict):
    """`StateDict` of the numbers of packed weights: float32, of products in float64 rounded once."""

    def __init__(self, source: StateDict, found: Mapping[str, Codec]) -> None:
        self.source, self.codecs = source, dict(found)
        self.label = source.label
        self._latest: tuple[tuple[str, int, int] | None, np.ndarray] = None, np.empty(0, np.float32)
        config = {key: value for key, value in source.config.items() if key != "quantization_config"}
        self.beside = replace(source.beside, config=config)
        gone = {name for codec in self.codecs.values() for name in codec.stored}
        self.tensors = {name: info for name, info in source.tensors.items() if name not in gone}
        self.tensors |= {name: TensorInfo(name, "F32", codec.dims) for name, codec in self.codecs.items()}

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        return self.source.stored_name(name) if name not in self.codecs else name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        codec = self.codecs.get(name)
        if codec is None:
            return self.source.read(name, start, stop)
        rows, columns = codec.shape
        stop = rows * columns if stop is None else min(stop, rows * columns)
        if stop <= start:
            return np.empty(0, np.float32)
        whole = codec.rows * columns
        first, last = start // whole * codec.rows, min(-(-stop // whole) * codec.rows, rows)
        return self._rows(name, codec, first, last)[start - first * columns : stop - first * columns]

    def _rows(self, name: str, codec: Codec, first: int, last: int) -> np.ndarray:
        """Rows of one weight, float32; the last ones read are kept, where a strip is smaller than what is decoded."""
        key, values = self._latest
        if key != (name, first, last):
            values = encode(codec.read(self.source, first, last).reshape(-1), "F32")
            if codec.rows * codec.shape[1] > _STRIP // 4:
                self._latest = (name, first, last), values
        return values


def unpacked(state_dict: StateDict) -> StateDict:
    """Return a model with its weights as plain numbers; itself if none is packed. Raises CheckpointError."""
    found = codecs(state_dict)
    return Unpacked(state_dict, found) if found else state_dict


class Repacked(StateDict):
    """A `StateDict` of a merged model whose weights are stored in the base's format.

    merged: plain numbers, by the base's names; of the weights that the base has in few bits float32. base: as opened.
    """

    def __init__(self, merged: StateDict, base: Unpacked) -> None:
        self.merged, self.base = merged, base
        self.label, self.beside = merged.label, merged.beside
        self._codecs = {name: codec for name, codec in base.codecs.items() if name in merged.tensors}
        self._owner = {stored: name for name, codec in self._codecs.items() for stored in codec.stored}
        self.tensors = packed_infos(merged.tensors, base)
        self._lock = threading.Lock()
        self._made: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        weight = self._owner.get(name)
        if weight is None:
            return self.merged.read(name, start, stop)
        with self._lock:  # one weight at a time: memory is planned for one
            if weight not in self._made:
                self._made[weight] = self._packed(weight)
                while len(self._made) > _KEPT:
                    self._made.popitem(last=False)
            return self._made[weight][name][start:stop]

    def _packed(self, weight: str) -> dict[str, np.ndarray]:
        codec, source = self._codecs[weight], self.base.source
        rows, columns = codec.shape
        strip = max(codec.rows, _STRIP // max(columns, 1) // codec.rows * codec.rows)
        found: dict[str, list[np.ndarray]] = {name: [] for name in codec.stored}
        for first in range(0, rows, strip):
            last = min(first + strip, rows)
            before = encode(codec.read(source, first, last).reshape(-1), "F32")
            merged = self.merged.read(weight, first * columns, last * columns)
            plain = (decode(one, "F32").reshape(-1, columns) for one in (merged, before))
            for name, part in codec.write(source, first, last, *plain).items():
                found[name].append(part)
        return {
            name: np.concatenate(parts) if parts else source.read(name)  # what no number changes, such as the shape
            for name, parts in found.items()
        }


def packed_infos(tensors: Mapping[str, TensorInfo], base: Unpacked) -> dict[str, TensorInfo]:
    """Return the stored tensors of a file with `tensors` in the base's format."""
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        codec = base.codecs.get(name)
        if codec is None:
            found[name] = info
        else:
            found |= {stored: base.source.tensors[stored] for stored in codec.stored}
    return {name: info for name, info in found.items() if not name.endswith(BYPRODUCTS) or name in base.tensors}


def said_of(tensors: Mapping[str, TensorInfo], base: Unpacked) -> list[str]:
    """Describe the loss of storing a merged model in the base's format, one line per kind of storage."""
    ways: dict[str, int] = {}
    for name in tensors:
        codec = base.codecs.get(name)
        if codec is not None:
            ways[_loss(codec)] = ways.get(_loss(codec), 0) + 1
    return [f"{count:,} weights are stored as in the base: {loss}" for loss, count in ways.items()]


def _loss(codec: Codec) -> str:
    if isinstance(codec, EightBits):
        share = {"F8_E4M3": "1/16", "F8_E5M2": "1/8"}[codec.info.dtype]
        rows, columns = codec.scaled.block
        return (
            f"{codec.info.dtype} with a scale for each {rows} x {columns}; byte for byte where no specialist "
            f"changes it, otherwise off by at most {share} of the number or half the smallest step"
        )
    if isinstance(codec, FourBitFloats):
        return (
            "MXFP4, 4-bit floats with a scale for each 32 numbers; byte for byte where no specialist changes it, "
            "otherwise off by at most half "
            "a step of the format: 1/5 of a number, or 1/4 of the group's scale"
        )
    return (
        "4 bits with a scale for each group of a row; byte for byte where no specialist changes it, "
        "otherwise off by at most 1/15 of the largest number of the group"
    )
