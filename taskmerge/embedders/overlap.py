"""What pairs that judge have in common with pairs that were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.content import item_digest
from taskmerge.embedders.pairs import GROUP, Pairs, spelling


@dataclass(frozen=True)
class Overlap:
    """Rows of the pairs that judge whose item is also in the others; and besides these, whose text or group is."""

    items: list[int]
    texts: list[int]
    groups: list[int]

    @classmethod
    def of(cls, pairs: Pairs, others: Pairs) -> Overlap:
        """Compare by content: items by their bytes, texts by what `Pairs.distinct` says."""
        items = shared_items(pairs, others)
        left = sorted(set(range(len(pairs))) - set(items))
        texts, groups = {spelling(text) for text in others.texts}, set(others.groups)
        return cls(
            items,
            [row for row in left if spelling(pairs.texts[row]) in texts],
            [row for row in left if pairs.groups and pairs.groups[row] in groups],
        )


def overlap_note(name: str, pairs: Pairs, others: Pairs) -> str:
    """A sentence on what the pairs that judge share with those trained on; "" when nothing."""
    found = Overlap.of(pairs, others)
    parts = [
        f"{len(rows)} {said}"
        for rows, said in (
            (found.items, "are training items"),
            (found.texts, "have a text of the training data"),
            (found.groups, f"have a {GROUP} of the training data"),
        )
        if rows
    ]
    if not parts:
        return ""
    return (
        f"{name}: of {len(pairs)} evaluation pairs ({pairs.source}) {', '.join(parts)} ({others.source}): "
        "results on new data may be worse."
    )


def shared_items(pairs: Pairs, others: Pairs) -> list[int]:
    """Rows of `pairs` whose item is also one of `others`, by content.

    Files are only read where one of the same size is among the others.
    """
    sizes = {_size(item) for item in pairs.items}
    known = {item_digest(item) for item in others.items if _size(item) in sizes}
    mine = {_size(item) for item in others.items}
    return [row for row, item in enumerate(pairs.items) if _size(item) in mine and item_digest(item) in known]


def _size(item: Any) -> Any:
    """What two equal items have in common at no cost."""
    if isinstance(item, Path):
        return item.stat().st_size if item.is_file() else len(list(item.iterdir()))
    if isinstance(item, Mapping):
        array = item.get("bytes") if item.get("bytes") is not None else item.get("array")
        return len(array) if isinstance(array, Sequence | np.ndarray) else str(type(array))
    return getattr(item, "shape", None) or getattr(item, "size", None) or str(item)[:64]
