"""Float64 outputs: each is the float64 nearest to the formula in fractions, also where terms cancel, tie, underflow and
overflow. A float64 oracle could not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from kernel_oracles import assert_nearest, fractions, operand, oracle, run
from kernel_programs import KEYS, PROGRAMS
from scipy.stats import rankdata

from taskmerge.kernels import DropRandom, Health, Measurement, Program, measure, set_threads
from taskmerge.kernels.exact import combining
from taskmerge.kernels.exact.rational import total
from taskmerge.kernels.exact.survivors import mean_ranks
from taskmerge.numbers.randomness import keep_limit, uniform_bits

CLOSED = {name: program for name, program in PROGRAMS.items() if program.from_gram is None}
PROGRAM = some.sampled_from(sorted(CLOSED)).map(CLOSED.get)
ANY = some.floats(-(2.0**1022), 2.0**1022, allow_subnormal=True)  # so that no delta overflows


def check(rows: Sequence[np.ndarray], program: Program, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """rows: the base, then specialists, float64 (entries,) -> the merged entries, compared."""
    operands = [operand(row, "F64", shape) for row in rows]
    out, _ = run(operands[0], operands[1:], program, KEYS, "F64", [len(rows[0]) // 3])
    exact = [fractions(row) for row in rows]
    with np.errstate(over="ignore"):  # magnitudes beyond float32
        assert_nearest(out, "F64", oracle(exact[0], exact[1:], program, KEYS, shape))
    return out


@settings(deadline=None, max_examples=150)
@given(program=PROGRAM, seed=some.integers(0, 2**32), spread=some.sampled_from([0, 3, 30, 300]))
def test_where_terms_cancel(program: Program, seed: int, spread: int) -> None:
    """The last specialist is what undoes base and others, to the last bit that float64 has for it."""
    random = np.random.default_rng(seed)
    rows = [random.standard_normal(24) * 2.0 ** random.integers(-spread, spread + 1, 24) for _ in range(4)]
    last = len(program.weights)
    weight = Fraction(program.scale) * Fraction(program.weights[-1]) or Fraction(1)
    for j in range(24):
        base, *others = (Fraction(row[j]) for row in rows[:last])
        moved = sum(Fraction(w) * (x - base) for w, x in zip(program.weights, others, strict=False))
        left = program.base_factor() * base + Fraction(program.scale) * moved
        rows[last][j] = float(base - left / weight)
    check(rows, program, (4, 6))


def test_cancellation_costs_no_digits() -> None:
    """3 + (1e16 - 3) + (-1e16 - 3), of which float64 has not one digit right."""
    rows = [np.array([3.0]), np.array([1e16]), np.array([-1e16]), np.array([3.0])]
    assert check(rows, Program((1.0, 1.0, 0.1))).tolist() == [-3.0]
    assert 3.0 + (1e16 - 3.0) + (-1e16 - 3.0) != -3.0


@settings(deadline=None, max_examples=150)
@given(
    program=PROGRAM,
    rows=arrays(np.float64, (4, 5), elements=ANY),
    weights=some.lists(some.floats(-2, 2, allow_subnormal=True), min_size=3, max_size=3),
    scale=some.floats(-2, 2),
)
def test_any_numbers_at_all(program: Program, rows: np.ndarray, weights: list[float], scale: float) -> None:
    check(list(rows), replace(program, weights=tuple(weights), scale=scale), (5,))


@settings(deadline=None, max_examples=60)
@given(program=PROGRAM, rows=arrays(np.float64, (4, 6), elements=some.floats(-(2.0**-1000), 2.0**-1000)))
def test_where_products_underflow(program: Program, rows: np.ndarray) -> None:
    check(list(rows), program, (6,))


@pytest.mark.parametrize("name", sorted(name for name in CLOSED if "della" not in name))
def test_halves_and_neighbours_need_no_fractions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of neighbouring floats lie half-way between floats. That common case is decided by the wide floats (but
    for DELLA, that divides by a probability per entry: sums of such quotients may be halves that no quotient is)."""
    random = np.random.default_rng(0)
    base = random.standard_normal(4000)
    rows = [base, *(base + random.integers(-3, 4, 4000) * np.spacing(base) for _ in range(3))]
    monkeypatch.setattr(combining, "merged", lambda *_: pytest.fail("went to fractions"))
    check(rows, replace(CLOSED[name], weights=(0.5, 0.25, 0.25), base="added", scale=1.0), (40, 100))


