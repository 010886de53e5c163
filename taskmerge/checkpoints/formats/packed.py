"""Weights that are stored in few bits: reading their numbers, and storing the nearest that the format has.

| stored                                                    | stands for                     | unit of one scale       |
|-----------------------------------------------------------|--------------------------------|-------------------------|
| weight (E4M3, E5M2), weight_scale_inv                     | weight × scale                 | block, 128 × 128 mostly |
| weight (E4M3, E5M2), weight_scale                         | weight × scale                 | row, or the tensor      |
| weight_packed (int32), weight_scale, weight_shape         | (number − 8) × scale, 4 bits   | group of a row's inputs |

The last row is compressed-tensors' "pack-quantized", symmetric; https://github.com/vllm-project/compressed-tensors.
Floats of four bits are in `mxfp4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from taskmerge.checkpoints.formats.ladders import nearest_on
from taskmerge.checkpoints.formats.mxfp4 import GROUP, blocks_and_scales, is_mxfp4, packed_and_scale
from taskmerge.checkpoints.formats.quantized import Scaled, eight_bit_values, scaled_weights
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError
from taskmerge.numbers.rounding import decode, encode

_BITS = 4
_IN_A_WORD = 32 // _BITS
_LOWEST, _HIGHEST = -8, 7


class Codec(Protocol):
    """One weight and how it is stored. dims: of its numbers. shape: the same as one matrix. stored: its tensors in the
    file."""

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the unpacked weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """The unpacked weight as a matrix: (rows, columns)."""

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the stored tensors."""

    @property
    def rows(self) -> int:
        """The number of rows that share a scale: reads and writes are in multiples of it."""
        ...

    def read(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """Return rows [first, last) as float64 (rows, columns)."""
        ...

    def write(
        self, source: StateDict, first: int, last: int, values: np.ndarray, before: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return rows [first, last) of every stored tensor, flat, for the numbers `values`.

        Units in which no number differs from `before` keep the bytes of the source.
        """
        ...


@dataclass(frozen=True, slots=True)
class EightBits:
    """A weight in 8-bit floats with scales. scaled: name of the scale, and its block."""

    name: str
    info: TensorInfo
    scale: TensorInfo
    scaled: Scaled

    @property
    def shape(self) -> tuple[int, int]:
        """The weight as a matrix: (rows, columns)."""
        return self.info.shape[0], self.info.shape[1]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the unpacked weight."""
        return self.shape

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the stored tensors: the weight and its scale."""
        return self.name, self.scaled.scale

    @property
    def rows(self) -> int:
        """The number of rows that share one entry of the scale."""
        return min(self.scaled.block[0], self.shape[0])

    @property
    def _across(self) -> int:
        return -(-self.shape[1] // self.scaled.block[1])

    def _scales(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """(blocks down, blocks across), float64."""
        start, stop = first // self.rows * self._across, -(-last // self.rows) * self._across
        stored = source.read(self.scaled.scale, start, stop)
        return decode(stored, self.scale.dtype).reshape(-1, self._across)

    def _spread(self, scales: np.ndarray, count: int) -> np.ndarray:
        """A scale for every entry: (rows, columns)."""
        down = np.repeat(scales, self.rows, axis=0)[:count]
        return np.repeat(down, self.scaled.block[1], axis=1)[:, : self.shape[1]]

    def read(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """See `Codec.read`."""
        bits = self._bits(source, first, last)
        return eight_bit_values(self.info.dtype)[bits] * self._spread(self._scales(source, first, last), last - first)

    def _bits(self, source: StateDict, first: int, last: int) -> np.ndarray:
        columns = self.shape[1]
        return source.read(self.name, first * columns, last * columns).view(np.uint8).reshape(-1, columns)

    def write(
        self, source: StateDict, first: int, last: int, values: np.ndarray, before: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Codec.write`; a scale is the largest magnitude of its block over the largest of the format."""
        block = self.scaled.block
        scales = self._scales(source, first, last)
        moved = _any_of_blocks(values != before, (self.rows, block[1]))
        largest = float(np.nanmax(np.where(np.isfinite(table := eight_bit_values(self.info.dtype)), table, 0)))
        sizes = _largest_of_blocks(np.abs(values), (self.rows, block[1]))
        wanted = np.where(sizes > 0, sizes / largest, 1.0)
        new = np.where(moved, decode(encode(wanted.reshape(-1), self.scale.dtype), self.scale.dtype)
                       .reshape(wanted.shape), scales)  # fmt: skip
        new = np.where(new > 0, new, scales)
        spread = self._spread(new, last - first)
        bits = np.where(
            self._spread(moved, last - first), nearest_eight_bits(values / spread, self.info.dtype),
            self._bits(source, first, last),
        )  # fmt: skip
        start, stop = first // self.rows * self._across, -(-last // self.rows) * self._across
        kept = source.read(self.scaled.scale, start, stop)
        fresh = encode(new.reshape(-1), self.scale.dtype)
        return {self.name: bits.reshape(-1), self.scaled.scale: np.where(moved.reshape(-1), fresh, kept)}


@dataclass(frozen=True, slots=True)
class FourBits:
    """Whole numbers of four bits, eight in a word, with a scale for a group of a row. name: of the module."""

    name: str
    packed: TensorInfo
    scale: TensorInfo
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """The unpacked weight as a matrix: (rows, columns)."""
        return self.packed.shape[0], self.columns

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the unpacked weight."""
        return self.shape

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the stored tensors: packed weight, scale and shape."""
        return tuple(f"{self.name}.weight_{what}" for what in ("packed", "scale", "shape"))

    @property
    def rows(self) -> int:
        """The number of rows that share a scale: one."""
        return 1

    @property
    def group(self) -> int:
        """Numbers that share a scale."""
        return self.columns // self.scale.shape[1]

    def _numbers(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """(rows, columns), int64, from -8 to 7."""
        width = self.packed.shape[1]
        words = source.read(self.stored[0], first * width, last * width).view(np.uint32).reshape(-1, width)
        shifts = np.arange(_IN_A_WORD, dtype=np.uint32) * np.uint32(_BITS)
        spread = (words[:, :, None] >> shifts & np.uint32(15)).reshape(len(words), -1)
        return spread[:, : self.columns].astype(np.int64) + _LOWEST

    def _scales(self, source: StateDict, first: int, last: int) -> np.ndarray:
        across = self.scale.shape[1]
        return decode(source.read(self.stored[1], first * across, last * across), self.scale.dtype).reshape(-1, across)

    def read(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """See `Codec.read`."""
        self._check(source)
        scales = np.repeat(self._scales(source, first, last), self.group, axis=1)
        return self._numbers(source, first, last) * scales

    def _check(self, source: StateDict) -> None:
        said = tuple(int(size) for size in source.read(self.stored[2]))
        if said != self.shape:
            what = (
                f"states the shape {list(said)}, but the packed numbers and their scales have the shape "
                f"{list(self.shape)}"
            )
            raise CheckpointError(what, f"{source.label}: {self.stored[2]}", "get the file again")

    def write(
        self, source: StateDict, first: int, last: int, values: np.ndarray, before: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Codec.write`; a scale is the largest magnitude of its group over 7.5, as compressed-tensors has it."""
        scales, block = self._scales(source, first, last), (1, self.group)
        moved = _any_of_blocks(values != before, block)
        wanted = _largest_of_blocks(np.abs(values), block) / ((_HIGHEST - _LOWEST) / 2)
        new, up = (
            decode(encode(sizes.reshape(-1), self.scale.dtype), self.scale.dtype).reshape(wanted.shape)
            for sizes in (wanted, wanted * (1 + 2.0**-8))
        )
        new = np.where(
            new < wanted, up, new
        )  # rounded down, the largest number would be cut off by more than half a step
        new = np.where(moved & (new > 0), new, scales)
        spread = np.repeat(new, self.group, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            fresh = np.clip(np.rint(np.where(spread != 0, values / spread, 0)), _LOWEST, _HIGHEST).astype(np.int64)
        numbers = np.where(np.repeat(moved, self.group, axis=1), fresh, self._numbers(source, first, last))
        width, across = self.packed.shape[1], self.scale.shape[1]
        filled = np.zeros((len(numbers), width * _IN_A_WORD), np.uint32)
        filled[:, : self.columns] = (numbers - _LOWEST).astype(np.uint32)
        shifts = np.arange(_IN_A_WORD, dtype=np.uint32) * np.uint32(_BITS)
        words = np.bitwise_or.reduce(filled.reshape(len(numbers), width, _IN_A_WORD) << shifts, axis=2)
        kept = source.read(self.stored[0], first * width, last * width).view(np.uint32).reshape(-1, width)
        words = np.where(moved.any(axis=1, keepdims=True), words, kept)  # filling bits too
        own = source.read(self.stored[1], first * across, last * across)
        scale = np.where(moved.reshape(-1), encode(new.reshape(-1), self.scale.dtype), own)
        return {self.stored[0]: words.reshape(-1).view(np.int32), self.stored[1]: scale}


def codecs(state_dict: StateDict) -> dict[str, Codec]:
    """Weight -> how it is stored, of those that are stored in few bits and known here.

    Raises CheckpointError for packed numbers of another kind, named.
    """
    tensors = state_dict.tensors
    found: dict[str, Codec] = {
        name: EightBits(name, tensors[name], tensors[own.scale], own)
        for name, own in scaled_weights(state_dict).items()
    }
    beside: dict[str, set[str]] = {}
    for name in tensors:
        module, inner, what = name.rpartition(".weight_")
        if inner:
            beside.setdefault(module, set()).add(what)
    integers, floats = (_says_four_bits(state_dict.config, kind) for kind in ("int", "float"))
    for module, parts in beside.items():
        if "packed" in parts and floats and parts == {"packed", "scale"}:
            pair = tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"]
            found[f"{module}.weight"] = packed_and_scale(module, *pair) or _four_bits(state_dict, module, False)
        elif "packed" in parts:
            known = integers and parts == {"packed", "scale", "shape"}
            found[f"{module}.weight"] = _four_bits(state_dict, module, known)
    return found | (blocks_and_scales(state_dict) if is_mxfp4(state_dict.config) else {})


def _says_four_bits(config: Mapping[str, Any], kind: str) -> bool:
    """Whether every group of the settings is of 4 bits, symmetric: whole numbers ("int") or MXFP4 ("float")."""
    settings = dict(config.get("quantization_config") or {})
    groups = [row for row in dict(settings.get("config_groups") or {}).values() if isinstance(row, Mapping)]
    weights = [row["weights"] for row in groups if isinstance(row.get("weights"), Mapping)]
    return bool(weights) and all(
        row.get("num_bits") == _BITS and row.get("symmetric", True) and row.get("type", "int") == kind
        and (kind == "int" or row.get("group_size") == GROUP)
        for row in weights
    )  # fmt: skip


def _four_bits(state_dict: StateDict, module: str, known: bool) -> FourBits:
    tensors = state_dict.tensors
    packed, scale = tensors.get(f"{module}.weight_packed"), tensors.get(f"{module}.weight_scale")
    if not known or packed is None or scale is None or packed.dtype != "I32":
        raise CheckpointError(
            "is not packed as 4 bits, symmetric, in groups (compressed-tensors' pack-quantized and "
            "mxfp4-pack-quantized)",
            f"{state_dict.label}: {module}",
            "leave out `output: quantized` (packed tensors are then copied), or name the model that it was made from",
        )
    columns = packed.shape[1] * _IN_A_WORD
    if columns % scale.shape[1]:
        raise CheckpointError(
            f"{columns} columns in {scale.shape[1]} groups", f"{state_dict.label}: {module}", "get the file again"
        )
    return FourBits(module, packed, scale, columns)


def nearest_eight_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the 8-bit float nearest to each number, ties to even, the largest one on overflow: uint8."""
    sizes = eight_bit_values(dtype)[:128]
    step = nearest_on(sizes[np.isfinite(sizes)], np.abs(values))
    return np.where(np.signbit(values), step | np.uint8(128), step).astype(np.uint8)


def _padded(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(blocks down, rows, blocks across, columns), filled up with zeros."""
    rows, columns = values.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    filled = np.zeros((down * block[0], across * block[1]), values.dtype)
    filled[:rows, :columns] = values
    return filled.reshape(down, block[0], across, block[1])


def _any_of_blocks(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    return np.asarray(_padded(values, block).any(axis=(1, 3)))


def _largest_of_blocks(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    return np.asarray(_padded(values, block).max(axis=(1, 3)))
