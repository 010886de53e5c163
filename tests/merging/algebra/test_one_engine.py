"""Whatever is written in the algebra is the formula rounded once, and what a fuse of the same writes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import TORCH, read_model, same_bits, write_model
from kernel_oracles import fractions, rounded

from taskmerge import Checkpoint, TaskVector, fuse
from taskmerge.numbers.dtypes import DTYPES

COUNT = 1 << 16
NAME = "model.layers.0.mlp.up_proj.weight"
FORMATS = ("BF16", "F16", "F32", "F64")
SHARES = {"a": 0.3, "b": 0.5, "c": -0.2}


def model(seed: int, dtype: str, near: torch.Tensor | None = None, count: int = COUNT) -> dict[str, torch.Tensor]:
    values = np.random.default_rng(seed).standard_normal(count)
    if near is not None:
        values = near.double().numpy().ravel() + 0.1 * values
    return {NAME: torch.from_numpy(values.reshape(256, -1)).to(TORCH[dtype])}


def models(dtype: str, count: int = COUNT) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    base = model(0, dtype, count=count)
    tuned = {label: Checkpoint.open(model(seed, dtype, base[NAME], count)) for seed, label in enumerate(SHARES, 1)}
    return Checkpoint.open(base), tuned


def formula(base: Checkpoint, tuned: dict[str, Checkpoint], dtype: str) -> np.ndarray:
    """b + Σ w (x - b), rounded once: of float64 arithmetic; into float64 itself of fractions, which round nothing."""
    exact = fractions if dtype == "F64" else np.asarray
    start = exact(base[NAME].double().numpy().ravel())
    moves = [
        exact(np.array([share])) * (exact(tuned[label][NAME].double().numpy().ravel()) - start)
        for label, share in SHARES.items()
    ]
    return np.array([rounded(value, dtype) for value in start + ((moves[0] + moves[1]) + moves[2])])


Ways = dict[str, Callable[[Checkpoint, TaskVector, TaskVector, TaskVector], Checkpoint]]
WRITTEN: Ways = {
    "in one line": lambda base, a, b, c: base + 0.3 * a + 0.5 * b + -0.2 * c,
    "from the right": lambda base, a, b, c: base + (0.3 * a + (0.5 * b - 0.2 * c)),
    "another order": lambda base, a, b, c: base + -0.2 * c + 0.5 * b + 0.3 * a,
    "sum of a list": lambda base, a, b, c: base + sum([0.3 * a, 0.5 * b, -0.2 * c]),
    "step by step": lambda base, a, b, c: ((base + 0.3 * a) + 0.5 * b) + -0.2 * c,
    "there and back": lambda base, a, b, c: base + (((base + 0.3 * a) - base) + 0.5 * b - 0.2 * c),
    "more, then less": lambda base, a, b, c: base + (0.3 * a + a - a) + 0.5 * b + -0.2 * c,
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_every_way_to_write_it_is_rounded_once(way: str, dtype: str) -> None:
    count = COUNT if dtype == "BF16" else 4096
    base, tuned = models(dtype, count)
    vectors = [tuned[label] - base for label in SHARES]
    moved = WRITTEN[way](base, *vectors)
    found = moved[NAME].double().numpy().ravel()
    assert int((found != formula(base, tuned, dtype)).sum()) == 0


@pytest.mark.parametrize(("stored", "written"), [*product(FORMATS, FORMATS)], ids=lambda value: value)
def test_a_sum_saved_in_any_format_is_rounded_once(stored: str, written: str, tmp_path: Path) -> None:
    count = COUNT if written == stored == "BF16" else 4096
    base, tuned = models(stored, count)
    moved = base + sum(share * (tuned[label] - base) for label, share in SHARES.items())
    path = moved.save(tmp_path / "out", dtype=DTYPES[written].torch_name)
    found = read_model(path)[NAME].double().numpy().ravel()
    assert int((found != formula(base, tuned, written)).sum()) == 0


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("written", [None, "bfloat16", "float32", "float64"])
def test_algebra_fuse_apply_and_extract_agree(stored: str, written: str | None, tmp_path: Path) -> None:
    base, tuned = models(stored, 2048)
    for label, checkpoint in {"base": base, **tuned}.items():
        write_model(tmp_path / label, checkpoint.state_dict())
    start = Checkpoint.open(tmp_path / "base")
    vectors = {label: Checkpoint.open(tmp_path / label) - start for label in SHARES}
    algebra = start + sum(share * vectors[label] for label, share in SHARES.items())
    paths = {label: tmp_path / label for label in SHARES}
    fused = fuse(tmp_path / "base", paths, weights=SHARES, dtype=written)
    as_vectors = fuse(tmp_path / "base", vectors, weights=SHARES, dtype=written)
    saved = read_model(algebra.save(tmp_path / "algebra", dtype=written))[NAME]
    assert same_bits(saved, fused[NAME])
    wide = {label: vector.save(tmp_path / f"{label}-vector", dtype="float64") for label, vector in vectors.items()}
    loaded = start + sum(share * TaskVector.load(wide[label], start) for label, share in SHARES.items())
    folders = fuse(tmp_path / "base", wide, weights=SHARES, dtype=written)
    again = read_model(loaded.save(tmp_path / "loaded", dtype=written))[NAME]
    assert same_bits(again, folders[NAME]) and same_bits(again, as_vectors[NAME])
    if stored != "F64":  # a difference of wider entries does not fit float64
        assert same_bits(again, saved)


def test_a_specialist_with_a_base_of_its_own_is_moved_by_that(tmp_path: Path) -> None:
    """A chat vector: what instruction tuning changed, added to a model that was trained on."""
    plain, trained = model(0, "BF16", count=2048), model(1, "BF16", count=2048)
    chat = model(2, "BF16", plain[NAME], 2048)
    for label, tensors in {"plain": plain, "trained": trained, "chat": chat}.items():
        write_model(tmp_path / label, tensors)
    opened = {label: Checkpoint.open(tmp_path / label) for label in ("plain", "trained", "chat")}
    moved = opened["trained"] + 0.5 * (opened["chat"] - opened["plain"])
    wanted = trained[NAME].double() + 0.5 * (chat[NAME].double() - plain[NAME].double())
    assert same_bits(moved[NAME], wanted.to(torch.bfloat16))
