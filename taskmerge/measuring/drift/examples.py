"""Examples of drift: single items whose nearest texts changed, and a map of the embeddings.

Both use the embeddings that the statistics were measured on. They illustrate the verdict and do not affect it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import clipped
from taskmerge.measuring.drift.comparison import TOWARD_IDENTITY, Comparison
from taskmerge.metrics.retrieval import normalized, score_queries
from taskmerge.metrics.rotation import orthogonal_procrustes

MOST_EXAMPLES, NEAREST = 12, 3
MOST_MAPPED = 150
NOTHING = 1e-12
"""Squared distance from the middle below which embeddings do not differ."""
_LONGEST = 120


@dataclass(frozen=True)
class Example:
    """One probe whose nearest texts changed.

    item: what it is called.  text: its own text.  before, after: the nearest texts under the specialist and the fused
    model, the nearest first.  rank_before, rank_after: rank of its own text among all, from 1.
    """

    item: str
    text: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    rank_before: int
    rank_after: int


@dataclass(frozen=True)
class MappedItem:
    """A probe on the map: under the specialist, and under the fused model."""

    item: str
    x_before: float
    y_before: float
    x_after: float
    y_after: float


@dataclass(frozen=True)
class MappedText:
    """A text on the map, under the specialist."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class EmbeddingPlane:
    """Embeddings on the two principal axes of the specialist's.

    The fused model's are turned by the rotation that the texts alone fit, so that what moves on the map moved against
    the texts.  shares: of the variance, that each axis shows.
    """

    items: tuple[MappedItem, ...]
    texts: tuple[MappedText, ...]
    shares: tuple[float, ...]


def changed_examples(found: Comparison, pairs: Pairs) -> tuple[Example, ...]:
    """Return the probes that lost most reciprocal rank, at most `MOST_EXAMPLES`; none that found its text as before."""
    relevant = [[row] for row in found.right]
    ranks = [
        1 / np.maximum(score_queries(side.probes, side.texts, relevant)["mrr"], 1e-12)
        for side in (found.reference, found.other)
    ]
    lost = 1 / ranks[0] - 1 / ranks[1]
    rows = [int(row) for row in np.argsort(-lost, kind="stable")[:MOST_EXAMPLES] if lost[row] > 0]
    names = pairs.distinct()[0]
    near = [_nearest(side.probes[rows], side.texts, names) for side in (found.reference, found.other)]
    return tuple(
        Example(
            item_name(pairs, row),
            clipped(names[found.right[row]], _LONGEST),
            near[0][place],
            near[1][place],
            round(float(ranks[0][row])),
            round(float(ranks[1][row])),
        )
        for place, row in enumerate(rows)
    )


def _nearest(probes: np.ndarray, texts: np.ndarray, names: list[str]) -> list[tuple[str, ...]]:
    """The nearest texts of each probe, the nearest first."""
    scores = normalized(probes) @ normalized(texts).T
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]
    return [tuple(clipped(names[place], _LONGEST) for place in row) for row in nearest]


def item_name(pairs: Pairs, row: int) -> str:
    """Return the name of an item: its text, the name of its file, else its place in the set."""
    item: Any = pairs.items[row]
    if isinstance(item, Mapping):
        item = Path(str(item["path"])) if item.get("path") else None
    if isinstance(item, Path):
        return clipped(item.name, _LONGEST)
    return clipped(item, _LONGEST) if isinstance(item, str) else f"row {row + 1}"


def embedding_plane(found: Comparison, pairs: Pairs) -> EmbeddingPlane | None:
    """Return a map of at most `MOST_MAPPED` probes, evenly chosen, and their texts; None below three probes, or where
    embeddings do not differ at all.
    """
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_MAPPED)).round().astype(int))
    places = np.unique(found.right[rows])
    before, texts = normalized(found.reference.probes[rows]), normalized(found.reference.texts[places])
    turn = orthogonal_procrustes(
        found.reference.texts.astype(np.float64).T @ found.other.texts, toward_identity=TOWARD_IDENTITY
    )
    after = normalized(found.other.probes[rows]) @ turn.T
    shown = np.concatenate([before, texts]).astype(np.float64)
    middle = shown.mean(axis=0)
    _, lengths, axes = np.linalg.svd(shown - middle, full_matrices=False)
    variance = float((lengths**2).sum())
    if len(rows) < 3 or len(axes) < 2 or not variance > NOTHING * len(shown):
        return None
    xy_before, xy_after, xy_texts = (
        ((side - middle) @ axes[:2].T).round(4).tolist() for side in (before, after, texts)
    )
    names = pairs.distinct()[0]
    return EmbeddingPlane(
        tuple(MappedItem(item_name(pairs, int(row)), *one, *two)
              for row, one, two in zip(rows, xy_before, xy_after, strict=True)),
        tuple(MappedText(clipped(names[place], _LONGEST), *one) for place, one in zip(places, xy_texts, strict=True)),
        tuple((lengths[:2] ** 2 / variance).round(4).tolist()),
    )  # fmt: skip
