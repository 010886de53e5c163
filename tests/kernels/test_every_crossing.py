"""Every piece of a Program with every other, on every backend: compiled = reference, both the rounded formula; float64
outputs the formula in fractions; the interpreter of whole tensors the same formula; and 16-bit outputs those of any
other way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import TORCH, assert_nearest, fractions, operand, oracle, run, stored, taken_apart, valued

from taskmerge.errors import MergeError
from taskmerge.kernels import (
    Active,
    DropByRank,
    DropRandom,
    Elect,
    KeepLargest,
    Largest,
    Measurement,
    Program,
    Sum,
    interpret,
    measure,
)
from taskmerge.numbers.randomness import stream_key, uniform_bits

SHAPE = (23, 31)
COUNT = 23 * 31
KEYS = [stream_key(3, name, "layer") for name in ("audio", "image", "video")]
WAYS: dict[str, Any] = {
    "whole": None,
    "trimmed": KeepLargest(0.3),
    "crumbs": KeepLargest(0.4, 0.1),
    "random": DropRandom(0.4),
    "random_l1": DropRandom(0.4, "l1"),
    "ranked": DropByRank(0.5, 0.3),
    "ranked_l1": DropByRank(0.5, 0.3, "l1"),
    "trimmed_each": (KeepLargest(0.2), KeepLargest(0.7), KeepLargest(0.5, 0.2)),
    "random_each": (DropRandom(0.3), DropRandom(0.6), DropRandom(0.9)),
    "random_l1_each": (DropRandom(0.3, "l1"), DropRandom(0.6, "l1"), DropRandom(0.9, "none")),
    "ranked_each": (DropByRank(0.3, 0.1), DropByRank(0.6, 0.4), DropByRank(0.5, 0.0)),
    "ranked_l1_each": (DropByRank(0.3, 0.1, "l1"), DropByRank(0.6, 0.4), DropByRank(0.5, 0.0, "none")),
    "mixed": (KeepLargest(0.3), DropRandom(0.5, "l1"), DropByRank(0.5, 0.2)),
    "mixed_with_none": (None, DropByRank(0.4, 0.2, "l1"), KeepLargest(0.6, 0.1)),
}
CONSENSUSES: dict[str, Any] = {
    "sum": Sum(),
    "elect": Elect(),
    "mass_count": Elect("mass", "count"),
    "count_none": Elect("count", "none"),
    "largest": Largest(),
    "active": Active(0.4, 2),
}


def metagpt(gram: np.ndarray) -> np.ndarray:
    return np.diag(gram) / np.trace(gram)


MEASURED: dict[str, dict[str, Any]] = {
    "given": {},
    "of_deltas": {"from_gram": metagpt},
    "of_models": {"from_gram": metagpt, "gram_of": "models"},
}
DELTAS = {"models": (False,) * 3, "deltas": (True,) * 3, "both": (False, True, False)}
FORMATS = list(product(sorted(TORCH), repeat=2))


def tensors(dtypes: list[str], are_deltas: tuple[bool, ...], seed: int) -> list[np.ndarray]:
    """Stored entries of the base, then of three specialists; magnitudes differ, but for zeros."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(COUNT) * 0.02
    rows = [stored(base, dtypes[0])]
    for size, dtype, is_delta in zip((1e-3, 2e-3, 4e-3), dtypes[1:], are_deltas, strict=True):
        delta = random.standard_normal(COUNT) * size * (random.random(COUNT) < 0.8)
        rows.append(stored(delta if is_delta else base + delta, dtype))
    return rows


