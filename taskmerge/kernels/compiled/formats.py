"""Raw entries of a mapped file to float64 and back, rounded once.

Arrays come as an address and a format code, so that one compiled kernel serves all dtypes. Loops work on blocks that
stay in the first-level cache and are plain enough for LLVM to vectorise. No fast-math: the bits are the formula's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from taskmerge.kernels.compiled.codes import BF16, F16, F32
from taskmerge.kernels.compiled.inner import (
    array_at,
    bits_of_double,
    bits_of_float,
    double_of_bits,
    float_of_bits,
    inlined,
    inner,
    intrinsic,
)

_ONE = np.uint32(1)
_TOP = np.uint32(16)
_ROUND_BF16 = np.uint32(0x7FFF)
# A float64 rounded to the 7 bits of mantissa that a bfloat16 has: 45 bits go.
_45, _ONE_OF_64, _HALF_OF_45 = np.uint64(45), np.uint64(1), np.uint64((1 << 44) - 1)
_WITHOUT_45 = np.uint64(2**64 - 2**45)
_LEAST_NORMAL, _INFINITE = np.uint16(0x80), np.uint16(0x7F80)
_MAGNITUDE_OF_16 = np.uint16(0x7FFF)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SIGN = np.uint32(0x80000000)
_HALF_BITS = np.uint32(0x3F000000)
_ROUND_F16 = np.uint32(0xC8000FFF)  # exponent bias 127 -> 15, plus half a unit less one
_F16_INFINITE = np.uint32(0x47800000)  # 65536 as float32
_F16_NORMAL = np.uint32(0x38800000)  # 2^-14 as float32
_F16_MAGIC = np.uint32(0x38000000)  # exponent bias 15 -> 127
_F32_INFINITE = np.uint32(0x7F800000)
_THIRTEEN = np.uint32(13)


@intrinsic
def inside_of_64(typing: Any, address: Any, least: Any, width: Any) -> Any:
    """Bit j: whether 0 <= x[j] - least <= width, for the 64 uint32 at `address`. LLVM makes a handful of instructions
    of it; of a loop that sets bits it makes hundreds."""
    lanes = ir.VectorType(ir.IntType(32), 64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = builder.load(builder.inttoptr(arguments[0], lanes.as_pointer()))
        values.align = 4
        none = ir.Constant(lanes, ir.Undefined)
        least, width = (
            builder.shuffle_vector(
                builder.insert_element(none, value, ir.IntType(32)(0)), none, ir.Constant(lanes, [0] * 64)
            )
            for value in arguments[1:]
        )
        found = builder.icmp_unsigned("<=", builder.sub(values, least), width)
        return builder.bitcast(found, ir.IntType(64))

    return types.uint64(types.int64, types.uint32, types.uint32), build


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set, of a uint64 that is not zero."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), build


@inlined
def float_of_bfloat(short: np.uint16) -> np.float32:
    """Convert bfloat16 bits to float32."""
    return float_of_bits(np.uint32(np.uint32(short) << _TOP))


@inlined
def float32_of_half(half: np.uint16) -> np.float32:
    """Convert float16 bits to float32, subnormals and infinities included."""
    wide = np.uint32(half)
    magnitude = np.uint32((wide & np.uint32(0x7FFF)) << _THIRTEEN)
    exponent = np.uint32(magnitude & np.uint32(0x0F800000))
    normal = np.uint32(magnitude + _F16_MAGIC)
    special = np.uint32(normal + _F16_MAGIC)
    subnormal = bits_of_float(float_of_bits(np.uint32(normal + np.uint32(0x00800000))) - float_of_bits(_F16_NORMAL))
    result = normal
    if exponent == np.uint32(0x0F800000):
        result = special
    if exponent == np.uint32(0):
        result = subnormal
    return float_of_bits(np.uint32(result | ((wide & np.uint32(0x8000)) << _TOP)))


@inlined
def round_to_odd(value: np.float64) -> np.uint32:
    """Bits of the float32 next to `value` towards zero, last bit set when inexact: rounding that again, to a format
    at least two bits shorter, gives the correctly rounded result of `value` itself."""
    near = np.float32(value)
    wide = np.float64(near)
    bits = bits_of_float(near)
    if abs(wide) > abs(value):
        bits = np.uint32(bits - _ONE)
    if wide != value:
        bits = np.uint32(bits | _ONE)
    return bits


@inlined
def bfloat_of(value: np.float64) -> np.uint16:
    """Convert float64 to bfloat16 bits, to nearest even."""
    odd = round_to_odd(value)
    rounded = np.uint32(np.uint32(odd + _ROUND_BF16 + ((odd >> _TOP) & _ONE)) >> _TOP)
    if value != value:
        rounded = np.uint32(0x7FC0)
    return np.uint16(rounded)


@inlined
def half_of(value: np.float64) -> np.uint16:
    """Convert float64 to float16 bits, to nearest even, subnormals and overflow to infinity included."""
    odd = round_to_odd(value)
    magnitude = np.uint32(odd & _MAGNITUDE)
    normal = np.uint32(np.uint32(magnitude + _ROUND_F16 + ((magnitude >> _THIRTEEN) & _ONE)) >> _THIRTEEN)
    subnormal = np.uint32(bits_of_float(float_of_bits(magnitude) + float_of_bits(_HALF_BITS)) - _HALF_BITS)
    result = normal
    if magnitude < _F16_NORMAL:
        result = subnormal
    if magnitude >= _F16_INFINITE:
        result = np.uint32(0x7C00)
    if value != value:
        result = np.uint32(0x7E00)
    return np.uint16(result | ((odd & _SIGN) >> _TOP))


@inner
def decode(address: int, code: int, start: int, count: int, out: np.ndarray) -> None:
    """Write entries [start, start + count) of the array at `address`, as float64, into `out`."""
    if code == BF16:
        short = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            out[j] = np.float64(float_of_bfloat(short[j]))
    elif code == F16:
        half = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            out[j] = np.float64(float32_of_half(half[j]))
    elif code == F32:
        single = array_at(address + 4 * start, (count,), np.float32)
        for j in range(count):
            out[j] = np.float64(single[j])
    else:
        double = array_at(address + 8 * start, (count,), np.float64)
        for j in range(count):
            out[j] = double[j]


@inner
def decode_delta(address: int, code: int, start: int, count: int, base: np.ndarray, out: np.ndarray) -> None:
    """Write entries [start, start + count) minus the base's, float64."""
    if code == BF16:
        short = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            out[j] = np.float64(float_of_bfloat(short[j])) - base[j]
    else:
        decode(address, code, start, count, out)
        for j in range(count):
            out[j] -= base[j]


