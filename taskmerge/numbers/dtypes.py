"""The number formats of a safetensors file, by the names its header uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DType:
    """One storage format.

    name: as in a safetensors header ("BF16").  torch_name: attribute of torch ("bfloat16").
    bits: size of one entry in bits.  storage: NumPy dtype with the same size; for BF16 and the 8-bit floats it
    holds the bit pattern, not the value.  kind: "float", "small_float" (never merged blindly), "integer", "bool"
    or "complex".
    """

    name: str
    torch_name: str
    bits: int
    storage: np.dtype | None
    kind: str

    @property
    def size(self) -> int:
        """Bytes of one entry; only for formats that fill whole bytes."""
        return self.bits // 8

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor."""
        return (math.prod(shape) * self.bits + 7) // 8

    @property
    def mergeable(self) -> bool:
        """True if the package defines arithmetic on the format (F64, F32, F16, BF16)."""
        return self.kind == "float"


_ROWS = [
    DType("F64", "float64", 64, np.dtype("<f8"), "float"),
    DType("F32", "float32", 32, np.dtype("<f4"), "float"),
    DType("F16", "float16", 16, np.dtype("<f2"), "float"),
    DType("BF16", "bfloat16", 16, np.dtype("<u2"), "float"),
    DType("F8_E4M3", "float8_e4m3fn", 8, np.dtype("u1"), "small_float"),
    DType("F8_E5M2", "float8_e5m2", 8, np.dtype("u1"), "small_float"),
    DType("F8_E8M0", "float8_e8m0fnu", 8, np.dtype("u1"), "small_float"),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, np.dtype("u1"), "small_float"),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, np.dtype("u1"), "small_float"),
    DType("F6_E2M3", "", 6, None, "small_float"),
    DType("F6_E3M2", "", 6, None, "small_float"),
    DType("F4", "float4_e2m1fn_x2", 4, None, "small_float"),
    DType("I64", "int64", 64, np.dtype("<i8"), "integer"),
    DType("I32", "int32", 32, np.dtype("<i4"), "integer"),
    DType("I16", "int16", 16, np.dtype("<i2"), "integer"),
    DType("I8", "int8", 8, np.dtype("i1"), "integer"),
    DType("U64", "uint64", 64, np.dtype("<u8"), "integer"),
    DType("U32", "uint32", 32, np.dtype("<u4"), "integer"),
    DType("U16", "uint16", 16, np.dtype("<u2"), "integer"),
    DType("U8", "uint8", 8, np.dtype("u1"), "integer"),
    DType("BOOL", "bool", 8, np.dtype("?"), "bool"),
    DType("C64", "complex64", 64, np.dtype("<c8"), "complex"),
]

DTYPES: dict[str, DType] = {row.name: row for row in _ROWS}
BY_TORCH_NAME: dict[str, DType] = {row.torch_name: row for row in _ROWS if row.torch_name}
OUTPUT_DTYPES: dict[str, str] = {row.torch_name: row.name for row in _ROWS if row.mergeable}
