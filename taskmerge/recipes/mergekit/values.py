"""A parameter in a mergekit configuration: a scalar, a gradient over depth, or either under a filter on tensor names.

It may be given at several levels (a slice's source, the slice, the module, the whole configuration). The first level
that has something to say about a tensor decides; a filter speaks of the tensors whose names contain it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.declarations import At
from taskmerge.recipes.mergekit.findings import Findings

Scalar = float | bool | str
Value = Scalar | tuple[float, ...]


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
        """The filters that may decide, in order: none after a value for all tensors."""
        found: list[str] = []
        for condition in self.conditions:
            if condition.contains is None:
                break
            found.append(condition.contains)
        return found

    def under(self, contained: frozenset[str]) -> Value | None:
        """Return the value for tensors whose names contain exactly these of all filters."""
        for condition in self.conditions:
            if condition.contains is None or condition.contains in contained:
                return condition.value
        return self.default

    @property
    def varies(self) -> bool:
        """True if one of its values is a gradient."""
        return any(isinstance(condition.value, tuple) for condition in self.conditions)


def setting(levels: Sequence[tuple[Any, At]], default: Value | None, findings: Findings) -> Setting:
    """Return a parameter from its values at each level, highest precedence first. Values not given are left out."""
    found: list[Condition] = []
    for value, at in levels:
        found += _conditions(value, at, findings)
    return Setting(tuple(found), default)


def _conditions(value: Any, at: At, findings: Findings) -> Iterator[Condition]:
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        for index, entry in enumerate(value):
            yield from _conditional(entry, at.child(index), findings)
    elif isinstance(value, Mapping):
        yield from _conditional(value, at, findings)
    else:
        read = _plain(value, at, findings)
        if read is not None:
            yield Condition(None, read)


def _conditional(entry: Any, at: At, findings: Findings) -> Iterator[Condition]:
    if not isinstance(entry, Mapping) or "value" not in entry:
        findings.problem(f"{at.name} must be a mapping with `value` and optionally `filter`", at.place)
        return
    findings.ignored(entry, ("filter", "value"), at)
    contains = entry.get("filter")
    if contains is not None and not isinstance(contains, str):
        findings.problem(f"a filter must be text, not {contains!r}", at.place)
        return
    value = _plain(entry["value"], at.child("value"), findings)
    if value is not None:
        yield Condition(None if contains in (None, "*", "") else contains, value)


def _plain(value: Any, at: At, findings: Findings) -> Value | None:
    if isinstance(value, (list, tuple)) and value:
        numbers = [_number(entry, at, findings) for entry in value]
        if all(number is not None for number in numbers):
            return tuple(float(number) for number in numbers if number is not None)
    elif isinstance(value, bool):
        return value
    elif isinstance(value, (int, float, str)):
        number = _number(value, at, findings)
        return value if number is None else number
    what = f"{at.name} must be a number, true, false, or a list of numbers, not {value!r}"
    findings.problem(what, at.place)
    return None


def _number(value: Any, at: At, findings: Findings) -> float | None:
    """A number, also one that was written in quotes or as a percentage."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = value.strip() if isinstance(value, str) else ""
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            findings.note(f"{at.name} {text} is read as {share:g}; mergekit refuses it", at.place)
            return share
        return float(value)
    except ValueError:
        return None


_FLAGS = {"true": True, "yes": True, "on": True, "y": True, "t": True, "false": False, "no": False, "off": False,
          "n": False, "f": False}  # fmt: skip


def flag(value: Any) -> bool:
    """Return a switch in any notation: true, 1.0, "yes"."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), bool(value))
    return bool(value)


def situations(settings: Sequence[Setting]) -> list[frozenset[str]]:
    """Return sets of filters in order of precedence.

    The first set that a tensor's name contains completely decides the values of all settings.
    """
    filters = {text for one in settings for text in one.filters}
    found = [frozenset[str]()]
    for one in settings:
        longer: list[frozenset[str]] = []
        for contained in found:
            for text in (*one.filters, None):
                both = contained if text is None else contained | {other for other in filters if other in text}
                if not any(earlier <= both for earlier in longer):
                    longer.append(both)
        found = longer
    return found


def literal(text: str) -> str:
    """Return the text with all special characters of patterns in brackets."""
    return "".join(f"[{character}]" if character in "*?[]{}" else character for character in text)


def outer(contained: frozenset[str]) -> list[str]:
    """Return the filters that are not contained in another one."""
    return sorted(text for text in contained if not any(text != other and text in other for other in contained))
