"""Loss and sampling against NumPy; which checkpoint training goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, ConcatDataset, SequentialSampler, TensorDataset

from taskmerge.errors import UsageError
from taskmerge.training.losses import Texts, banked_info_nce
from taskmerge.training.sampling import balanced_sampler, draw_probabilities, passes
from taskmerge.training.usable import last_checkpoint


def oracle(items: np.ndarray, bank: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Both directions, written out in float64."""
    total = 0.0
    for row, label in enumerate(labels):
        scores = bank @ items[row] / temperature
        total += np.log(np.exp(scores - scores[label]).sum())
        others = [other for other in range(len(items)) if other == row or labels[other] != label]
        back = np.array([bank[label] @ items[other] for other in others]) / temperature
        total += np.log(np.exp(back - bank[label] @ items[row] / temperature).sum())
    return total / (2 * len(items))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.02, 1.0), st.integers(0, 10**6))
def test_banked_info_nce(batch: int, texts: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, bank = rng.normal(size=(batch, 5)), rng.normal(size=(texts, 5))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    labels = rng.integers(0, texts, batch)
    rows = torch.arange(batch)
    told = Texts(torch.tensor(bank), torch.tensor(labels))
    got = banked_info_nce(torch.tensor(items), torch.tensor(items), rows, told, torch.tensor(labels), temperature)
    assert float(got) == pytest.approx(oracle(items, bank, labels, temperature), rel=1e-9, abs=1e-9)


def test_draw_probabilities() -> None:
    np.testing.assert_allclose(draw_probabilities([100, 300], 1.0, [1, 1]), [0.25, 0.75])
    np.testing.assert_allclose(draw_probabilities([100, 900], 2.0, [1, 1]), [0.25, 0.75])
    np.testing.assert_allclose(draw_probabilities([1, 10**6], 1e9, [1, 1]), [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(draw_probabilities([100, 900], 2.0, [6, 1]), [2 / 3, 1 / 3])


def sampler(sizes: list[int], batch: int, draws: int, balance: float, processes: int = 1, texts: Any = None) -> Any:
    parts = [TensorDataset(torch.zeros(size)) for size in sizes]
    inner = [BatchSampler(SequentialSampler(part), batch, drop_last=True) for part in parts]
    chances = draw_probabilities(sizes, balance, [1.0] * len(sizes))
    kind = balanced_sampler(chances, texts or [None] * len(sizes), draws, batch, processes)
    return kind(dataset=ConcatDataset(parts), batch_samplers=inner, seed=3)


def owner(batch: list[int], sizes: list[int]) -> int:
    """The one data set all of a batch comes from."""
    owners = set(np.searchsorted(np.cumsum(sizes), batch, side="right").tolist())
    assert len(owners) == 1
    return owners.pop()


def test_small_sets_are_drawn_as_often_and_start_again() -> None:
    sizes = [8, 400]
    batches = list(sampler(sizes, 4, 400, 1e9))
    assert len(batches) == 400
    share = np.mean([owner(batch, sizes) for batch in batches])
    assert 0.42 < share < 0.58
    by_size = list(sampler(sizes, 4, 400, 1.0))
    assert np.mean([owner(batch, sizes) for batch in by_size]) > 0.95


def test_processes_share_the_batch_of_one(rows: int = 40) -> None:
    sizes = [rows, rows, rows]
    whole = list(sampler(sizes, 8, 50, 1.0))
    dealt = list(sampler(sizes, 4, 50, 1.0, processes=2))
    assert [first + second for first, second in zip(dealt[0::2], dealt[1::2], strict=True)] == whole
    assert len({owner(batch, sizes) for batch in whole}) == 3


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(0, 2))
def test_no_text_is_twice_in_a_batch_and_none_is_lost(seed: int, count: int, negatives: int) -> None:
    rng = np.random.default_rng(seed)
    texts = np.concatenate([np.arange(60)[:, None] % 20, 100 + rng.integers(0, 30, (60, negatives))], axis=1)
    batches = passes(60, count, (seed, 0), texts)
    drawn: list[int] = []
    for _ in range(400 // count):
        batch = next(batches)
        own = [set(texts[row].tolist()) for row in batch]
        assert len(batch) == count and sum(map(len, own)) == len(set().union(*own))
        drawn += batch
    assert len(set(drawn)) > 50


def test_what_fills_no_batch_is_refused_not_waited_for() -> None:
    with pytest.raises(UsageError, match="a batch of 3 different texts cannot be formed"):
        next(passes(9, 3, (0, 0), np.array([[0], [1]] * 4 + [[0]])))


FILES = ("trained.safetensors", "optimizer.pt", "scheduler.pt")


def checkpoint(folder: Path, step: int, state: str | None, without: str = "") -> None:
    (folder / f"checkpoint-{step}").mkdir()
    for name in FILES:
        if name != without:
            (folder / f"checkpoint-{step}" / name).touch()
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)


def test_training_goes_on_from_the_last_checkpoint_written_to_its_end(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (15, '{"glob'), (20, None)):
        checkpoint(tmp_path, step, state)
    assert last_checkpoint(tmp_path) == (10, str(tmp_path / "checkpoint-10"), [])


@pytest.mark.parametrize("without", FILES)
def test_a_checkpoint_that_was_being_removed_is_not_gone_on_from(tmp_path: Path, without: str) -> None:
    """A disk that failed while checkpoints were cleared left some whose files were gone: every later run failed."""
    checkpoint(tmp_path, 1, '{"global_step": 1}')
    checkpoint(tmp_path, 2, '{"global_step": 2}', without)
    assert last_checkpoint(tmp_path) == (1, str(tmp_path / "checkpoint-1"), [])


def test_a_checkpoint_whose_best_one_is_gone_is_not_gone_on_from(tmp_path: Path) -> None:
    state = '{"global_step": 2, "best_model_checkpoint": "somewhere/else/checkpoint-1"}'
    checkpoint(tmp_path, 2, state)
    assert last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 1, None)
    assert last_checkpoint(tmp_path) == (2, str(tmp_path / "checkpoint-2"), []), "wherever the folder lay then"
