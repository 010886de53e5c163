"""What the probes themselves cannot show: items that were trained on, and texts that are spellings of one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.content import item_digest
from taskmerge.embedders.pairs import Pairs, read_pairs, spelling
from taskmerge.metrics.retrieval import best_rows

ALIKE = 0.8
"""Share of letters that two texts have in common from which on they are named as possible spellings of one."""


def probe_notes(pairs: Pairs, probes: np.ndarray, texts: np.ndarray, trained_on: Any = None) -> tuple[str, ...]:
    """Sentences on what a verdict from these probes leaves open; none when there is nothing to say.

    Args:
        pairs: the probes.
        probes, texts: the specialist's embeddings of items (n, d) and distinct texts (m, d).
        trained_on: what the specialist was trained on, as `read_pairs` takes it; None: not known.
    """
    said = [_merged(pairs), _found_alike(pairs, probes, texts)]
    if trained_on is not None:
        said.append(_trained(pairs, read_pairs(trained_on)))
    return tuple(sentence for sentence in said if sentence)


def trained_rows(pairs: Pairs, others: Pairs) -> list[int]:
    """Rows of `pairs` whose item is also one of `others`, by content.

    Files are only read where one of the same size is among the others.
    """
    sizes = {_size(item) for item in pairs.items}
    known = {item_digest(item) for item in others.items if _size(item) in sizes}
    mine = {_size(item) for item in others.items}
    return [row for row, item in enumerate(pairs.items) if _size(item) in mine and item_digest(item) in known]


def _merged(pairs: Pairs) -> str:
    distinct = pairs.distinct()[0]
    written = len(set(pairs.texts))
    if written == len(distinct):
        return ""
    return f"{written} texts that differ only in case, spaces or closing punctuation were taken as {len(distinct)}."


def _found_alike(pairs: Pairs, probes: np.ndarray, texts: np.ndarray) -> str:
    """Of probes that found a text which is almost theirs."""
    names, right = pairs.distinct()
    found = best_rows(probes, texts)
    missed = [(names[one], names[other]) for one, other in zip(right, found, strict=True) if one != other]
    alike = [pair for pair in missed if _alike(*pair)]
    if not alike:
        return ""
    own, other = alike[0]
    return (
        f"{len(alike)} of {len(pairs)} probes find a text that is almost theirs ({other!r} for {own!r}), which counts "
        "as not found: if these are spellings of one text, write one of them."
    )


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, spelling(one), spelling(other)).ratio() >= ALIKE


def _trained(pairs: Pairs, others: Pairs) -> str:
    seen = trained_rows(pairs, others)
    if not seen:
        return ""
    return (
        f"{len(seen)} of {len(pairs)} probes are in what the specialist was trained on ({others.source}): it knows "
        "them by heart, and others may lose more."
    )


def _size(item: Any) -> Any:
    """What two equal items have in common at no cost."""
    if isinstance(item, Path):
        return item.stat().st_size if item.is_file() else len(list(item.iterdir()))
    if isinstance(item, Mapping):
        array = item.get("bytes") if item.get("bytes") is not None else item.get("array")
        return len(array) if isinstance(array, Sequence | np.ndarray) else str(type(array))
    return getattr(item, "shape", None) or getattr(item, "size", None) or str(item)[:64]
