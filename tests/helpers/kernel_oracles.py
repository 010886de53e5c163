"""What the kernels are compared with: NumPy straight from the formulas, and exact rounding in integers.

The same formulas run on float64 arrays and on arrays of fractions. The first judge outputs narrower than float64. Half
a unit of float64 itself only the second can judge, which round nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import rankdata

from taskmerge.kernels import (
    Active,
    DropByRank,
    DropRandom,
    Elect,
    Health,
    KeepLargest,
    Largest,
    Measurement,
    Operand,
    Program,
    combine,
    measure,
)
from taskmerge.kernels.program import Consensus
from taskmerge.numbers.randomness import keep_limit, uniform_bits

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
STORAGE = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
PRECISION = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126), "F64": (53, -1022)}  # digits, least exponent


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a file of that dtype holds them, by torch's own conversion."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).flatten().to(TORCH[dtype])
    return tensor.view(torch.uint16).numpy() if dtype == "BF16" else tensor.numpy()


def valued(entries: np.ndarray, dtype: str) -> np.ndarray:
    """What stored entries are worth, float64."""
    with np.errstate(invalid="ignore"):  # signalling NaN patterns
        if dtype == "BF16":
            return (entries.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return entries.astype(np.float64)


def fractions(values: np.ndarray) -> np.ndarray:
    """The same numbers, as an array of fractions of the same shape."""
    found = np.empty(np.shape(values), object)
    found.flat = [Fraction(value) for value in np.ravel(values).tolist()]
    return found


def like(number: float, array: np.ndarray) -> float | Fraction:
    """A number in the arithmetic of an array."""
    return Fraction(number) if array.dtype == object else number


def rounded(value: float | Fraction, dtype: str) -> float:
    """Nearest-even in exact integer arithmetic, subnormals and overflow included."""
    if value == 0 or (isinstance(value, float) and not math.isfinite(value)):
        return float(value)
    digits, least = PRECISION[dtype]
    exact = Fraction(value)
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, least) - digits + 1)
    result = round(exact / unit) * unit  # round() is to even
    if abs(result) >= Fraction(2) ** (2 - least):
        return math.inf if value > 0 else -math.inf
    return math.copysign(float(result), value)


def operand(entries: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None) -> Operand:
    return Operand(dtype, shape if shape is not None else entries.shape, lambda start, stop: entries[start:stop])


def run(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    keys: Sequence[int],
    out_dtype: str,
    cuts: Sequence[int] = (),
    device: str = "cpu",
) -> tuple[np.ndarray, Health]:
    """Measure and combine in the pieces that `cuts` make."""
    measurement = measure(base, specialists, program, keys, out_dtype=out_dtype, device=device)
    return combined(base, specialists, program, measurement, keys, out_dtype, cuts, device)


def combined(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    measurement: Measurement | None,
    keys: Sequence[int],
    out_dtype: str,
    cuts: Sequence[int] = (),
    device: str = "cpu",
) -> tuple[np.ndarray, Health]:
    """Combine in the pieces that `cuts` make."""
    out = np.empty(base.count, STORAGE[out_dtype])
    places = [0, *sorted(cuts), base.count]
    health = Health()
    for start, stop in pairwise(places):
        health += combine(
            base, specialists, program, measurement, keys, start, stop, out[start:stop], out_dtype, device=device
        )
    return out, health


def sparsified(deltas: np.ndarray, program: Program, keys: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Flat deltas after the program's sparsify step, from the definitions."""
    piece = program.sparsify
    count = deltas.shape[1]
    if count == 0:
        return deltas
    if isinstance(piece, KeepLargest):
        skipped, kept = math.floor(piece.skip * count), max(1, math.floor(piece.density * count))
        magnitudes = np.abs(deltas).astype(np.float32)
        falling = -np.sort(-magnitudes, axis=1)
        high = falling[:, min(skipped, count - 1), None] if skipped else np.inf
        low = falling[:, min(skipped + kept, count) - 1, None]
        return np.where((magnitudes >= low) & (magnitudes <= high), deltas, 0)
    if isinstance(piece, DropRandom):
        bits = np.stack([uniform_bits(key, 0, count) for key in keys])
        kept_rows = np.where(bits < keep_limit(piece.density), deltas, 0)
        if piece.rescale == "inverse_density":
            return kept_rows / like(piece.density, deltas)
        if piece.rescale == "l1":
            whole, left = np.abs(deltas).sum(axis=1), np.abs(kept_rows).sum(axis=1)
            return kept_rows * np.where(left > 0, whole / np.where(left > 0, left, 1), 1)[:, None]
        return kept_rows
    if isinstance(piece, DropByRank):
        row = shape[-1] if shape else 1
        bits = np.stack([uniform_bits(key, 0, count) for key in keys])
        chance = np.full(deltas.shape, piece.density)
        if row > 1:
            ranks = rankdata(np.abs(deltas).astype(np.float32).reshape(-1, row), axis=1).reshape(deltas.shape) - 1
            chance = piece.density - piece.epsilon + 2 * piece.epsilon * ranks / (row - 1)
        chance = np.clip(chance, 0, 1)
        kept_rows = np.where(bits < np.floor(chance * 2.0**32), deltas, 0)
        divisors = np.where(chance > 0, chance, 1)  # the probability is a float64 by definition
        if deltas.dtype == object:
            divisors = fractions(divisors)
        return kept_rows / divisors if piece.rescale else kept_rows
    return deltas


