"""Selection of tensors by patterns: the one language of rules, copy, protect, train, components, `only` and `without`.

| pattern                     | names                                                                       |
|-----------------------------|-----------------------------------------------------------------------------|
| `audio_encoder`             | a component; a glob may name several: `*_projector`                         |
| `backbone.layers.{0..7}.*`  | tensors of a component, by a glob on `component.name inside it`             |
| `*.self_attn.q_proj.weight` | tensors, by a glob on their own names, those in the file                    |

A component's buffers are selected with it, and are also a component of their own, `buffers`. Globs are those of
`taskmerge.words.patterns`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from taskmerge.errors import Problem, UsageError
from taskmerge.words.pattern_sets import PatternSet
from taskmerge.words.patterns import Pattern, PatternError

_MOST_SHOWN = 10


class Named(Protocol):
    """The components by tensor name, as patterns need them; `components.Components` is one."""

    def __getitem__(self, name: str) -> str: ...

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def values(self) -> Collection[str]:
        """Return the components."""

    def home(self, name: str) -> str:
        """Return the component of a tensor, or for a buffer the component that it belongs to."""

    def inner_name(self, name: str, component: str | None = None) -> str:
        """Return the name of a tensor inside its component."""


class Selector:
    """The tensors of one checkpoint, selected by patterns on their names and components."""

    def __init__(self, components: Named) -> None:
        self.components = components
        self._known: dict[str, tuple[str, ...]] = {}
        self._sets: dict[tuple[str, ...], PatternSet] = {}

    def matches(self, pattern: str, name: str) -> bool:
        """Return whether a pattern selects a tensor. Raises PatternError for a pattern that cannot be read."""
        glob, spellings = Pattern.parse(pattern), self._spellings(name)
        return pattern in spellings or any(glob.matches(spelling) for spelling in spellings)

    def naming(self, patterns: Iterable[str], name: str) -> set[str]:
        """Return the patterns that select a tensor, in one pass over all of them, because there may be very many.

        Raises PatternError for a pattern that cannot be read.
        """
        wanted = tuple(patterns)
        if wanted not in self._sets:
            self._sets[wanted] = PatternSet(wanted)
        known, spellings = self._sets[wanted], self._spellings(name)
        return known.among(spellings).union(*map(known.covering, spellings))

    def names(self, patterns: Iterable[str], among: Iterable[str] | None = None) -> list[str]:
        """Return the tensors that any of the patterns selects, in the order of `among` (default: file order, all)."""
        wanted = tuple(patterns)
        return [name for name in (self.components if among is None else among) if self.naming(wanted, name)]

    def check(
        self,
        patterns: Iterable[str],
        place: str | None,
        what: str,
        *,
        among: Collection[str] | None = None,
        of: str = "",
        also: Collection[str] = (),
    ) -> list[Problem]:
        """Return a problem for each pattern that selects nothing, with the nearest names.

        place: of the patterns.  what: the setting that they belong to ("copy: audio").  among: the tensors that
        count; left out: all.  of: whose they are, for the message.  also: names of other things allowed here.
        """
        names = self.components if among is None else among
        wanted = tuple(pattern for pattern in patterns if pattern not in also)
        idle = set(wanted)
        for name in names:
            if not idle:
                break
            idle -= self.naming(wanted, name)
        return [
            Problem(f"{what}: {pattern!r} matches no tensor{f' of {of}' if of else ''}", place,
                    self._nearest(pattern, names, also))
            for pattern in wanted
            if pattern in idle
        ]  # fmt: skip

    def require(self, patterns: Iterable[str], what: str, *, among: Collection[str], of: str) -> None:
        """Raise UsageError with the problems that `check` finds."""
        if problems := self.check(patterns, None, what, among=among, of=of):
            raise UsageError(problems)

    def _spellings(self, name: str) -> tuple[str, ...]:
        """All that a glob may match to name the tensor."""
        if name not in self._known:
            own = dict.fromkeys((self.components[name], self.components.home(name)))
            inside = [f"{component}.{self.components.inner_name(name, component)}" for component in own]
            self._known[name] = (*own, name, *inside)
        return self._known[name]

    def _nearest(self, pattern: str, names: Iterable[str], also: Iterable[str]) -> str:
        """A next move: the spellings most like the pattern; when none is, the components and `also`."""
        here = [name for name in names if name in self.components]
        parts = dict.fromkeys(part for name in here for part in (self.components.home(name), self.components[name]))
        known = {re.sub(r"\d+", "0", spelling): spelling for name in here for spelling in self._spellings(name)}
        return nearest_names(pattern, [*also, *parts], known.values())


def nearest_names(pattern: str, components: Iterable[str], names: Iterable[str] = ()) -> str:
    """Return a next move for a pattern that selects nothing: the most similar names, or the components."""
    parts = sorted(set(components))
    close = difflib.get_close_matches(pattern, [*parts, *set(names).difference(parts)], n=_MOST_SHOWN, cutoff=0.5)
    if not close:
        shown = ", ".join(parts[:_MOST_SHOWN]) + (", …" if len(parts) > _MOST_SHOWN else "")
        return f"components here: {shown or 'none'}"
    others = f"; similar names: {', '.join(close[1:])}" if len(close) > 1 else ""
    return f"did you mean {close[0]!r}?{others}"


def may_name(pattern: str, component: str) -> bool:
    """Return whether a pattern can select tensors of a component whose tensor names are not known yet.

    Globs over names may match anything; a pattern that begins with another component's name does not.
    """
    try:
        first = Pattern.parse(pattern.partition(".")[0])
    except PatternError:  # the dot is inside braces
        return True
    return first.matches(component)


def selected(patterns: Mapping[str, Iterable[str]], selector: Selector, name: str) -> str | None:
    """Return the first key with a pattern that selects the tensor; None without one."""
    found = selector.naming((glob for globs in patterns.values() for glob in globs), name)
    return next((key for key, globs in patterns.items() if found.intersection(globs)), None) if found else None
