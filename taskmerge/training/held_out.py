"""Looking at held-out pairs while training: learning curves, the best checkpoint, early stopping."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor

from taskmerge.metrics.retrieval import score_queries
from taskmerge.training.items import TrainingItems

METRIC = "mrr"
"""What decides: the mean over modalities of the mean reciprocal rank, finer than recall@1 on small sets."""


class HeldOutRetrieval(BaseEvaluator):
    """Item-to-text retrieval on every held-out set, gallery: the set's distinct texts.

    fixed_texts: embeddings by set name where the text side is frozen. `history` keeps every look: the learning
    curves, one row {"step", "<set>_recall_at_1", "<set>_mrr", ..., "mrr"} per look.
    """

    def __init__(self, items: TrainingItems, fixed_texts: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.items = items
        self.fixed_texts = fixed_texts or {}
        self.primary_metric = METRIC
        self.history: list[dict[str, float]] = []
        self.galleries = {name: pairs.distinct() for name, pairs in items.sets.items()}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        scores = self.scores()
        self.history.append({"step": float(steps), **scores})
        return scores

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """Recall@1 and MRR of every set, and the mean MRR."""
        found: dict[str, float] = {}
        for name, (texts, places) in self.galleries.items():
            gallery = self.fixed_texts[name] if name in self.fixed_texts else self._gallery(name, texts)
            queries = self.items.embed(list(self.items.numbers(name)))
            means = score_queries(queries.numpy(), gallery.numpy(), [[int(place)] for place in places]).means()
            found[f"{name}_recall_at_1"] = means["recall_at_1"]
            found[f"{name}_mrr"] = means["mrr"]
        found[METRIC] = sum(found[f"{name}_mrr"] for name in self.galleries) / len(self.galleries)
        return found

    def freeze_texts(self) -> None:
        """Embed every gallery now and never again: the text side does not learn."""
        self.fixed_texts = {name: self._gallery(name, texts) for name, (texts, _) in self.galleries.items()}

    def _gallery(self, name: str, texts: list[str]) -> Tensor:
        return self.items.embed_texts(texts, self.items.sets[name].roles[1], name=name)
