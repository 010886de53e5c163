"""The kernels against float64 NumPy written from the formulas, on every dtype, shape and cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from taskmerge.kernels import (
    Active,
    DropRandom,
    Elect,
    Health,
    KeepLargest,
    Largest,
    Measurement,
    Operand,
    Program,
    Sum,
    combine,
    measure,
    set_threads,
)
from taskmerge.randomness import keep_limit, stream_key, uniform_bits

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
STORAGE = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
PRECISION = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126), "F64": (53, -1022)}  # digits, least exponent


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    set_threads(None)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a file of that dtype holds them, by torch's own conversion."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).flatten().to(TORCH[dtype])
    return tensor.view(torch.uint16).numpy() if dtype == "BF16" else tensor.numpy()


def valued(entries: np.ndarray, dtype: str) -> np.ndarray:
    """What stored entries are worth, float64."""
    if dtype == "BF16":
        return (entries.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return entries.astype(np.float64)


def rounded(value: float, dtype: str) -> float:
    """Nearest-even in exact integer arithmetic, subnormals and overflow included."""
    if dtype == "F64" or not math.isfinite(value) or value == 0.0:
        return value
    digits, least = PRECISION[dtype]
    exponent = max(math.frexp(value)[1] - 1, least)
    unit = math.ldexp(1.0, exponent - digits + 1)
    result = round(value / unit) * unit  # exact division by a power of two; round() is to even
    largest = (2 - 2.0 ** (1 - digits)) * 2.0 ** (15 if dtype == "F16" else 127)
    return math.copysign(math.inf, value) if abs(result) > largest else math.copysign(result, value)


def operand(entries: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None) -> Operand:
    return Operand(dtype, shape if shape is not None else entries.shape, lambda start, stop: entries[start:stop])


def run(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    keys: Sequence[int],
    out_dtype: str,
    cuts: Sequence[int] = (),
) -> tuple[np.ndarray, Health]:
    """Measure and combine in the pieces that `cuts` make."""
    measurement = measure(base, specialists, program, keys)
    return combined(base, specialists, program, measurement, keys, out_dtype, cuts)


def combined(
    base: Operand,
    specialists: Sequence[Operand],
    program: Program,
    measurement: Measurement | None,
    keys: Sequence[int],
    out_dtype: str,
    cuts: Sequence[int] = (),
) -> tuple[np.ndarray, Health]:
    out = np.empty(base.count, STORAGE[out_dtype])
    places = [0, *sorted(cuts), base.count]
    health = Health()
    for start, stop in pairwise(places):
        health += combine(base, specialists, program, measurement, keys, start, stop, out[start:stop], out_dtype)
    return out, health


def sparsified(deltas: np.ndarray, program: Program, keys: Sequence[int]) -> np.ndarray:
    """Rows of deltas after the program's sparsify step, from the definitions."""
    piece = program.sparsify
    count = deltas.shape[1]
    if isinstance(piece, KeepLargest):
        skipped, kept = math.floor(piece.skip * count), max(1, math.floor(piece.density * count))
        magnitudes = np.abs(deltas).astype(np.float32)
        falling = -np.sort(-magnitudes, axis=1)
        high = falling[:, min(skipped, count - 1), None] if skipped else np.inf
        low = falling[:, min(skipped + kept, count) - 1, None]
        return np.where((magnitudes >= low) & (magnitudes <= high), deltas, 0.0)
    if isinstance(piece, DropRandom):
        bits = np.stack([uniform_bits(key, 0, count) for key in keys])
        kept_rows = np.where(bits < keep_limit(piece.density), deltas, 0.0)
        if piece.rescale == "inverse_density":
            return kept_rows * (1 / piece.density)
        if piece.rescale == "l1":
            whole, left = np.abs(deltas).sum(axis=1), np.abs(kept_rows).sum(axis=1)
            return kept_rows * np.where(left > 0, whole / np.where(left > 0, left, 1), 1)[:, None]
        return kept_rows
    return deltas


