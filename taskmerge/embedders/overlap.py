"""Overlap of pairs for evaluation with pairs that were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.content import item_digest
from taskmerge.embedders.pairs import GROUP, Pairs, StoredItems, spelling

_BLOCK = 256


@dataclass(frozen=True)
class Overlap:
    """Rows of the held-out pairs whose item is also in the others; then further rows whose text or group is."""

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
    """Return a sentence on the overlap of held-out pairs with those that were trained on; "" without any."""
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
    """Return the rows of `pairs` whose item is also one of `others`, by content.

    An item is only read where one of the same size is among the others.
    """
    sizes = [_size(item) for item in _lean(pairs.items)]
    wanted, there = set(sizes), set()
    known: set[str] = set()
    alike = np.fromiter((size in wanted for size in map(_size, _lean(others.items))), bool, len(others))
    for start in range(0, len(others), _BLOCK):
        rows = np.flatnonzero(alike[start : start + _BLOCK]).tolist()
        if len(rows) > _BLOCK // 8:  # read together
            block = others.items[start : start + _BLOCK]
            found = [block[row] for row in rows]
        else:
            found = [others.items[start + row] for row in rows]
        there |= {_size(item) for item in found}
        known |= {item_digest(item) for item in found}
    return [row for row, size in enumerate(sizes) if size in there and item_digest(pairs.items[row]) in known]


def _lean(items: Sequence[Any]) -> Iterable[Any]:
    return items.lean() if isinstance(items, StoredItems) else items


def _size(item: Any) -> Any:
    """What two equal items have in common at no cost. A table's bytes may be given by their number."""
    if isinstance(item, Path):
        return item.stat().st_size if item.is_file() else len(list(item.iterdir()))
    if isinstance(item, Mapping):
        array = item.get("bytes") if item.get("bytes") is not None else item.get("array")
        if isinstance(array, int):
            return array
        return len(array) if isinstance(array, Sequence | np.ndarray) else str(type(array))
    return getattr(item, "shape", None) or getattr(item, "size", None) or str(item)[:64]
