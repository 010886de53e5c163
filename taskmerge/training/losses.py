"""InfoNCE in both directions: within a batch, or against a frozen bank of texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from taskmerge.embedders.interface import EMBEDDING
from taskmerge.errors import UsageError


class OneForwardInfoNCE(MultipleNegativesRankingLoss):
    """Items and texts come as one batch, items first, so that the model runs once a step.

    DistributedDataParallel allows no second forward when some parameters get no gradient, which is what happens in
    rehearsal: a batch of sounds leaves the eyes idle.
    """

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        embeddings = self.model(features)[EMBEDDING]
        pairs = len(embeddings) // 2
        return self.compute_loss_from_embeddings([embeddings[:pairs], embeddings[pairs:]], labels)


def in_batch(model: Any, temperature: float, gradient_cache: int | None, processes: int = 1) -> nn.Module:
    """Symmetric InfoNCE with in-batch negatives, gathered across processes (van den Oord et al., arXiv 1807.03748).

    gradient_cache: pairs embedded at once; None embeds the whole batch at once. Raises UsageError for a gradient cache
    with several processes: the towers' gradients would not be summed across them.
    """
    options: dict[str, Any] = {
        "scale": 1.0 / temperature,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
        "gather_across_devices": processes > 1,
    }
    _check_processes(gradient_cache, processes)
    if processes > 1:
        return OneForwardInfoNCE(model, **options)
    if gradient_cache is None:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=gradient_cache, **options)


def _check_processes(gradient_cache: int | None, processes: int) -> None:
    if processes > 1 and gradient_cache is not None:
        raise UsageError(
            f"gradient_cache {gradient_cache} with {processes} processes",
            next_move="train with one process, or without gradient_cache and a smaller batch_size",
        )


class BankedInfoNCE(nn.Module):
    """Symmetric InfoNCE where the texts do not learn: every distinct text of the data is a negative, embedded once.

    Item to text runs over the whole bank. Text to item runs within the batch; items of the same text are no
    negatives of each other.  bank: (texts, width), length 1.  Labels of a batch are rows of the bank.
    """

    bank: Tensor

    def __init__(self, model: Any, bank: Tensor, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        return self.compare(self.model(features)[EMBEDDING], labels)

    def compare(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss from the batch's embeddings (batch, width)."""
        return banked_info_nce(F.normalize(embeddings.float(), dim=-1), self.bank, labels, self.temperature)

    def get_config_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "bank": len(self.bank)}


class CachedBankedInfoNCE(CachedLossMixin, BankedInfoNCE):
    """The same gradients with `mini_batch_size` items embedded at once (Gao et al., arXiv 2101.06983)."""

    def __init__(self, model: Any, bank: Tensor, temperature: float, mini_batch_size: int) -> None:
        super().__init__(model, bank, temperature)
        self.mini_batch_size = mini_batch_size

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        return self.forward_cached(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        assert labels is not None
        loss = self.compare(torch.cat(reps[0]), labels)
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


def against_bank(
    model: Any, bank: Tensor, temperature: float, gradient_cache: int | None, processes: int = 1
) -> nn.Module:
    """Symmetric InfoNCE against a frozen bank; arguments and errors as for `in_batch`."""
    _check_processes(gradient_cache, processes)
    if gradient_cache is None:
        return BankedInfoNCE(model, bank, temperature)
    return CachedBankedInfoNCE(model, bank, temperature, gradient_cache)


def banked_info_nce(items: Tensor, bank: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """items: (batch, width), bank: (texts, width), both of length 1; labels: (batch,) rows of the bank -> scalar."""
    to_text = F.cross_entropy(items @ bank.T / temperature, labels)
    scores = bank[labels] @ items.T / temperature
    same = (labels[:, None] == labels[None, :]) & ~torch.eye(len(items), dtype=torch.bool, device=items.device)
    to_item = F.cross_entropy(scores.masked_fill(same, float("-inf")), torch.arange(len(items), device=items.device))
    return (to_text + to_item) / 2