@inner
def add_delta(
    address: int,
    code: int,
    start: int,
    count: int,
    base: np.ndarray,
    weight: float,
    scratch: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add entries [start, start + count) minus the base's, x `weight`, to `total`. scratch: float64 (BLOCK,)."""
    if code == BF16:
        short = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            total[j] += weight * (np.float64(float_of_bfloat(short[j])) - base[j])
    else:
        decode(address, code, start, count, scratch)
        for j in range(count):
            total[j] += weight * (scratch[j] - base[j])


@inner
def decode_single(address: int, code: int, start: int, count: int, out: np.ndarray) -> None:
    """Decode into float32, as `decode` does into float64; not for F64."""
    if code == BF16:
        short = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            out[j] = float_of_bfloat(short[j])
    elif code == F16:
        half = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            out[j] = float32_of_half(half[j])
    else:
        single = array_at(address + 4 * start, (count,), np.float32)
        for j in range(count):
            out[j] = single[j]


@inner
def encode(values: np.ndarray, address: int, code: int, start: int, count: int) -> None:
    """Write `values[:count]`, float64, rounded once to nearest even, to entries [start, start + count) at `address`."""
    if code == BF16:
        encode_bfloat(values, array_at(address + 2 * start, (count,), np.uint16))
    elif code == F16:
        half = array_at(address + 2 * start, (count,), np.uint16)
        for j in range(count):
            half[j] = half_of(values[j])
    elif code == F32:
        single = array_at(address + 4 * start, (count,), np.float32)
        for j in range(count):
            single[j] = np.float32(values[j])
    else:
        double = array_at(address + 8 * start, (count,), np.float64)
        for j in range(count):
            double[j] = values[j]


@inner
def encode_bfloat(values: np.ndarray, out: np.ndarray) -> None:
    """Encode a block as bfloat16, as `encode` does.

    The bits of a float64 rounded as a whole number to 7 of its 52 mantissa bits are those of a float32 whose upper half
    is the bfloat16, if that is normal. A block with any other values than these and true zeros is encoded again by
    `bfloat_of`.
    """
    for j in range(out.size):
        bits = bits_of_double(values[j])
        rounded = np.uint64(bits + _HALF_OF_45 + ((bits >> _45) & _ONE_OF_64)) & _WITHOUT_45
        out[j] = np.uint16(bits_of_float(np.float32(double_of_bits(rounded))) >> _TOP)
    least, most = _MAGNITUDE_OF_16, np.uint16(0)
    for j in range(out.size):
        magnitude = np.uint16(out[j] & _MAGNITUDE_OF_16)
        least, most = min(least, magnitude), max(most, magnitude)
    doubtful = most >= _INFINITE
    if least < _LEAST_NORMAL and not doubtful:
        for j in range(out.size):
            doubtful |= (np.uint16(out[j] & _MAGNITUDE_OF_16) < _LEAST_NORMAL) & (values[j] != 0.0)
    if doubtful:
        for j in range(out.size):
            out[j] = bfloat_of(values[j])


@inner
def count_nonfinite(address: int, code: int, start: int, count: int) -> int:
    """Count the entries that are NaN or infinite: one vectorised maximum of the exponents, then a count if needed."""
    bad = 0
    if code in (BF16, F16):
        limit = np.uint16(0x7F80) if code == BF16 else np.uint16(0x7C00)
        short = array_at(address + 2 * start, (count,), np.uint16)
        top = np.uint16(0)
        for j in range(count):
            top = max(top, np.uint16(short[j] & np.uint16(0x7FFF)))
        if top >= limit:
            for j in range(count):
                bad += int(np.uint16(short[j] & np.uint16(0x7FFF)) >= limit)
    elif code == F32:
        single = array_at(address + 4 * start, (count,), np.uint32)
        high = np.uint32(0)
        for j in range(count):
            high = max(high, np.uint32(single[j] & _MAGNITUDE))
        if high >= _F32_INFINITE:
            for j in range(count):
                bad += int(np.uint32(single[j] & _MAGNITUDE) >= _F32_INFINITE)
    else:
        double = array_at(address + 8 * start, (count,), np.float64)
        for j in range(count):
            bad += int(not np.isfinite(double[j]))
    return bad
