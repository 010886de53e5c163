"""Covering arrays: few rows in which every two values of any two factors meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]


def pairwise(
    factors: Mapping[str, Sequence[Any]], possible: Callable[[Row], bool], seed: int = 0, tries: int = 30
) -> list[Row]:
    """Rows, one value a factor, that hold every possible pair of values; greedy, the same for the same seed.

    possible: whether a row, or a part of one, makes sense.
    """
    draw = random.Random(seed)
    names = list(factors)
    missing = {
        (one, a, two, b)
        for one, two in combinations(names, 2)
        for a in factors[one]
        for b in factors[two]
        if possible({one: a, two: b})
    }
    rows: list[Row] = []
    hopeless = 0
    while missing and hopeless < 200:
        one, a, two, b = min(missing, key=repr) if hopeless % 2 == 0 else draw.choice(sorted(missing, key=repr))
        best: Row = {}
        gain = 0
        for _ in range(tries):
            row = complete({one: a, two: b}, factors, possible, draw)
            covered = len(_pairs(row, names) & missing) if row else 0
            if covered > gain:
                best, gain = row, covered
        if not gain:
            missing.discard((one, a, two, b))  # no whole row holds it
            hopeless += 1
            continue
        rows.append(best)
        missing -= _pairs(best, names)
    return rows


def complete(part: Row, factors: Mapping[str, Sequence[Any]], possible: Callable[[Row], bool], draw: Any) -> Row:
    """A whole row that begins as `part` does, by chance; {} when none is found."""
    row = dict(part)
    for name in draw.sample(list(factors), len(factors)):
        if name in row:
            continue
        values = draw.sample(list(factors[name]), len(factors[name]))
        fitting = next((value for value in values if possible({**row, name: value})), None)
        if fitting is None:
            return {}
        row[name] = fitting
    return {name: row[name] for name in factors} if possible(row) else {}


def _pairs(row: Row, names: Sequence[str]) -> set[tuple[str, Any, str, Any]]:
    return {(one, row[one], two, row[two]) for one, two in combinations(names, 2)}
