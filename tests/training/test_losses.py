"""Hard negatives, cut lengths, gradient caches, drawn banks: the losses of sentence-transformers, or of a formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

import taskmerge.training.losses as home
from taskmerge.training.columns import COLUMNS
from taskmerge.training.items import Bank
from taskmerge.training.losses import LossSettings, against_bank, in_batch

BATCH, INPUT, WIDTH = 6, 5, 12
FORMATS = pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
TEMPERATURE = 0.07


class Toy(nn.Module):
    """Features to embeddings, as the trainer's model does it and as sentence-transformers' losses ask for it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layer = nn.Linear(INPUT, WIDTH, dtype=dtype)
        self.sizes: list[int] = []

    def get_embedding_dimension(self) -> int:
        return WIDTH

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        if COLUMNS in features:
            return {COLUMNS: [self.layer(column["input_ids"]).tanh() for column in features[COLUMNS]]}
        self.sizes.append(len(features["input_ids"]))
        return {"sentence_embedding": self.layer(features["input_ids"]).tanh()}


def columns(negatives: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Features of items, of their texts, and of so many columns of hard negatives."""
    generator = torch.Generator().manual_seed(negatives)
    found = [torch.randn(BATCH, INPUT, generator=generator, dtype=torch.float64) for _ in range(2 + negatives)]
    return [{"input_ids": column.to(dtype)} for column in found]


def outcome(loss: nn.Module, model: Toy, given: list[dict[str, Tensor]], labels: Any = None) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    model.zero_grad()
    value = loss([dict(column) for column in given], labels)
    value.backward()
    gradients = [parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return value.detach(), torch.cat(gradients)


def theirs(model: Toy, dimensions: tuple[int, ...]) -> nn.Module:
    """Both directions of sentence-transformers' ranking loss, at every length."""
    network: Any = model  # it has what the losses call
    both: Any = ("query_to_doc", "doc_to_query")
    plain = MultipleNegativesRankingLoss(
        network, scale=1 / TEMPERATURE, directions=both, partition_mode="per_direction"
    )
    if not dimensions:
        return plain
    lengths = [WIDTH, *dimensions]
    return MatryoshkaLoss(network, plain, lengths, [1 / len(lengths)] * len(lengths))


@FORMATS
@pytest.mark.parametrize("dimensions", [(), (4,), (8, 3)], ids=str)
@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_loss_is_sentence_transformers(
    dtype: torch.dtype, within: float, dimensions: tuple[int, ...], negatives: int
) -> None:
    given = columns(negatives, dtype)
    model = Toy(dtype)
    found, gradient = outcome(in_batch(model, LossSettings(TEMPERATURE, dimensions)), model, given)
    wanted, their_gradient = outcome(theirs(model, dimensions), model, given)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)
    torch.testing.assert_close(gradient, their_gradient, rtol=100 * within, atol=10 * within)


def test_a_hard_negative_counts_for_every_item_and_a_length_beyond_the_width_for_none() -> None:
    model, given = Toy(torch.float64), columns(2, torch.float64)
    one, without = (
        outcome(in_batch(model, LossSettings(TEMPERATURE)), model, own)[0] for own in (given, given[:2])
    )  # fmt: skip
    assert one > without + 0.1
    long, _ = outcome(in_batch(model, LossSettings(TEMPERATURE, (WIDTH, 500))), model, given)
    assert long == one


def bank_of(size: int) -> Bank:
    rows = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(9))
    return Bank(torch.nn.functional.normalize(rows, dim=-1).numpy(), {})


def banked(items: np.ndarray, texts: np.ndarray, known: list[int], labels: np.ndarray, length: int) -> float:
    """The formula in float64. known: rows of the bank that items are compared with."""

    def cut(rows: np.ndarray) -> np.ndarray:
        rows = rows[:, :length].astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    items, rows = cut(items), cut(texts) if length < WIDTH else texts.astype(np.float64)  # whole ones are as they are
    total = 0.0
    for place, (item, label) in enumerate(zip(items, labels, strict=True)):
        scores = rows[sorted({*known, label})] @ item / TEMPERATURE
        total += np.log(np.exp(scores).sum()) - rows[label] @ item / TEMPERATURE
        back = [own for own, other in enumerate(labels) if own == place or other != label]
        scores = items[back] @ rows[label] / TEMPERATURE
        total += np.log(np.exp(scores).sum()) - rows[label] @ item / TEMPERATURE
    return float(total / (2 * len(items)))


@pytest.mark.parametrize("most", [100, 7], ids=["whole", "drawn"])
@pytest.mark.parametrize("dimensions", [(), (5,)], ids=str)
@pytest.mark.parametrize("cache", [None, 2])
def test_a_bank_is_compared_with_text_by_text(
    most: int, dimensions: tuple[int, ...], cache: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bank that is too large: those that stand for it, and all of the batch, hard negatives too, each once."""
    monkeypatch.setattr(home, "MOST_TEXTS", most)
    bank = bank_of(30)
    labels = np.array([[1, 20], [4, 21], [1, 20], [9, 5], [28, 4], [11, 12]])
    model = Toy(torch.float64)
    loss: Any = against_bank(model, bank, LossSettings(TEMPERATURE, dimensions, cache), seed=1)
    known = {*loss.chosen.tolist(), *labels.reshape(-1).tolist()}
    assert len(loss.chosen) == min(most, 30)
    given = columns(0, torch.float64)[:1]
    found, _ = outcome(loss, model, given, torch.from_numpy(labels))
    items = model({COLUMNS: given})[COLUMNS][0].detach().numpy()
    wanted = [banked(items, bank.rows, sorted(known), labels[:, 0], length) for length in (WIDTH, *dimensions)]
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-9)


@FORMATS
@pytest.mark.parametrize("cache", [1, 2, 4, BATCH])
@pytest.mark.parametrize("against", ["batch", "bank"])
def test_a_gradient_cache_changes_nothing(dtype: torch.dtype, within: float, cache: int, against: str) -> None:
    given, labels = columns(2, dtype), None
    if against == "bank":
        given, labels = given[:1], torch.tensor([[0, 3], [1, 3], [2, 4], [0, 4], [5, 6], [1, 7]])

    def loss(size: int | None) -> nn.Module:
        how = LossSettings(TEMPERATURE, (4,), size)
        return in_batch(model, how) if against == "batch" else against_bank(model, bank_of(9), how)

    model = Toy(dtype)
    wanted = outcome(loss(None), model, given, labels)
    model.sizes.clear()
    found = outcome(loss(cache), model, given, labels)
    assert max(model.sizes) == cache and float(wanted[1].abs().max()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=100 * within, atol=10 * within)