def takes(deltas: np.ndarray, weights: np.ndarray, how: Consensus) -> np.ndarray:
    """Which entries of rows of float64 deltas the consensus takes: bool (specialists, entries)."""
    weighted = weights[:, None] * deltas
    if isinstance(how, Elect):
        votes = {"weighted_mass": weighted, "mass": deltas, "count": np.sign(deltas)}[how.elect]
        return np.sign(deltas) == np.where(sum(votes) >= 0, 1, -1)
    if isinstance(how, Largest):
        return np.abs(weighted).argmax(axis=0) == np.arange(len(deltas))[:, None]
    if isinstance(how, Active):
        others = np.stack([np.delete(deltas, i, axis=0).sum(axis=0) for i in range(len(deltas))])
        votes = (np.abs(deltas) > how.theta * np.abs(others)).sum(axis=0)
        return np.repeat((votes >= how.minimum)[None], len(deltas), axis=0)
    return np.ones(deltas.shape, bool)


def agreed(deltas: np.ndarray, taken: np.ndarray, weights: np.ndarray, how: Consensus) -> np.ndarray:
    """What is made of the entries taken, from the definitions."""
    top = np.where(taken, weights[:, None] * deltas, 0).sum(axis=0)
    if not isinstance(how, Elect) or how.average == "none":
        return top
    shares = np.where(taken, weights[:, None] if how.average == "weight" else like(1, deltas), 0).sum(axis=0)
    return np.where(shares != 0, top / np.where(shares != 0, shares, 1), 0)


def oracle(
    base: np.ndarray,
    specialists: Sequence[np.ndarray],
    program: Program,
    keys: Sequence[int],
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The merged values before rounding: float64 in, float64 out; fractions in, fractions out. What is elected is by
    definition decided on float64 deltas, in both."""
    start = base.astype(np.float64)
    seen = np.stack([values.astype(np.float64) - start for values in specialists])
    weights = np.array(program.weights, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        taken = takes(sparsified(seen, program, keys, shape or base.shape), weights, program.consensus)
    deltas = sparsified(np.stack([values - base for values in specialists]), program, keys, shape or base.shape)
    exact = fractions(np.array(program.weights)) if base.dtype == object else weights
    scale, base_factor = like(program.scale, base), like(program.base_factor, base)
    return base_factor * base + scale * agreed(deltas, taken, exact, program.consensus)


def assert_nearest(out: np.ndarray, dtype: str, exact: np.ndarray) -> None:
    """Every entry is the rounded value of the formula. Where that was computed in float64, for a narrower output, a
    last-place slip of float64 itself is allowed to flip a tie."""
    got = valued(out, dtype)
    if dtype == "F64":
        assert exact.dtype == object and not any(isinstance(value, float) for value in exact.flat)
        assert got.tolist() == [rounded(value, "F64") for value in exact.ravel().tolist()]
        return
    slack = 1e-13 * np.abs(exact) + 1e-17  # entries are around 0.02
    for value, want, room in zip(got.tolist(), exact.tolist(), slack.tolist(), strict=True):
        assert rounded(want - room, dtype) <= value <= rounded(want + room, dtype)