def agreed(deltas: np.ndarray, weights: np.ndarray, program: Program) -> np.ndarray:
    """The consensus of rows of deltas, from the definitions."""
    how = program.consensus
    weighted = weights[:, None] * deltas
    if isinstance(how, Elect):
        votes = {"weighted_mass": weighted, "mass": deltas, "count": np.sign(deltas)}[how.elect]
        elected = np.where(sum(votes) >= 0, 1.0, -1.0)
        agrees = np.sign(deltas) == elected
        top = np.where(agrees, weighted, 0.0).sum(axis=0)
        shares = np.where(agrees, weights[:, None] if how.average == "weight" else 1.0, 0.0).sum(axis=0)
        if how.average == "none":
            return top
        return np.where(shares != 0, top / np.where(shares != 0, shares, 1), 0.0)
    if isinstance(how, Largest):
        return np.take_along_axis(weighted, np.abs(weighted).argmax(axis=0)[None], axis=0)[0]
    if isinstance(how, Active):
        others = np.stack([np.delete(deltas, i, axis=0).sum(axis=0) for i in range(len(deltas))])
        votes = (np.abs(deltas) > how.theta * np.abs(others)).sum(axis=0)
        return np.where(votes >= how.minimum, weighted.sum(axis=0), 0.0)
    return weighted.sum(axis=0)


def oracle(base: np.ndarray, specialists: Sequence[np.ndarray], program: Program, keys: Sequence[int]) -> np.ndarray:
    """The merged values before rounding: float64 in, float64 out."""
    deltas = sparsified(np.stack([values - base for values in specialists]), program, keys)
    return program.base_factor * base + program.scale * agreed(deltas, np.array(program.weights), program)


def assert_nearest(out: np.ndarray, dtype: str, exact: np.ndarray) -> None:
    """Every entry is the rounded value of the formula; a last-place slip of float64 itself is allowed to flip a tie."""
    got = valued(out, dtype)
    slack = 1e-13 * np.abs(exact) + 1e-300
    for value, want, room in zip(got.tolist(), exact.tolist(), slack.tolist(), strict=True):
        if dtype == "F64":
            assert abs(value - want) <= room
        else:
            assert rounded(want - room, dtype) <= value <= rounded(want + room, dtype)


PROGRAMS = [
    Program((0.3, 0.5, 0.7)),
    Program((0.2, 0.3, 0.5), scale=0.7, base_factor=0.5),
    Program((0.3, 0.5, 0.7), sparsify=KeepLargest(0.2), consensus=Elect()),
    Program((0.3, 0.5, 0.7), sparsify=KeepLargest(0.3, skip=0.1), consensus=Elect("mass", "count")),
    Program((0.3, -0.5, 0.7), sparsify=KeepLargest(0.6), consensus=Elect("count", "none")),
    Program((0.3, 0.5, 0.7), sparsify=DropRandom(0.4), consensus=Elect()),
    Program((0.3, 0.5, 0.7), sparsify=DropRandom(0.4, "l1")),
    Program((0.3, 0.5, 0.7), sparsify=DropRandom(0.4, "none"), consensus=Sum()),
    Program((0.3, 0.5, 0.7), scale=2.0, consensus=Largest()),
    Program((0.3, 0.5, 0.7), consensus=Active(0.4, 2)),
]
KEYS = [stream_key(7, name, "layer") for name in ("audio", "image", "video")]


@settings(deadline=None, max_examples=60)
@given(
    program=some.sampled_from(PROGRAMS),
    count=some.integers(1, 3000),
    dtypes=some.lists(some.sampled_from(sorted(TORCH)), min_size=4, max_size=4),
    out_dtype=some.sampled_from(sorted(TORCH)),
    cuts=some.lists(some.floats(0, 1), max_size=3),
    seed=some.integers(0, 999),
)
def test_every_program_is_the_rounded_formula(
    program: Program, count: int, dtypes: list[str], out_dtype: str, cuts: list[float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(count) * 0.02
    entries = [stored(values, dtypes[0])]
    for dtype, size in zip(dtypes[1:], (1e-3, 2e-3, 4e-4), strict=True):
        entries.append(stored(values + random.standard_normal(count) * size * (random.random(count) < 0.8), dtype))
    operands = [operand(array, dtype) for array, dtype in zip(entries, dtypes, strict=True)]
    out, health = run(operands[0], operands[1:], program, KEYS, out_dtype, [int(cut * count) for cut in cuts])
    exact = oracle(
        valued(entries[0], dtypes[0]),
        [valued(array, dtype) for array, dtype in zip(entries[1:], dtypes[1:], strict=True)],
        program,
        KEYS,
    )
    assert_nearest(out, out_dtype, exact)
    assert health == Health(0, 0)
