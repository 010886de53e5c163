"""Findings while a mergekit configuration is read: settings that cannot be translated, are ignored or assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskmerge.declarations import At
from taskmerge.errors import Problem, clipped, did_you_mean


@dataclass
class Findings:
    """problems: what is refused.  notes: sentences for the user, each with its place."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, what: str, place: str, move: str | None = None) -> None:
        """Something that cannot be done."""
        self.problems.append(Problem(what, place, move))

    def note(self, what: str, place: str) -> None:
        """Something that is done, but perhaps not as its writer thinks."""
        said = f"{place}: {what}"
        if said not in self.notes:
            self.notes.append(said)

    def ignored(self, value: Mapping[str, Any], known: Collection[str], at: At) -> None:
        """Add a note for every key that mergekit does not read."""
        for key in value:
            if key not in known:
                near = did_you_mean(str(key), known)
                hint = f" ({near})" if near.startswith("did you mean") else ""
                where = f"in {at.dotted}" if at.path else "at the top level"
                shown = clipped(repr(key), 100)
                self.note(f"{shown} {where} is ignored, as mergekit ignores it{hint}", at.child(key).place)
