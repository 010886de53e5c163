"""What the kernels are compared with: NumPy straight from the formulas, and exact rounding in integers.

The same formulas run on float64 arrays and on arrays of fractions. The first judge outputs narrower than float64. Half
a unit of float64 itself only the second can judge, which round nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

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
from taskmerge.kernels.program import Consensus, Sparsify
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
    found = np.empty(np.size(values), object)
    found[:] = [Fraction(value) for value in np.ravel(values).tolist()]
    return found.reshape(np.shape(values))


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


def operand(entries: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None, is_delta: bool = False) -> Operand:
    shape = entries.shape if shape is None else shape
    return Operand(dtype, shape, lambda start, stop: entries[start:stop], is_delta=is_delta)


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
    if deltas.shape[1] == 0:
        return deltas
    ways = program.sparsify if isinstance(program.sparsify, tuple) else [program.sparsify] * len(deltas)
    keys = keys or [0] * len(deltas)
    return np.stack([survivors(row, way, key, shape) for row, way, key in zip(deltas, ways, keys, strict=True)])


def survivors(delta: np.ndarray, piece: Sparsify | None, key: int, shape: tuple[int, ...]) -> np.ndarray:
    """What is left of one flat delta."""
    count = delta.size
    if isinstance(piece, KeepLargest):
        skipped, kept = math.floor(piece.skip * count), max(1, math.floor(piece.density * count))
        magnitudes = np.abs(delta).astype(np.float32)
        falling = -np.sort(-magnitudes)
        high = falling[min(skipped, count - 1)] if skipped else np.inf
        low = falling[min(skipped + kept, count) - 1]
        return np.where((magnitudes >= low) & (magnitudes <= high), delta, 0)
    if isinstance(piece, DropRandom):
        left = np.where(uniform_bits(key, 0, count) < keep_limit(piece.density), delta, 0)
        if piece.rescale == "inverse_density":
            return left / like(piece.density, delta)
        return of_the_same_mass(left, delta) if piece.rescale == "l1" else left
    if isinstance(piece, DropByRank):
        row = shape[-1] if shape else 1
        chance = np.full(count, piece.density)
        if row > 1:
            ranks = rankdata(np.abs(delta).astype(np.float32).reshape(-1, row), axis=1).ravel() - 1
            chance = piece.density - piece.epsilon + 2 * piece.epsilon * ranks / (row - 1)
        chance = np.clip(chance, 0, 1)
        left = np.where(uniform_bits(key, 0, count) < np.floor(chance * 2.0**32), delta, 0)
        if piece.rescale == "own_probability":
            divisors = np.where(chance > 0, chance, 1)  # the probability is a float64 by definition
            return left / (fractions(divisors) if delta.dtype == object else divisors)
        return of_the_same_mass(left, delta) if piece.rescale == "l1" else left
    return delta


def of_the_same_mass(left: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Survivors multiplied so that their sum of magnitudes is the whole delta's."""
    whole, kept = np.abs(delta).sum(), np.abs(left).sum()
    return left * (whole / kept) if kept > 0 else left


def takes(deltas: np.ndarray, weights: np.ndarray, how: Consensus) -> np.ndarray:
    """Which entries of rows of float64 deltas the consensus takes: bool (specialists, entries)."""
    weighted = weights[:, None] * deltas
    if isinstance(how, Elect):
        votes = {"weighted_mass": weighted, "mass": deltas, "count": np.sign(deltas)}[how.elect]
        turned = np.where((weights < 0) & (how.elect == "weighted_mass"), -1, 1)[:, None]
        return turned * np.sign(deltas) == np.where(sum(votes) >= 0, 1, -1)
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
    share: Any = weights[:, None] if how.average == "weight" else like(1, deltas)
    shares = np.where(taken, share, 0).sum(axis=0)
    return np.where(shares != 0, top / np.where(shares != 0, shares, 1), 0)


def oracle(
    base: np.ndarray,
    specialists: Sequence[np.ndarray],
    program: Program,
    keys: Sequence[int],
    shape: tuple[int, ...] | None = None,
    are_deltas: Sequence[bool] = (),
) -> np.ndarray:
    """The merged values before rounding: float64 in, float64 out; fractions in, fractions out. What is elected is by
    definition decided on float64 deltas, in both. are_deltas: which specialists are task vectors already."""
    flags = are_deltas or (False,) * len(specialists)
    shape = base.shape if shape is None else shape
    exact_deltas = taken_apart(base, specialists, flags)
    seen = taken_apart(base.astype(np.float64), [values.astype(np.float64) for values in specialists], flags)
    given = program.weights
    if program.from_gram is not None:
        vectors = seen if program.gram_of == "deltas" else seen + base.astype(np.float64)
        given = tuple(float(weight) for weight in program.from_gram(vectors @ vectors.T))
    weights = np.array(given, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        taken = takes(sparsified(seen, program, keys, shape), weights, program.consensus)
    deltas = sparsified(exact_deltas, program, keys, shape)
    exact = fractions(np.array(given)) if base.dtype == object else weights
    scale = like(program.scale, base)
    factor = {"added": 1, "left_out": 0, "weighted": 1 + scale * (sum(exact) - 1)}[program.base]
    if program.from_gram is None and not any(given):
        factor = 0 if program.base == "left_out" else 1
    return factor * base + scale * agreed(deltas, taken, exact, program.consensus)


def taken_apart(base: np.ndarray, specialists: Sequence[np.ndarray], are_deltas: Sequence[bool]) -> np.ndarray:
    """The task vectors: (specialists, entries)."""
    return np.stack([x if is_delta else x - base for x, is_delta in zip(specialists, are_deltas, strict=True)])


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
