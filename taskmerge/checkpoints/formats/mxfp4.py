"""MXFP4: floats of four bits, 32 adjacent ones with one power of two as their scale.

| stored                                    | stands for        | written by                                 |
|-------------------------------------------|-------------------|--------------------------------------------|
| X_blocks (E, out, groups, 16), X_scales   | X (E, in, out)    | gpt-oss, `quant_method: mxfp4`             |
| weight_packed (out, in / 2), weight_scale | weight (out, in)  | compressed-tensors, `mxfp4-pack-quantized` |

Two numbers in a byte, the first in its low half. Source: OCP Microscaling Formats (MX) 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.ladders import nearest_on
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError

GROUP = 32
_BIAS = 127
_SIZES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_NUMBERS = np.concatenate([_SIZES, -_SIZES])
_FITS = 7.0
"""What is nearer to 6, the largest number, than to 8, which the next one would be."""


@dataclass(frozen=True)
class FourBitFloats:
    """One weight in MXFP4. turned: the file holds (out, in) of each expert for what is (in, out)."""

    name: str
    blocks: TensorInfo
    scales: TensorInfo
    turned: bool

    @property
    def dims(self) -> tuple[int, ...]:
        """See `Codec.dims`."""
        *before, out, into = self._stored_dims
        return (*before, into, out) if self.turned else (*before, out, into)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Codec.shape`."""
        *before, rows, columns = self.dims
        return int(np.prod(before, dtype=np.int64)) * rows, columns

    @property
    def stored(self) -> tuple[str, ...]:
        """See `Codec.stored`."""
        return self.blocks.name, self.scales.name

    @property
    def rows(self) -> int:
        """See `Codec.rows`: a whole expert where it is turned."""
        return self.dims[-2] if self.turned else 1

    @property
    def _stored_dims(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], self.scales.shape[-1] * GROUP)

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """(groups, 32) in the order of the file, of rows of the weight."""
        if self.turned:
            values = values.reshape(-1, *self.dims[-2:]).transpose(0, 2, 1)
        return values.reshape(-1, GROUP)

    def _bits(self, source: StateDict, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (groups, 32) and scales (groups,), uint8, of rows [first, last) of the weight."""
        start, stop = first * self.shape[1] // GROUP, last * self.shape[1] // GROUP
        half = GROUP // 2
        pairs = source.read(self.blocks.name, start * half, stop * half).view(np.uint8).reshape(-1, half)
        codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, GROUP)
        return codes, source.read(self.scales.name, start, stop).view(np.uint8)

    def read(self, source: StateDict, first: int, last: int) -> np.ndarray:
        """See `Codec.read`."""
        codes, scales = self._bits(source, first, last)
        values = _NUMBERS[codes] * _power(scales)[:, None]
        if self.turned:
            values = values.reshape(-1, self.dims[-1], self.dims[-2]).transpose(0, 2, 1)
        return values.reshape(-1, self.shape[1])

    def write(
        self, source: StateDict, first: int, last: int, values: np.ndarray, before: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Codec.write`; a scale is the least power of two for which the largest of its group is near 6 at most."""
        codes, scales = self._bits(source, first, last)
        wanted = self._as_stored(values)
        moved = (wanted != self._as_stored(before)).any(axis=1)
        largest = np.abs(wanted).max(axis=1)
        exponent = np.ceil(np.log2(np.where(largest > 0, largest, 1) / _FITS)).astype(np.int64)
        new = np.clip(exponent + _BIAS, 0, 2 * _BIAS).astype(np.uint8)
        scales = np.where(moved & (largest > 0), new, scales)
        fresh = wanted / _power(scales)[:, None]
        found = nearest_on(_SIZES, np.abs(fresh)) | np.where(np.signbit(fresh), np.uint8(8), np.uint8(0))
        codes = np.where(moved[:, None], found, codes).astype(np.uint8)
        return {self.blocks.name: (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(-1), self.scales.name: scales}


def _power(scales: np.ndarray) -> np.ndarray:
    """The scales as numbers, float64; 255 stands for NaN."""
    return np.where(scales == 255, np.nan, np.ldexp(1.0, scales.astype(np.int64) - _BIAS))


def is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Return whether a config describes the layout of gpt-oss."""
    return dict(config.get("quantization_config") or {}).get("quant_method") == "mxfp4"


def blocks_and_scales(state_dict: StateDict) -> dict[str, FourBitFloats]:
    """Weight -> how it is stored, in gpt-oss' layout. Raises CheckpointError where blocks and scales do not fit."""
    found = {}
    for name, blocks in state_dict.tensors.items():
        if not name.endswith("_blocks"):
            continue
        weight = name.removesuffix("_blocks")
        scales = state_dict.tensors.get(f"{weight}_scales")
        fits = scales is not None and blocks.shape == (*scales.shape, GROUP // 2) and len(scales.shape) == 3
        if scales is None or not fits or {blocks.dtype, scales.dtype} != {"U8"}:
            what = f"blocks {blocks.dtype} {list(blocks.shape)} do not match " + (
                f"scales {scales.dtype} {list(scales.shape)}" if scales else f"{weight}_scales, which is missing"
            )
            raise CheckpointError(what, f"{state_dict.label}: {name}", "get the file again")
        found[weight] = FourBitFloats(weight, blocks, scales, True)
    return found


def packed_and_scale(module: str, packed: TensorInfo, scale: TensorInfo) -> FourBitFloats | None:
    """Return the codec for a weight in the layout of compressed-tensors; None if the two tensors do not have it."""
    fits = len(packed.shape) == 2 and packed.shape == (scale.shape[0], scale.shape[-1] * GROUP // 2)
    if not fits or packed.dtype != "U8" or scale.dtype not in ("U8", "F8_E8M0"):
        return None
    return FourBitFloats(f"{module}.weight", packed, scale, False)
