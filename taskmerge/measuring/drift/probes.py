"""Properties of the probes that limit them: items that were trained on, and texts that differ only in spelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from taskmerge.embedders.overlap import Overlap
from taskmerge.embedders.pairs import GROUP, Pairs, read_pairs, spelling
from taskmerge.metrics.retrieval import best_rows

ALIKE = 0.8
"""Share of letters that two texts have in common from which on they are named as possible spellings of one."""


def probe_notes(pairs: Pairs, probes: np.ndarray, texts: np.ndarray, trained_on: Sequence[Any] = ()) -> tuple[str, ...]:
    """Return sentences on the limits of a verdict from these probes; none if there are no limits.

    Args:
        pairs: the probes.
        probes, texts: the specialist's embeddings of items (n, d) and distinct texts (m, d).
        trained_on: sets that the specialist was trained on, as `read_pairs` takes them; none: not known.
    """
    said = [_merged(pairs), _found_alike(pairs, probes, texts)]
    for source in trained_on:
        said += _trained(pairs, read_pairs(source))
    return tuple(sentence for sentence in said if sentence)


def _merged(pairs: Pairs) -> str:
    distinct = pairs.distinct()[0]
    written = len(set(pairs.texts))
    if written == len(distinct):
        return ""
    return f"{written} texts that differ only in case, spaces or closing punctuation were counted as {len(distinct)}."


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
        f"{len(alike)} of {len(pairs)} probes retrieve a text that is almost their own ({other!r} "
        f"for {own!r}), which counts as not found: if these are spellings of one text, use only one of them."
    )


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, spelling(one), spelling(other)).ratio() >= ALIKE


def _trained(pairs: Pairs, others: Pairs) -> Iterator[str]:
    shared = Overlap.of(pairs, others)
    if shared.items:
        yield (
            f"{len(shared.items)} of {len(pairs)} probes are in the specialist's training data "
            f"({others.source}): it may have memorised them, and other items may lose more."
        )
    if shared.groups:
        yield (
            f"{len(shared.groups)} of {len(pairs)} probes have a {GROUP} of the specialist's training data: "
            "other items may lose more."
        )
    if shared.texts:
        yield (
            f"{len(shared.texts)} of {len(pairs)} probes have a text of the specialist's training data: new "
            "texts may lose more."
        )
