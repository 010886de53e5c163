"""The kernels against NumPy written from the formulas (float64; fractions where the output is float64 itself), on every
dtype, shape, cut, thread count and backend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from kernel_oracles import (
    STORAGE,
    TORCH,
    assert_nearest,
    combined,
    fractions,
    operand,
    oracle,
    rounded,
    run,
    stored,
    valued,
)
from kernel_programs import KEYS, PROGRAMS, W

from taskmerge.errors import MergeError
from taskmerge.kernels import (
    DropByRank,
    DropRandom,
    Elect,
    Health,
    KeepLargest,
    Measurement,
    Operand,
    Program,
    combine,
    measure,
    measure_model,
    set_threads,
)
from taskmerge.kernels.compiled.backend import CompiledBackend

DTYPES = sorted(TORCH)


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    set_threads(None)


def inputs(shape: tuple[int, ...], dtypes: list[str], seed: int) -> tuple[list[np.ndarray], list[Operand]]:
    """A base and specialists near it, with zeros and ties among the deltas."""
    random = np.random.default_rng(seed)
    count = math.prod(shape)
    values = random.standard_normal(count) * 0.02
    entries = [stored(values, dtypes[0])]
    for dtype, size in zip(dtypes[1:], (1e-3, 2e-3, 4e-4), strict=True):
        entries.append(stored(values + random.standard_normal(count) * size * (random.random(count) < 0.8), dtype))
    return entries, [operand(array, dtype, shape) for array, dtype in zip(entries, dtypes, strict=True)]


def expected(
    entries: list[np.ndarray], dtypes: list[str], program: Program, shape: tuple[int, ...], out_dtype: str = "BF16"
) -> np.ndarray:
    """The formula: in fractions for a float64 output, else in float64."""
    values = [valued(array, dtype) for array, dtype in zip(entries, dtypes, strict=True)]
    if out_dtype == "F64":
        values = [fractions(array) for array in values]
    return oracle(values[0], values[1:], program, KEYS, shape)


@settings(deadline=None, max_examples=120)
@given(
    name=some.sampled_from(sorted(PROGRAMS)),
    shape=some.one_of(
        some.just(()),
        some.tuples(some.integers(0, 3000)),
        some.tuples(some.integers(1, 40), some.integers(1, 80)),
        some.tuples(some.integers(1, 6), some.integers(1, 5), some.integers(1, 3), some.integers(1, 3)),
    ),
    dtypes=some.lists(some.sampled_from(DTYPES), min_size=4, max_size=4),
    out_dtype=some.sampled_from(DTYPES),
    cuts=some.lists(some.floats(0, 1), max_size=3),
    seed=some.integers(0, 999),
)
def test_every_program_is_the_rounded_formula(
    name: str, shape: tuple[int, ...], dtypes: list[str], out_dtype: str, cuts: list[float], seed: int
) -> None:
    program, count = PROGRAMS[name], math.prod(shape)
    entries, operands = inputs(shape, dtypes, seed)
    if program.from_gram is not None and out_dtype == "F64":  # exact up to the float64 coefficients that it finds
        found = measure(operands[0], operands[1:], program, KEYS)
        assert found is not None and found.weights is not None
        program = Program(found.weights)
    places = [int(cut * count) for cut in cuts]
    out, health = run(operands[0], operands[1:], program, KEYS, out_dtype, places)
    assert_nearest(out, out_dtype, expected(entries, dtypes, program, shape, out_dtype))
    assert health == Health(0, 0)
    through_torch, health = run(operands[0], operands[1:], program, KEYS, out_dtype, places[::-1], device="cpu:0")
    assert through_torch.tobytes() == out.tobytes()
    assert health == Health(0, 0)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_large_tensors_give_the_same_bits_on_any_threads_cuts_and_backend(name: str) -> None:
    program, shape = PROGRAMS[name], (611, 1031)
    entries, operands = inputs(shape, ["BF16", "BF16", "F32", "F16"], 3)
    results = []
    for threads, cuts in ((1, []), (2, [1, 262_145, 400_000]), (2, [])):
        set_threads(threads)
        results.append(run(operands[0], operands[1:], program, KEYS, "BF16", cuts)[0].tobytes())
    results.append(run(operands[0], operands[1:], program, KEYS, "BF16", [300_000], device="cpu:0")[0].tobytes())
    assert len(set(results)) == 1
    exact = expected(entries, ["BF16", "BF16", "F32", "F16"], program, shape)
    part = slice(500_000, 520_000)
    assert_nearest(np.frombuffer(results[0], np.uint16)[part], "BF16", exact[part])


@pytest.mark.parametrize("out_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_rounding_is_once_and_to_nearest_even(out_dtype: str, device: str) -> None:
    """Half-way points, their float64 neighbours, subnormals, overflow: where rounding by way of float32 errs."""
    storage = np.dtype(STORAGE[out_dtype])
    patterns = np.random.default_rng(0).integers(0, 2 ** (8 * storage.itemsize), 4000, dtype=np.uint64)
    near = valued(patterns.astype(f"u{storage.itemsize}").view(storage), out_dtype)
    following = valued((patterns + 1).astype(f"u{storage.itemsize}").view(storage), out_dtype)
    finite = np.isfinite(near) & np.isfinite(following)
    middle = near[finite] / 2 + following[finite] / 2
    values = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf), near[finite]])
    values = np.concatenate([values, [0.0, -0.0, 65519.99, 65520.0, 3.3961775e38, 3.39e38, 5e-324, -1e-46, 1e300]])
    out, _ = run(operand(values, "F64"), [], Program(()), (), out_dtype, device=device)
    want = np.array([rounded(value, out_dtype) for value in values.tolist()])
    got = valued(out, out_dtype)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(values))


def test_every_16_bit_pattern_is_read_right() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for dtype, device in product(("BF16", "F16"), ("cpu", "cpu:0")):
        out, health = run(operand(patterns.view(STORAGE[dtype]), dtype), [], Program(()), (), "F64", device=device)
        np.testing.assert_array_equal(out, valued(patterns.view(STORAGE[dtype]), dtype))
        bad = int((~np.isfinite(valued(patterns.view(STORAGE[dtype]), dtype))).sum())
        assert health == Health(bad, bad)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_entries_are_counted_and_stay(dtype: str, device: str) -> None:
    values = np.linspace(-1, 1, 5000)
    spoiled = values.copy()
    spoiled[[3, 1024, 4999]] = np.nan, np.inf, -np.inf
    operands = [operand(stored(array, dtype), dtype) for array in (values, spoiled, values)]
    out, health = run(operands[0], operands[1:], Program((0.5, 0.5)), (), "BF16", [1024], device=device)
    assert health == Health(3, 3)
    got = valued(out, "BF16")
    assert np.isnan(got[3]) and got[1024] == np.inf and got[4999] == -np.inf
    assert np.isfinite(np.delete(got, [3, 1024, 4999])).all()


def test_overflow_of_the_output_dtype_is_counted() -> None:
    base, other = operand(np.array([60000.0, 1.0]), "F64"), operand(np.array([70000.0, 2.0]), "F64")
    out, health = run(base, [other], Program((1.0,)), (), "F16")
    assert out[0] == np.inf and out[1] == 2.0 and health == Health(0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_zero_and_unmoved_entries_keep_the_bits_of_the_base(dtype: str) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal(3000)
    values[:10] = -0.0
    base = stored(values, dtype)
    other = stored(values + (random.random(3000) < 0.5), dtype)
    for program in (Program((1.0,), scale=0.0), Program((0.0,)), Program(())):
        others = [operand(other, dtype)] * len(program.weights)
        out, _ = run(operand(base, dtype), others, program, (), dtype)
        assert out.tobytes() == base.tobytes()
    out, _ = run(operand(base, dtype), [operand(base, dtype)], Program((1.0,), consensus=Elect()), (), dtype)
    assert out.tobytes() == base.tobytes()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize(
    ("kind", "density", "skip"),
    [
        ("distinct", 0.2, 0.0),
        ("distinct", 0.05, 0.013),
        ("distinct", 1.0, 0.0),
        ("distinct", 1e-9, 0.0),
        ("ties", 0.2, 0.01),
        ("sparse", 0.2, 0.05),
        ("constant", 0.3, 0.1),
        ("clustered", 0.2, 0.02),
    ],
)
def test_thresholds_are_the_exact_order_statistics(kind: str, density: float, skip: float, device: str) -> None:
    """Also where the sample is misled: magnitudes that grow along the tensor, hide between sampled blocks, or tie."""
    random = np.random.default_rng(5)
    count = 700_001
    deltas = {
        "distinct": random.standard_normal(count),
        "ties": np.round(random.standard_normal(count) * 4) / 4,
        "sparse": random.standard_normal(count) * (random.random(count) < 0.1),
        "constant": np.full(count, -0.25),
        "clustered": np.where(np.arange(count) % (count // 64) < 2100, 1e-3, 1.0) * random.standard_normal(count),
    }[kind].astype(np.float32)
    pair = operand(np.zeros(count, np.float32), "F32"), [operand(deltas, "F32")]
    keep = KeepLargest(density, skip)
    found = measure(*pair, Program((1.0,), sparsify=keep), (), device=device)
    falling = np.sort(np.abs(deltas))[::-1]
    skipped, kept = math.floor(skip * count), max(1, math.floor(density * count))
    assert found is not None and found.lowest is not None and found.highest is not None
    assert found.lowest[0] == falling[min(skipped + kept, count) - 1]
    assert found.highest[0] == (falling[skipped] if skipped else math.inf)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_one_threshold_over_a_whole_model(device: str) -> None:
    random = np.random.default_rng(2)
    arrays = [
        (random.standard_normal(n) * size).astype(np.float32)
        for n, size in ((70_000, 1), (0, 1), (9, 50), (200_000, 3))
    ]
    tensors = [(operand(np.zeros_like(array), "F32"), [operand(array, "F32")]) for array in arrays]
    way, other_way = KeepLargest(0.1, 0.01, across="model"), KeepLargest(0.5, across="model")
    program = Program((1.0,), sparsify=way, consensus=Elect())
    (found,) = measure_model(tensors, [[way, other_way]], device=device)
    falling = np.sort(np.abs(np.concatenate(arrays)))[::-1]
    assert found[way] == (falling[2700 + 27000 - 1], falling[2700])
    assert found[other_way] == (falling[270_009 // 2 - 1], math.inf)
    low, high = found[way]
    thresholds = Measurement(lowest=(low,), highest=(high,))
    assert measure(*tensors[0], program, (), device=device) is None
    with pytest.raises(MergeError, match=r"thresholds .* not measured .*measure_model"):
        combined(*tensors[0], program, None, (), "F32", device=device)
    for (base, others), array in zip(tensors, arrays, strict=True):
        measured = measure(base, others, program, (), device=device, thresholds=thresholds)
        assert measured == thresholds
        out, _ = combined(base, others, program, measured, (), "F32", device=device)
        np.testing.assert_array_equal(out, np.where((abs(array) >= low) & (abs(array) <= high), array, 0))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_model_whose_specialists_have_not_all_tensors(device: str) -> None:
    """Every specialist is ranked over what it has, task vectors beside models."""
    random = np.random.default_rng(3)
    shapes, present = [(300, 70), (5000,), (40,)], [(True, True), (True, False), (False, True)]
    ways = KeepLargest(0.2, across="model"), KeepLargest(0.4, 0.1, across="model")
    rows: list[tuple[Operand, list[Operand | None]]] = []
    magnitudes: list[list[np.ndarray]] = [[], []]
    for shape, there in zip(shapes, present, strict=True):
        base = stored(random.standard_normal(math.prod(shape)), "BF16")
        columns: list[Operand | None] = []
        for i in range(2):
            entries = stored(valued(base, "BF16") * (i == 0) + random.standard_normal(base.size) * 0.1, "BF16")
            columns.append(operand(entries, "BF16", shape, is_delta=i == 1) if there[i] else None)
            delta = valued(entries, "BF16") - valued(base, "BF16") * (i == 0)
            if there[i]:
                magnitudes[i].append(np.abs(delta).astype(np.float32))
        rows.append((operand(base, "BF16", shape), columns))
    found = measure_model(rows, [ways[:1], ways], device=device)
    for i, wanted in enumerate([ways[:1], ways]):
        falling = np.sort(np.concatenate(magnitudes[i]))[::-1]
        for way in wanted:
            first, last = way.ranks(falling.size)
            assert found[i][way] == (falling[last - 1], falling[first - 1] if first > 1 else math.inf)
    assert measure_model(rows, [[], []], device=device) == [{}, {}]
    with pytest.raises(MergeError, match="2 specialists in one row, but the model has 1"):
        measure_model(rows, [ways], device=device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_gram_is_exact_enough_and_the_same_for_any_threads(device: str) -> None:
    _, operands = inputs((700, 1000), ["BF16", "BF16", "F32", "F16"], 4)
    values = [valued(o.read(0, o.count), o.dtype) for o in operands]
    deltas = np.stack(values[1:]) - values[0]
    program = Program(W, from_gram=lambda gram: gram[0])
    grams = []
    for threads in (1, 2):
        set_threads(threads)
        found = measure(operands[0], operands[1:], program, (), device=device)
        assert found is not None and found.gram is not None and found.weights == tuple(found.gram[0])
        grams.append(found.gram)
    assert grams[0].tobytes() == grams[1].tobytes()
    np.testing.assert_allclose(grams[0], deltas @ deltas.T, rtol=1e-12)


def test_no_specialists_and_no_entries() -> None:
    base = operand(np.arange(5, dtype=np.float32), "F32")
    out, _ = run(base, [], Program((), consensus=Elect(), sparsify=KeepLargest(0.2)), (), "F32")
    np.testing.assert_array_equal(out, np.arange(5))
    empty = operand(np.empty(0, np.float32), "F32", (0, 7))
    for program in PROGRAMS.values():
        assert run(empty, [empty] * 3, program, KEYS, "BF16")[0].size == 0


def test_unaligned_and_strided_arrays_are_taken() -> None:
    raw = np.frombuffer(b"x" + np.linspace(0, 1, 3000, dtype=np.float32).tobytes(), np.uint8)
    unaligned = raw[1:].view(np.float32)
    strided = np.repeat(np.linspace(0, 2, 3000, dtype=np.float32), 2)[::2]
    out = np.zeros(6000, np.uint16)
    health = combine(
        operand(unaligned, "F32"), [operand(strided, "F32")], Program((0.5,)), None, (), 0, 3000, out[::2], "BF16"
    )
    exact = unaligned.astype(np.float64) + 0.5 * (strided.astype(np.float64) - unaligned)
    assert_nearest(out[::2], "BF16", exact)
    assert health == Health() and not out[1::2].any()


def test_mistakes_of_the_caller_are_said() -> None:
    base = operand(np.zeros(4, np.float32), "F32")
    with pytest.raises(MergeError, match="1 weights for 2 specialists"):
        run(base, [base, base], Program((1.0,)), (), "F32")
    with pytest.raises(MergeError, match="0 random keys for 1 specialists"):
        run(base, [base], Program((1.0,), sparsify=DropRandom(0.5)), (), "F32")
    neither: Any = (None, None)
    with pytest.raises(MergeError, match="2 ways to sparsify for 1 specialists"):
        run(base, [base], Program((1.0,), sparsify=neither), (), "F32")
    for program in (
        Program((1.0,), sparsify=KeepLargest(0.5)),
        Program((1.0,), sparsify=DropRandom(0.5, "l1")),
        Program((1.0,), from_gram=np.diag),
    ):
        with pytest.raises(MergeError, match=r"not measured \(kernels.measure\)"):
            combined(base, [base], program, None, (1,), "F32")
    with pytest.raises(MergeError, match="the base is given as a task vector"):
        run(operand(np.zeros(4, np.float32), "F32", is_delta=True), [base], Program((1.0,)), (), "F32")
    with pytest.raises(MergeError, match=r"shape \(4,\), the base's \(2, 2\)"):
        run(operand(np.zeros(4, np.float32), "F32", (2, 2)), [base], Program((1.0,)), (), "F32")


def test_bounds_are_widened_to_what_rounds_to_them() -> None:
    """Magnitudes compared as float64 with the widened bounds: as if rounded to float32 and compared with the bounds."""
    from taskmerge.kernels.compiled.backend import _least, _most

    random = np.random.default_rng(0)
    least_of_all, most_of_all = np.float32(1e-45), np.finfo(np.float32).max
    bounds = np.concatenate([[0, least_of_all, 1, 1.5, most_of_all], random.standard_normal(2000) ** 4]).astype(
        np.float32
    )
    bounds = np.abs(bounds)
    low, high = _least(bounds), _most(bounds)
    with np.errstate(over="ignore"):
        assert (low.astype(np.float32) >= bounds).all() and (high.astype(np.float32) <= bounds).all()
        assert (np.nextafter(low, -np.inf).astype(np.float32) < bounds)[1:].all() and low[0] <= 0
        assert (np.nextafter(high, np.inf).astype(np.float32) > bounds).all()
    assert _most(np.array([np.inf], np.float32))[0] == np.inf


@pytest.mark.parametrize(
    ("spread", "unclear"), [(0.5, False), (9.0, True)], ids=["one order of magnitude", "many: longer keys needed"]
)
def test_ranks_of_16_bit_rows(spread: float, unclear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Magnitudes in keys of 32 bits, and rows whose magnitudes these cannot tell apart."""
    random, shape = np.random.default_rng(5), (40, 4864)
    base = random.standard_normal(shape).ravel() * 10.0 ** -random.uniform(0, spread, 40 * 4864)
    other = base + random.standard_normal(base.size) * 10.0 ** -random.uniform(0, spread, base.size)
    entries = [stored(base, "BF16"), stored(other, "BF16")]
    longer: list[int] = []
    fill = CompiledBackend._fill

    def filling(*given: Any) -> None:
        longer.append(len(given[1]))
        fill(*given)

    monkeypatch.setattr(CompiledBackend, "_fill", filling)
    program = Program((1.0,), sparsify=DropByRank(0.5, 0.45))
    operands = [operand(array, "BF16", shape) for array in entries]
    out, _ = run(operands[0], operands[1:], program, KEYS[:1], "F32")
    values = [valued(array, "BF16") for array in entries]
    assert_nearest(out, "F32", oracle(values[0], values[1:], program, KEYS[:1], shape))
    assert bool(longer) == unclear
