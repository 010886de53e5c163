"""The model as the trainer takes it: one call runs several columns of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from taskmerge.embedders.interface import EMBEDDING, Embedder, Features

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COLUMNS = "columns"
"""Keys for the features of several columns, and for their embeddings."""


class Columns(nn.Module):
    """An embedder as a module. Data parallel wrappers see one call a step, whatever is embedded in it."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.module = embedder.module
        self._embedder = (embedder,)  # in a tuple: an embedder is not a part

    def forward(self, features: Features, **options: Any) -> Features:
        """Features of one batch, or {COLUMNS: [features, …]}."""
        (embedder,) = self._embedder
        if COLUMNS in features:
            return {COLUMNS: [embedder.embed(column) for column in features[COLUMNS]]}
        return {**features, EMBEDDING: embedder.embed(features)}


def trainable(embedder: Embedder) -> SentenceTransformer:
    """Return the embedder's network in the form that sentence-transformers' trainer trains, run column by column."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[Columns(embedder)], device=str(embedder.device))
