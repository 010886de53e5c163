"""A parameter in a mergekit configuration: a scalar, a gradient over depth, or either under a filter on tensor names.

It may stand at several levels (a slice's source, the slice, the model, the whole configuration). The first level that
has something to say about a tensor decides; a filter speaks of the tensors whose names contain it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import Problem

Scalar = float | bool | str
Value = Scalar | tuple[float, ...]
MOST_FILTERS = 4


@dataclass(frozen=True)
class Condition:
    """A value for the tensors whose names contain `contains`; None: for all."""

    contains: str | None
    value: Value


@dataclass(frozen=True)
class Setting:
    """One parameter of one model: what it is, in order of precedence. default: None when it must be given."""

    conditions: tuple[Condition, ...]
    default: Value | None

    @property
    def filters(self) -> list[str]:
        return [condition.contains for condition in self.conditions if condition.contains is not None]

    def under(self, contained: frozenset[str]) -> Value | None:
        """The value for tensors whose names contain exactly these of all filters."""
        for condition in self.conditions:
            if condition.contains is None or condition.contains in contained:
                return condition.value
        return self.default


def setting(levels: Sequence[tuple[Any, At]], default: Value | None, problems: list[Problem]) -> Setting:
    """A parameter from its values at each level, highest precedence first. Values not given are left out."""
    found: list[Condition] = []
    for value, at in levels:
        found += _conditions(value, at, problems)
    return Setting(tuple(found), default)


def _conditions(value: Any, at: At, problems: list[Problem]) -> Iterator[Condition]:
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        for index, entry in enumerate(value):
            yield from _conditional(entry, at.child(index), problems)
    else:
        read = _plain(value, at, problems)
        if read is not None:
            yield Condition(None, read)


def _conditional(entry: Any, at: At, problems: list[Problem]) -> Iterator[Condition]:
    if not isinstance(entry, Mapping) or "value" not in entry or not set(entry) <= {"filter", "value"}:
        problems.append(Problem(f"{at.name} must be a mapping with `value` and, if need be, `filter`", at.place))
        return
    contains = entry.get("filter")
    if contains is not None and not isinstance(contains, str):
        problems.append(Problem(f"a filter must be text, not {contains!r}", at.place))
        return
    value = _plain(entry["value"], at.child("value"), problems)
    if value is not None:
        yield Condition(None if contains in (None, "*", "") else contains, value)


def _plain(value: Any, at: At, problems: list[Problem]) -> Value | None:
    if isinstance(value, (list, tuple)) and value:
        numbers = [_number(entry) for entry in value]
        if all(number is not None for number in numbers):
            return tuple(float(number) for number in numbers if number is not None)
    elif isinstance(value, bool):
        return value
    elif isinstance(value, (int, float, str)):
        number = _number(value)
        return value if number is None else number
    problems.append(Problem(f"{at.name} must be a number, true, false, or a list of numbers, not {value!r}", at.place))
    return None


def _number(value: Any) -> float | None:
    """A number, also one that was written in quotes."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def situations(settings: Sequence[Setting]) -> list[frozenset[str]]:
    """Every set of filters that a tensor's name can contain together, the largest first, the empty one last."""
    filters = sorted({text for one in settings for text in one.filters})
    found = []
    for count in range(len(filters), -1, -1):
        for chosen in combinations(filters, count):
            implied = {text for text in filters if any(text in other for other in chosen)}
            if implied == set(chosen):
                found.append(frozenset(chosen))
    return found


def patterns(contained: frozenset[str]) -> list[str]:
    """Name patterns that together cover the names containing all of these texts, whatever their order or overlap."""
    outer = [text for text in contained if not any(text != other and text in other for other in contained)]
    found = {f"*{joined}*" for order in permutations(outer) for joined in _joined(list(order))}
    return sorted(found)


def _joined(texts: list[str]) -> Iterator[str]:
    """Texts one after the other: apart, or sharing an end and a beginning."""
    first = _literal(texts[0])
    if len(texts) == 1:
        yield first
        return
    for rest in _joined(texts[1:]):
        yield f"{first}*{rest}"
        for shared in range(1, min(len(texts[0]), len(texts[1]))):
            if texts[0].endswith(texts[1][:shared]):
                yield first + rest[shared:]


def _literal(text: str) -> str:
    """The text with what a pattern would read otherwise put in brackets."""
    return "".join(f"[{character}]" if character in "*?[]{}" else character for character in text)