def test_thirds_divide_once() -> None:
    """Fractions as weights: (1 + 1 + x) / 3 is not what three rounded thirds give."""
    third = Fraction(1, 3)
    base = np.linspace(0.5, 2.0, 3001)
    rows = [base, *(np.roll(base, shift) for shift in (1, 2, 3))]
    check(rows, Program((third,) * 3))
    check(rows, Program((third, third, Fraction(2, 7)), scale=0.3, base="weighted"))


@pytest.mark.parametrize("name", ["ties", "dare_l1", "della", "magmax"])
def test_the_same_bits_on_any_threads_cuts_and_device(name: str) -> None:
    random = np.random.default_rng(4)
    base = random.standard_normal(410 * 700) * 0.02
    operands = [
        operand(base + random.standard_normal(base.size) * size, "F64", (410, 700)) for size in (0, 1e-3, 2e-3, 0)
    ]
    results = set()
    try:
        for threads, cuts, device in ((1, [], "cpu"), (2, [1, 262_145], "cpu"), (2, [100_000], "cpu:0")):
            set_threads(threads)
            results.add(run(operands[0], operands[1:], PROGRAMS[name], KEYS, "F64", cuts, device)[0].tobytes())
    finally:
        set_threads(None)
    assert len(results) == 1


def test_sums_of_magnitudes_are_exact() -> None:
    """What "l1" multiplies survivors by, as a fraction; entries that are not finite are left out."""
    base, other = np.array([1.0, 0.0, 0.0, 0.0]), np.array([1e-30, 3e300, 2.0, np.inf])
    found = measure(
        operand(base, "F64"),
        [operand(other, "F64")],
        Program((1.0,), sparsify=DropRandom(1.0, "l1")),
        (5,),
        out_dtype="F64",
    )
    assert isinstance(found, Measurement) and found.factors == (1,)
    half = Program((1.0,), sparsify=DropRandom(0.5, "l1"))
    rows = [np.zeros(64), np.random.default_rng(0).standard_normal(64)]
    found = measure(operand(rows[0], "F64"), [operand(rows[1], "F64")], half, KEYS[:1], out_dtype="F64")
    assert found is not None and found.factors is not None
    out, _ = run(operand(rows[0], "F64"), [operand(rows[1], "F64")], half, KEYS[:1], "F64")
    kept = [Fraction(abs(value)) for value, merged in zip(rows[1].tolist(), out.tolist(), strict=True) if merged]
    assert found.factors == (sum(Fraction(abs(value)) for value in rows[1].tolist()) / sum(kept),)


@settings(deadline=None)
@given(arrays(np.float64, some.integers(0, 30), elements=ANY))
def test_total_is_the_sum(values: np.ndarray) -> None:
    assert total(values) == sum(map(Fraction, values.tolist()))


def test_ranks_of_equal_entries_are_their_mean() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (20, 33)).astype(np.float32)
    np.testing.assert_array_equal(mean_ranks(rows), rankdata(rows, axis=1) - 1)


def test_entries_that_are_not_finite_are_counted() -> None:
    base, other = np.array([1.0, np.nan, -np.inf, 1.7e308, -0.0]), np.array([2.0, 1.0, 3.0, -1.7e308, -0.0])
    out, health = run(operand(base, "F64"), [operand(other, "F64")], Program((-1.0,)), (), "F64")
    assert health == Health(2, 3)
    assert out[0] == 0.0 and math.isnan(out[1]) and out[2] == -np.inf and out[3] == np.inf
    assert math.copysign(1.0, out[4]) == -1.0


def test_a_rescaling_beyond_any_float() -> None:
    """A vanishing survivor scaled up to the whole task vector: the factor overflows, the product does not."""
    keeps = [uniform_bits(key, 0, 64) < keep_limit(0.5) for key in KEYS]
    rows = [np.where(kept, 0.0, 1e300) + np.where(np.arange(64) == kept.argmax(), 5e-324, 0.0) for kept in keeps]
    out = check([np.zeros(64), *rows], Program((1.0, 0.0, 0.0), sparsify=DropRandom(0.5, "l1")))
    assert np.isfinite(out).all() and out.max() > 1e300