def programs() -> list[tuple[str, Program, tuple[bool, ...]]]:
    """Every way x consensus x measured x kind of input; what becomes of the base takes turns."""
    bases: Iterator[Any] = cycle(("added", "weighted", "left_out"))
    return [
        (
            "-".join((way, consensus, measured, kind)),
            Program((0.3, 0.5, -0.7), WAYS[way], CONSENSUSES[consensus], 0.9, base=next(bases), **MEASURED[measured]),
            DELTAS[kind],
        )
        for way, consensus, measured, kind in product(WAYS, CONSENSUSES, MEASURED, DELTAS)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("consensus", CONSENSUSES)
def test_compiled_and_reference_are_the_rounded_formula(way: str, consensus: str) -> None:
    for seed, (name, program, are_deltas) in enumerate(programs()):
        if not name.startswith(f"{way}-{consensus}-"):
            continue
        first, second = FORMATS[seed * 5 % 16]  # nine programs a way and consensus: other formats for each
        dtypes = [first, second, "BF16", "F32"]
        rows = tensors(dtypes, are_deltas, seed)
        operands = [
            operand(row, dtype, SHAPE, is_delta)
            for row, dtype, is_delta in zip(rows, dtypes, (False, *are_deltas), strict=True)
        ]
        values = [valued(row, dtype) for row, dtype in zip(rows, dtypes, strict=True)]
        exact = oracle(values[0], values[1:], program, KEYS, SHAPE, are_deltas)
        for out_dtype in ("BF16", "F16", "F32"):
            out, _ = run(operands[0], operands[1:], program, KEYS, out_dtype, [300])
            assert_nearest(out, out_dtype, exact)
            other, _ = run(operands[0], operands[1:], program, KEYS, out_dtype, device="cpu:0")
            assert out.tobytes() == other.tobytes(), (name, out_dtype, dtypes)


@pytest.mark.parametrize("way", WAYS)
def test_float64_outputs_are_the_formula_in_fractions(way: str) -> None:
    for seed, (name, program, are_deltas) in enumerate(row for row in programs() if row[0].startswith(f"{way}-")):
        rows = tensors(["F64"] * 4, are_deltas, seed)
        operands = [
            operand(row[:62], "F64", (2, 31), flag) for row, flag in zip(rows, (False, *are_deltas), strict=True)
        ]
        if program.from_gram is not None:  # exact up to the float64 weights that it finds
            found = measure(operands[0], operands[1:], program, KEYS, out_dtype="F64")
            assert found is not None and found.weights is not None, name
            wanted = replace(program, weights=found.weights, from_gram=None)
        else:
            wanted = program
        out, _ = run(operands[0], operands[1:], program, KEYS, "F64", [20])
        exact = [fractions(row[:62]) for row in rows]
        assert_nearest(out, "F64", oracle(exact[0], exact[1:], wanted, KEYS, (2, 31), are_deltas))


@pytest.mark.parametrize("way", WAYS)
def test_whole_tensors_are_interpreted_alike(way: str) -> None:
    """In memory: the formula; and with what is done to the base added, the bits of the streamed F32 output."""
    bits = torch.stack([torch.from_numpy(uniform_bits(key, 0, COUNT).astype(np.int64)) for key in KEYS])
    for seed, (name, program, are_deltas) in enumerate(row for row in programs() if row[0].startswith(f"{way}-")):
        rows = tensors(["F32"] * 4, are_deltas, seed)
        values = [valued(row, "F32") for row in rows]
        deltas = taken_apart(values[0], values[1:], are_deltas)
        base = torch.from_numpy(values[0]).reshape(SHAPE)
        merged = interpret(
            program,
            torch.from_numpy(deltas).reshape(3, *SHAPE),
            random_bits=bits.reshape(3, *SHAPE),
            base=base,
        )
        assert merged.dtype == torch.float64 and merged.shape == SHAPE
        alone = program.base != "weighted"  # of a sum of models what it adds to the base; else the task vector alone
        said = replace(program, base="left_out") if alone else program
        wanted = oracle(values[0], values[1:], said, KEYS, SHAPE, are_deltas) - (0.0 if alone else values[0])
        near = 1e-17 if alone else 1e-16  # the base is taken off again
        np.testing.assert_allclose(merged.numpy().ravel(), wanted, rtol=1e-12, atol=near, err_msg=name)
        if program.base == "added":
            operands = [operand(row, "F32", SHAPE, flag) for row, flag in zip(rows, (False, *are_deltas), strict=True)]
            out, _ = run(operands[0], operands[1:], program, KEYS, "F32")
            np.testing.assert_array_equal((base + merged).float().numpy().ravel(), out, err_msg=name)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_everything_is_measured_at_once(device: str) -> None:
    """Weights from the Gram matrix beside thresholds and sums of magnitudes; the model's thresholds are passed on."""
    rows = tensors(["BF16"] * 4, DELTAS["both"], 0)
    operands = [operand(row, "BF16", SHAPE, flag) for row, flag in zip(rows, (False, *DELTAS["both"]), strict=True)]
    ways = KeepLargest(0.3), DropRandom(0.5, "l1"), KeepLargest(0.3, across="model")
    program = Program((1.0, 1.0, 1.0), ways, from_gram=metagpt)
    thresholds = Measurement(lowest=(9.0, 9.0, 0.001), highest=(9.0, 9.0, 0.004))
    found = measure(operands[0], operands[1:], program, KEYS, device=device, thresholds=thresholds)
    assert found is not None and found.lowest is not None and found.highest is not None and found.factors is not None
    alone = measure(operands[0], operands[1:], replace(program, sparsify=KeepLargest(0.3), from_gram=None), KEYS)
    assert alone is not None and alone.lowest is not None
    assert found.lowest == (alone.lowest[0], 0.0, 0.001) and found.highest == (np.inf, np.inf, 0.004)
    assert found.factors[0] == found.factors[2] == 1.0 < found.factors[1]
    assert found.gram is not None and found.weights == tuple(metagpt(found.gram))
    without = measure(operands[0], operands[1:], program, KEYS, device=device)
    assert without is not None and without.lowest is None and without.weights == found.weights


def test_interpret_takes_measured_numbers_and_refuses_what_it_cannot_use() -> None:
    deltas = torch.tensor([[3.0, -2.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    way = KeepLargest(0.4, across="model")
    thresholds = Measurement(lowest=(2.0, 5.0), highest=(2.5, 6.0))
    program = Program((1.0, 1.0), way)
    assert interpret(program, deltas, thresholds=thresholds).tolist() == [0.0, -2.0, 0.0]
    assert interpret(program, deltas).tolist() == [4.0, 1.0, 1.0]
    assert interpret(program, deltas, weights=(0.0, 2.0)).tolist() == [2.0, 2.0, 2.0]
    assert interpret(program, deltas[:, :0]).shape == (0,)
    scalar = interpret(
        Program((1.0,), DropByRank(1.0, 0.1)), deltas[:1, 0], random_bits=torch.zeros(1, dtype=torch.int64)
    )
    assert scalar.tolist() == 3.0
    for bad, match in (
        (lambda: interpret(program, deltas.float()), "torch.float32, not torch.float64"),
        (lambda: interpret(program, deltas[:1]), r"shape \(1, 3\) for a program of 2"),
        (lambda: interpret(program, deltas, weights=(1.0,)), "1 weights for 2"),
        (lambda: interpret(Program((1.0, 1.0), DropRandom(0.5)), deltas), "random bits .* not none"),
        (lambda: interpret(Program((1.0, 1.0), from_gram=np.diag, gram_of="models"), deltas), "need the base"),
        (lambda: interpret(program, deltas, thresholds=Measurement()), "without lowest and highest"),
    ):
        with pytest.raises(MergeError, match=match):
            bad()


@pytest.mark.parametrize("consensus", [Sum(), Elect(), Elect(average="none"), Largest()], ids=str)
def test_idle_specialists_change_no_bit(consensus: Sum | Elect | Largest) -> None:
    rows = tensors(["BF16"] * 4, DELTAS["models"], 5)
    operands = [operand(row, "BF16", SHAPE) for row in rows]
    bases: tuple[Any, ...] = ("added", "weighted", "left_out")
    for base in bases:
        program = Program((0.0, 0.5, 0.0), WAYS["mixed"], consensus, base=base)
        assert program.idle == {0, 2}
        less = program.without(program.idle)
        assert (
            less.weights == (0.5,)
            and less.sparsify == (WAYS["mixed"][1],)
            and less.base_factor() == program.base_factor()
        )
        for out_dtype in ("BF16", "F64"):
            whole, _ = run(operands[0], operands[1:], program, KEYS, out_dtype)
            part, _ = run(operands[0], operands[2:3], less, KEYS[1:2], out_dtype)
            assert whole.tobytes() == part.tobytes()


def test_where_a_weight_of_zero_counts() -> None:
    for consensus in (Elect("mass"), Elect("count"), Elect(average="count"), Active(0.5, 1)):
        assert Program((0.0, 1.0), consensus=consensus).idle == frozenset()
    assert Program((0.0, 1.0), from_gram=metagpt).idle == frozenset()


def test_what_becomes_of_the_base() -> None:
    assert Program((0.25, 0.5), base="weighted").base_factor() == 0.75
    assert Program((0.25, 0.5), scale=2.0, base="weighted").base_factor() == 0.5
    assert Program((0.0, 0.0), base="weighted").base_factor() == 1
    assert Program((0.0, 0.0), base="weighted", from_gram=metagpt).base_factor((0.0, 0.0)) == 0
    assert Program((0.25,), base="left_out").base_factor() == 0 and Program((0.25,)).base_factor() == 1


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("out_dtype", ["BF16", "F64"])
def test_a_base_left_out_gives_no_negative_zeros_and_no_nan(device: str, out_dtype: str) -> None:
    base = np.array([-1.0, np.inf, -0.0, 3.0], np.float32)
    delta = np.array([0.0, 2.0, -0.0, 1.0], np.float32)
    program = Program((1.0,), base="left_out")
    out, health = run(operand(base, "F32"), [operand(delta, "F32", None, True)], program, (), out_dtype, device=device)
    got = valued(out, out_dtype)
    assert got.tolist() == [0.0, 2.0, 0.0, 1.0] and not np.signbit(got).any()
    assert health.nonfinite_inputs == 1 and health.nonfinite_outputs == 0
