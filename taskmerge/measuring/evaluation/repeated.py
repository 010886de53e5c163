"""One set of pairs on a model whose tensors change: prepared once, embedded again only where something moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskmerge.embedders.interface import Embedder, Features, as_array
from taskmerge.embedders.pairs import Pairs
from taskmerge.embedders.prompts import Role
from taskmerge.measuring.drift.statistics import gallery_statistics
from taskmerge.measuring.evaluation.local import BATCH_SIZE, Groups, needed_roles, roles_of, scores_both_ways
from taskmerge.metrics.retrieval import QueryScores

BLOCK = 25
"""Pairs of the smallest part of a set that is scored by itself."""
MOST_BLOCKS = 8
FEATURES = 2 << 30
"""Bytes of prepared batches that are kept; those beyond are prepared again each time."""


@dataclass(frozen=True)
class DirectionScores:
    """Scores of every query in one direction. groups: queries that are resampled together."""

    scores: QueryScores
    groups: Groups


@dataclass
class _Batch:
    """One batch of items or texts: how its features are made, and the features where they are kept."""

    rows: Sequence[int]
    kept: Features | None = None


@dataclass
class _Side:
    """Items or texts in one role. batches: by block. embedded: the rows' latest embeddings."""

    batches: list[list[_Batch]]
    embedded: list[np.ndarray] | None = None


@dataclass
class RepeatedSet:
    """A set of pairs, scored as often as the model changes.

    Scores are those of `evaluate_retrieval`, but for the order of batches. `block_scores` looks at a part of the pairs
    among themselves, so that a model that is clearly worse need not be looked at whole.

    Attributes:
        embedder: whose tensors are changed in place.
        pairs: all of them.
        directions: of `DIRECTIONS`, those that are scored.
        encoded: whether outputs of a frozen encoder are kept; False where the encoder itself changes.
    """

    embedder: Embedder
    pairs: Pairs
    directions: Sequence[str]
    encoded: bool = True
    batch_size: int = BATCH_SIZE
    features: int = FEATURES
    blocks: list[tuple[np.ndarray, np.ndarray]] = field(init=False)

    def __post_init__(self) -> None:
        self.texts, self.right = self.pairs.distinct()
        self.blocks = list(_blocks(self.right, len(self.texts)))
        wanted = [roles_of(direction) for direction in self.directions]
        sample = self.pairs.load(0, 1)
        self._item_roles = needed_roles(self.embedder, sample, self.pairs.modality, [roles[0] for roles in wanted])
        self._text_roles = needed_roles(self.embedder, self.texts[:1], "text", [roles[1] for roles in wanted])
        self._left = self.features
        self._items = {role: self._side(0) for role in dict.fromkeys(self._item_roles.values())}
        self._texts = {role: self._side(1) for role in dict.fromkeys(self._text_roles.values())}
        self._prepared = {role: self._prepared_items(role) for role in self._items}

    def _side(self, part: int) -> _Side:
        size = self.batch_size
        return _Side([
            [_Batch(block[part][start : start + size].tolist()) for start in range(0, len(block[part]), size)]
            for block in self.blocks
        ])  # fmt: skip

    def _prepared_items(self, role: Role) -> Any:
        """All items, through their frozen encoder once where there is one."""
        found = self.embedder.prepared_items()
        found.add(self.pairs.source, self.pairs, self.embedder, role)
        if self.encoded:
            with self.embedder.inference():
                found.encode()
        return found

    def moved(self, items: bool, texts: bool) -> None:
        """Say what no longer holds: something on the items' way has changed, or on the texts'."""
        for side, gone in ((self._items, items), (self._texts, texts)):
            if gone:
                for one in side.values():
                    one.embedded = None

    def block_scores(self, block: int) -> dict[str, DirectionScores]:
        """Direction -> scores of one block's items among that block's texts."""
        rows, texts = self.blocks[block]
        place = {text: at for at, text in enumerate(texts.tolist())}
        right = np.array([place[text] for text in self.right[rows].tolist()])
        return self._scored({way: (self._item_block(way, block), self._text_block(way, block))
                             for way in self.directions}, right)  # fmt: skip

    def scores(self) -> dict[str, DirectionScores]:
        """Direction -> scores of every query among all texts."""
        return self._scored({way: (self.items(way), self.all_texts(way)) for way in self.directions}, self.right)

    def neighbours(self) -> np.ndarray:
        """Return the texts nearest to each item, (items, k), unordered, in the first direction."""
        way = self.directions[0]
        return gallery_statistics(self.items(way), self.all_texts(way), self.right).neighbours

    def items(self, way: str) -> np.ndarray:
        """Return the embeddings of all items for a direction, (pairs, d)."""
        parts = [self._item_block(way, block) for block in range(len(self.blocks))]
        return _in_place(parts, [rows for rows, _ in self.blocks])

    def all_texts(self, way: str) -> np.ndarray:
        """Return the embeddings of all distinct texts for a direction, (texts, d)."""
        parts = [self._text_block(way, block) for block in range(len(self.blocks))]
        return _in_place(parts, [texts for _, texts in self.blocks])

    def _scored(
        self, embedded: dict[str, tuple[np.ndarray, np.ndarray]], right: np.ndarray
    ) -> dict[str, DirectionScores]:
        found = scores_both_ways(embedded, right, self.embedder.similarity)
        return {direction: DirectionScores(scores, groups) for direction, scores, groups, _ in found}

    def _item_block(self, way: str, block: int) -> np.ndarray:
        role = self._item_roles[roles_of(way)[0]]
        prepared = self._prepared[role]
        return self._embedded(self._items[role], block, lambda rows: prepared.features(rows))

    def _text_block(self, way: str, block: int) -> np.ndarray:
        role = self._text_roles[roles_of(way)[1]]
        return self._embedded(
            self._texts[role], block,
            lambda rows: self.embedder.prepare([self.texts[row] for row in rows], "text", role),
        )  # fmt: skip

    def _embedded(self, side: _Side, block: int, prepare: Any) -> np.ndarray:
        """(rows, d) of a block, embedded in order; blocks are asked for from the first on."""
        side.embedded = side.embedded or []
        while len(side.embedded) <= block:
            rows = []
            with self.embedder.inference():
                for batch in side.batches[len(side.embedded)]:
                    rows.append(as_array(self.embedder.embed(self._features(batch, prepare))))
                    self.embedder.check_finite(rows[-1], None)
            side.embedded.append(np.concatenate(rows))
        return side.embedded[block]

    def _features(self, batch: _Batch, prepare: Any) -> Features:
        if batch.kept is not None:
            return dict(batch.kept)
        found: Features = prepare(batch.rows)
        size = sum(int(getattr(value, "nbytes", 0)) for value in found.values())
        if size <= self._left:
            self._left -= size
            batch.kept = found
        return dict(found)


def _in_place(parts: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks' rows in the order that the pairs have."""
    together = np.concatenate(parts)
    found = np.empty_like(together)
    found[np.concatenate(rows)] = together
    return found


def _blocks(right: np.ndarray, texts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of items, their texts) of each block: all items of a text in one, blocks alike, the same in every run."""
    count = max(1, min(MOST_BLOCKS, len(right) // BLOCK, texts // 4))
    order = np.random.default_rng(0).permutation(texts)
    for part in np.array_split(order, count):
        yield np.flatnonzero(np.isin(right, part)), np.sort(part)
