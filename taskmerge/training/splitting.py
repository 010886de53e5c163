"""Pairs set aside to judge by: by text and by speaker, never by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskmerge.embedders.pairs import Pairs
from taskmerge.errors import UsageError

HELD_OUT_SHARE = 0.1
"""Of the texts."""
HELD_OUT_OF_GROUPS = 0.2
"""Of the texts and of the groups, where pairs say their group: only what is new in both judges."""
FEWEST_HELD = 2
"""Pairs that judge."""
CROSSED, PARTS, JUDGING = 512, 3, 0.2
"""In a recovery up to so many pairs judge in turn, in so many parts; of more, this share of the texts judges."""


@dataclass(frozen=True)
class Split:
    """Rows to fit on and rows that judge: no text of the one is among the other's, nor a group, where groups are known.

    unused: rows of a text of the one side and a group of the other.
    """

    fitted: list[int]
    held: list[int]
    unused: int = 0


def split_sets(sets: Mapping[str, Pairs], seed: int) -> tuple[dict[str, Pairs], dict[str, Pairs], list[str]]:
    """Split sets into pairs to train on and held-out pairs (a tenth of every set's texts), with notes.

    Raises UsageError for a set too small to split.
    """
    kept: dict[str, Pairs] = {}
    held: dict[str, Pairs] = {}
    notes = []
    for name, pairs in sets.items():
        part = one_split(pairs, seed, HELD_OUT_SHARE)
        if part is None:
            what = (
                f"{name}: {len(pairs)} pairs of {len(pairs.distinct()[0])} texts are too few to reserve some "
                f"for evaluation"
            )
            raise UsageError(what, next_move="give held_out pairs")
        kept[name], held[name] = pairs.take(part.fitted), pairs.take(part.held)
        if part.unused:
            notes.append(
                f"{name}: {len(part.held)} of {len(pairs)} pairs are held out, with texts and groups that "
                f"are not trained on; {part.unused} are not used (give held_out pairs to use them)"
            )
    return kept, held, notes


def recovery_splits(sets: Mapping[str, Pairs], seed: int) -> dict[str, list[Split]]:
    """Split the pairs of a recovery: one split per set, or as many for every set if parts are held out in turn.

    Raises UsageError for sets that are too small.
    """
    found: dict[str, list[Split]] = {}
    for name, pairs in sets.items():
        if max(len(own) for own in sets.values()) <= CROSSED:
            found[name] = folds(pairs, PARTS, seed)
            enough = len(found[name]) > 1
        else:
            part = one_split(pairs, seed, JUDGING)
            found[name] = [part] if part is not None else []
            enough = part is not None
        if not enough:
            what = (
                f"{name}: {len(pairs)} pairs of {len(pairs.distinct()[0])} texts are too few to reserve some "
                f"for evaluation"
            )
            raise UsageError(what, next_move="give held_out pairs, or pairs of more texts (and groups)")
    least = min(len(splits) for splits in found.values())
    return {name: splits[:least] for name, splits in found.items()}


def one_split(pairs: Pairs, seed: int, share: float) -> Split | None:
    """Hold out a share of the texts, or a fifth of the texts in a fifth of the groups; None if too few are left."""
    rng = np.random.default_rng(seed)
    texts, groups = pairs.distinct()[1], group_numbers(pairs)
    count = int(texts.max()) + 1
    share = share if groups is None else HELD_OUT_OF_GROUPS
    aside = rng.permutation(count)[: round(count * share)]
    voices = None
    if groups is not None:
        speakers = int(groups.max()) + 1
        voices = rng.permutation(speakers)[: max(1, round(speakers * share))]
    found = _parted(texts, aside, groups, voices)
    return found if len(found.held) >= FEWEST_HELD and found.fitted else None


def folds(pairs: Pairs, count: int, seed: int) -> list[Split]:
    """Return splits in which every text is held out once; with groups, in a part of the groups not trained on.

    There are fewer than `count` of them where there are fewer groups or texts.
    """
    rng = np.random.default_rng(seed)
    texts, groups = pairs.distinct()[1], group_numbers(pairs)
    parts = _parts(texts, count, rng)
    if groups is None:
        return [_parted(texts, part, None, None) for part in parts]
    voices = _parts(groups, len(parts), rng)
    splits = [_parted(texts, part, groups, own) for part, own in zip(parts, voices, strict=False)]
    return [split for split in splits if split.held and split.fitted]


def group_numbers(pairs: Pairs) -> np.ndarray | None:
    """Return the number of each pair's group, (pairs,) int64; None for fewer than two groups."""
    known, numbers = np.unique(np.asarray(pairs.groups, dtype=str), return_inverse=True)
    return numbers.astype(np.int64) if len(known) > 1 else None


def _parts(numbers: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    distinct = int(numbers.max()) + 1
    return np.array_split(rng.permutation(distinct), min(count, distinct))


def _parted(
    texts: np.ndarray, aside: Sequence[int] | np.ndarray, groups: np.ndarray | None, voices: np.ndarray | None
) -> Split:
    held = np.isin(texts, aside)
    fitted = ~held
    if groups is not None and voices is not None:
        heard = np.isin(groups, voices)
        held, fitted = held & heard, fitted & ~heard
    return Split(
        np.flatnonzero(fitted).tolist(), np.flatnonzero(held).tolist(), int(len(texts) - held.sum() - fitted.sum())
    )
