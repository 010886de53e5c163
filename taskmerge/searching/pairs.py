"""The pairs of a search: those for scoring points, and reserved ones to confirm the best point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.embedders.content import item_digest
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import Problem, RecipeError, UsageError
from taskmerge.words.places import parse_place

LEAST = 30
"""Distinct texts that a set must have before a third of it is reserved."""
FEW = 100
"""Pairs below which a set decides little."""


def sources_of(said: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Data sources as `read_pairs` takes them: files relative to the recipe, others as they are said."""
    found = {}
    for name, source in said.items():
        is_path = isinstance(source, str) and parse_place(source, "a data source").kind == "path"
        here = folder / parse_place(source).path if is_path else None
        found[name] = here if here is not None and here.exists() else source
    return found


def read_sets(sources: Mapping[str, Any], key: str, place: str) -> dict[str, Pairs]:
    """Read every set and decode it once as a test. Raises RecipeError with all problems of all sets."""
    problems: list[Problem] = []
    found = {}
    for name, source in sources.items():
        try:
            found[name] = read_pairs(source).check()
        except UsageError as error:
            for told in error.problems:
                where = f"search: {key}: {name}" + (f": {told.place}" if told.place else "")
                problems.append(Problem(f"{where}: {told.what}", place or None, told.next_move))
            continue
        if len(found[name].distinct()[0]) < 2:
            what = f"search: {key}: {name}: all items have the same text: they cannot be ranked"
            problems.append(Problem(what, place or None, "give pairs with several texts"))
    if problems:
        raise RecipeError(problems)
    return found


def kept_back(
    sets: Mapping[str, Pairs], seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Split pairs into those to search on and those to confirm on: a third of every set's texts, with all their items.

    Where a set is too small for that nothing is, which `say` is told.
    """
    if small := [name for name, pairs in sets.items() if len(pairs.distinct()[0]) < LEAST]:
        say(
            f"no pairs are reserved for confirmation: {', '.join(small)} has fewer than {LEAST} texts. The "
            "best score is measured on the pairs that were used to choose it and is too high by an unknown "
            "amount"
        )
        return dict(sets), {}
    search, confirm = {}, {}
    for name, pairs in sets.items():
        texts, right = pairs.distinct()
        order = np.random.default_rng(seed).permutation(len(texts))
        held = np.isin(right, order[: len(texts) // 3])
        search[name] = pairs.take(np.flatnonzero(~held).tolist())
        confirm[name] = pairs.take(np.flatnonzero(held).tolist())
    counts = ", ".join(f"{name} {len(search[name])} and {len(confirm[name])}" for name in sets)
    say(f"a third of each set is reserved to confirm the best: {counts} pairs")
    return search, confirm


def check_apart(search: Mapping[str, Pairs], confirm: Mapping[str, Pairs], say: Callable[[str], None]) -> None:
    """Say which sets confirm with items that they are searched on."""
    for name, pairs in confirm.items():
        seen = {item_digest(item) for item in search[name].items}
        shared = sum(item_digest(item) in seen for item in pairs.items)
        if shared:
            say(f"confirm: {name}: {shared} of {len(pairs)} items are also used for the search: its score is too high")
