"""InfoNCE in both directions: within a batch, or against a frozen bank of texts. Of one process or of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.util.distributed import all_gather_with_grad
from torch import Tensor, nn

from taskmerge.training.columns import COLUMNS

if TYPE_CHECKING:
    from taskmerge.training.items import Bank

MOST_TEXTS = 1 << 16
"""Texts of a bank that every item is compared with; of a larger bank so many at random, and the batch's own."""


@dataclass(frozen=True)
class LossSettings:
    """temperature: of the softmax.  dimensions: lengths that embeddings are truncated to, each with a loss of its own
    next to the whole ones' (Kusupati et al., arXiv 2205.13147).  gradient_cache: items embedded at once (Gao et al.,
    arXiv 2101.06983); None: the whole batch."""

    temperature: float = 0.02
    dimensions: tuple[int, ...] = ()
    gradient_cache: int | None = None


class _Contrast(nn.Module):
    """The model, run on all columns of a batch in one call: data parallel training allows no second one."""

    def __init__(self, model: Any, settings: LossSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """sentence_features: of the items, then of each column of texts. labels: of a bank, (batch, columns)."""
        return self.compare(self.model({COLUMNS: list(sentence_features)})[COLUMNS], labels)

    def compare(self, embeddings: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The loss from the embeddings of each column, (batch, width) each."""
        columns = [column.float() if column.element_size() < 4 else column for column in embeddings]
        width = columns[0].shape[1]
        lengths = [width, *(length for length in self.settings.dimensions if length < width)]
        return torch.stack([self.at(length, columns, labels) for length in lengths]).mean()

    def at(self, length: int, columns: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of embeddings cut to a length."""
        raise NotImplementedError

    def get_config_dict(self) -> dict[str, Any]:
        """For sentence-transformers' logs."""
        return {"temperature": self.settings.temperature, "dimensions": list(self.settings.dimensions)}


class InBatch(_Contrast):
    """Symmetric InfoNCE with in-batch negatives, of all processes (van den Oord et al., arXiv 1807.03748).

    An item is compared with all texts of the batch and with all their hard negatives, a text with all items.
    """

    def at(self, length: int, columns: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss of embeddings truncated to a length."""
        items, *texts = (F.normalize(column[:, :length], dim=-1) for column in columns)
        everybody, *candidates = (_gathered(column) for column in (items, *texts))
        own = _own_rows(len(items), items.device)
        temperature = self.settings.temperature
        to_text = F.cross_entropy(items @ torch.cat(candidates).T / temperature, own)
        to_item = F.cross_entropy(texts[0] @ everybody.T / temperature, own)
        return (to_text + to_item) / 2


class AgainstBank(_Contrast):
    """Symmetric InfoNCE where the texts do not learn: every distinct text of the data is a negative, embedded once.

    Item to text runs over the bank; over `MOST_TEXTS` of it and the batch's own texts where it is larger. Text to item
    runs within the batch of all processes; items of the same text are not negatives of each other. Labels of a batch
    are rows of the bank: of each item's text, and of its hard negatives.
    """

    bank: Tensor
    chosen: Tensor

    def __init__(self, model: Any, bank: Bank, settings: LossSettings, seed: int = 0) -> None:
        super().__init__(model, settings)
        self.rows = bank.rows
        size = len(bank.rows)
        self.whole = size <= MOST_TEXTS
        chosen = np.arange(size)
        if not self.whole:
            chosen = np.sort(np.random.default_rng(seed).choice(size, MOST_TEXTS, replace=False))
        self.register_buffer("bank", torch.from_numpy(np.array(bank.rows[chosen])), persistent=False)
        self.register_buffer("chosen", torch.from_numpy(chosen), persistent=False)

    def at(self, length: int, columns: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss of embeddings truncated to a length."""
        assert labels is not None
        items = F.normalize(columns[0][:, :length], dim=-1)
        labels = labels if labels.ndim > 1 else labels[:, None]
        everybody, theirs, own = _gathered(items), _gathered(labels), _own_rows(len(items), items.device)
        candidates, targets = (self.bank, labels[:, 0]) if self.whole else self._drawn(theirs, labels[:, 0])
        texts = Texts(_cut(candidates.to(items.dtype), length), targets)
        return banked_info_nce(items, everybody, own, texts, theirs[:, 0], self.settings.temperature)

    def _drawn(self, theirs: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's own texts and those that represent a large bank, each once; the places of the right ones."""
        own = theirs.unique()  # sorted
        rows = torch.from_numpy(np.ascontiguousarray(self.rows[own.cpu().numpy()])).to(self.bank)
        others = self.bank[~torch.isin(self.chosen, own)]
        return torch.cat([rows, others]), torch.searchsorted(own, right.contiguous())


class Texts(NamedTuple):
    """rows: (texts, width) of length 1, different texts.  targets: (batch,) the row that is right for each item."""

    rows: Tensor
    targets: Tensor


def banked_info_nce(
    items: Tensor, everybody: Tensor, own: Tensor, texts: Texts, labels: Tensor, temperature: float
) -> Tensor:
    """Symmetric InfoNCE of one process's items against texts that do not learn.

    Args:
        items: (batch, width) of this process, of length 1.
        everybody: (all, width) of all processes; own: (batch,) the places of these items in it.
        texts: what items are compared with.
        labels: (all,) the text of each item of all processes.

    Returns:
        A scalar: the mean of both directions.
    """
    mine = torch.arange(len(items), device=items.device)
    scores = items @ texts.rows.T / temperature
    same = labels[own][:, None] == labels[None, :]
    same[mine, own] = False
    back = (texts.rows[texts.targets] @ everybody.T / temperature).masked_fill(same, float("-inf"))
    return (F.cross_entropy(scores, texts.targets) + F.cross_entropy(back, own)) / 2


class _Cached(CachedLossMixin, _Contrast):
    """The same gradients with a few items embedded at once; of several processes too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mini_batch_size = int(self.settings.gradient_cache or 1)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        return self.forward_cached(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        loss = self.compare([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


class CachedInBatch(_Cached, InBatch):
    """`InBatch` with a gradient cache."""


class CachedAgainstBank(_Cached, AgainstBank):
    """`AgainstBank` with a gradient cache."""


def in_batch(model: Any, settings: LossSettings) -> nn.Module:
    """Return the loss for trained texts. model: from `columns.trainable`."""
    return InBatch(model, settings) if settings.gradient_cache is None else CachedInBatch(model, settings)


def against_bank(model: Any, bank: Bank, settings: LossSettings, seed: int = 0) -> nn.Module:
    """Return the loss for frozen texts. seed: of the texts that represent a large bank."""
    kind = AgainstBank if settings.gradient_cache is None else CachedAgainstBank
    return kind(model, bank, settings, seed)


def _gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, in their order; gradients flow back to each."""
    found: Tensor = all_gather_with_grad(rows) if _several() else rows
    return found


def _own_rows(count: int, device: Any) -> Tensor:
    """The places of this process's rows among those of all."""
    first = torch.distributed.get_rank() * count if _several() else 0
    return torch.arange(first, first + count, device=device)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _cut(texts: Tensor, length: int) -> Tensor:
    return texts if length >= texts.shape[1] else F.normalize(texts[:, :length], dim=-1)
