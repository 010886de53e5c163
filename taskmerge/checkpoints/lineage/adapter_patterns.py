"""Values of a PEFT adapter that patterns of module names choose: ranks and alphas, at times one for each module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from taskmerge.words.regular import Regular, RegularError, regular

MOST_PATTERNS = 1_000
"""That are more than a module's name: each of them is tried on each module."""
_NAME = re.compile(r"[\w.-]*", re.ASCII)


class ModuleValues:
    """Pattern -> value, by peft's rule: the first pattern that matches the end of a module's path, from a dot on.

    Most patterns are names of modules, in which only the dot is a sign: these are looked up, so that thousands of them
    for thousands of modules take no longer than to read them.

    Source: https://github.com/huggingface/peft `get_pattern_key`
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        """Raises RegularError, which says what of a pattern is not read."""
        self.values = dict(values)
        self._others: list[tuple[int, Regular]] = []
        self._names: dict[tuple[int, ...], dict[str, int]] = {}
        for number, pattern in enumerate(self.values):
            if _NAME.fullmatch(pattern):
                dots = (len(pattern), *(place for place, sign in enumerate(pattern) if sign == "."))
                self._names.setdefault(dots, {}).setdefault(_masked(pattern, dots), number)
            else:
                regular(pattern)
                self._others.append((number, regular(rf"(?:.*\.)?(?:{pattern})")))  # flags: at the start only
        if len(self._others) > MOST_PATTERNS:
            raise RegularError(f"{len(self._others):,} patterns are too many (at most {MOST_PATTERNS:,})")

    def of(self, module: str, default: float) -> float:
        """Return the value for a module's path; `default` if no pattern matches."""
        found = min([*self._by_name(module), *self._by_pattern(module)], default=None)
        return default if found is None else self._numbered[found]

    @cached_property
    def _numbered(self) -> list[float]:
        return list(self.values.values())

    def _by_name(self, module: str) -> list[int]:
        """Numbers of the names that match, the first of each shape."""
        line = module.find("\n")  # the text before a name is on one line
        starts = {0, *(place + 1 for place, sign in enumerate(module) if sign == "." and (line < 0 or place < line))}
        found = []
        for dots, names in self._names.items():
            start = len(module) - dots[0]
            if start in starts and (number := names.get(_masked(module[start:], dots))) is not None:
                found.append(number)
        return found

    def _by_pattern(self, module: str) -> list[int]:
        return [number for number, pattern in self._others if pattern.fullmatch(module)][:1]


def _masked(name: str, dots: tuple[int, ...]) -> str:
    """A name with a dot where a pattern has one, which means any character except a line's end."""
    letters = list(name)
    for place in dots[1:]:
        if letters[place] != "\n":
            letters[place] = "."
    return "".join(letters)
