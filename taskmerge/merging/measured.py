"""Measurements over the complete model, shared by several processes.

Each process counts in its own tensors, and the counts are summed. A round is one pass: its state is a note, and each
part adds its counts. A process that sees the counts of all parts adds them up and continues with the next state. All
processes get the same result.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, TypedDict

from taskmerge.checkpoints.output.notes import Notes, read_note, write_note
from taskmerge.errors import OutputError, few
from taskmerge.kernels import Bracket, Counts, ModelSearch
from taskmerge.merging.fused import FusedStateDict
from taskmerge.words.parts import Part

FOLDER = "measured"
AGAIN = "`fuse --measure --part …`, once for every part"


class Round(TypedDict):
    """Before a round: number, from 1; how many parts count in it; what is known so far."""

    number: int
    parts: int
    brackets: list[Bracket]


class Measured(NamedTuple):
    """The progress of the measurements over the complete model, and the next step as a sentence."""

    done: bool
    said: str


class Measuring:
    """The thresholds of one planned merge, found by several processes. notes: what they share."""

    def __init__(self, fused: FusedStateDict, notes: Notes) -> None:
        self._fused, self._notes = fused, notes
        self._thresholds = fused.thresholds

    @property
    def needed(self) -> bool:
        """True if the plan needs a measurement over the complete model."""
        return bool(self._thresholds.steps)

    def count(self, part: Part, tensors: Collection[str]) -> Measured:
        """Count in some of the output's tensors, unless that was done.

        Raises OutputError when the rounds that were begun are for another number of parts.
        """
        state = self._state(part)
        if state["parts"] != part.of:
            raise OutputError(
                f"measuring was started in {state['parts']} parts, not {part.of}", self._notes.place,
                f"run --measure --part i/{state['parts']}",
            )  # fmt: skip
        search = self._searching(state)
        name = f"{FOLDER}/{state['number']}/{part.number}-of-{part.of}.json"
        if not search.done and self._notes.read(name) is None:
            rows = {row for row, step in enumerate(self._thresholds.steps) if step.info.name in tensors}
            write_note(self._notes, name, search.scan(rows))
        now = self._state(part)
        if self._searching(now).done:
            return Measured(True, "all statistics of the complete model are known: write the parts now")
        if now["number"] > state["number"]:
            return Measured(False, f"round {now['number']} is needed: measure every part again")
        missing = self._missing(now)
        return Measured(False, f"measured; missing: part {few(f'{number}/{part.of}' for number in missing)}")

    def take(self) -> None:
        """Use what was found. Raises OutputError while it is not known, and says whose counts are missing."""
        if not self.needed:
            return
        known = self._latest()
        state = None if known is None else self._reduced(known)
        if state is None or not self._searching(state).done:
            what = "this recipe trims over the complete model, which has not been measured yet"
            if state is not None:
                missing = [f"{number}/{state['parts']}" for number in self._missing(state)]
                what = f"round {state['number']} of measuring lacks part {few(missing)}"
            raise OutputError(what, self._notes.place, AGAIN)
        self._thresholds.measured = self._searching(state)

    def _searching(self, state: Round) -> ModelSearch:
        search = self._thresholds.search
        search.go_on_from(state["brackets"])
        return search

    def _state(self, part: Part) -> Round:
        """The round that is open now; begins the first."""
        known = self._latest()
        if known is None:
            search = self._thresholds.search
            search.sample()
            known = {"number": 1, "parts": part.of, "brackets": search.brackets()}
            write_note(self._notes, f"{FOLDER}/1.json", known)
        return self._reduced(known)

    def _latest(self) -> Round | None:
        found: Round | None = None
        while True:
            number = 1 if found is None else found["number"] + 1
            later: Round | None = read_note(self._notes, f"{FOLDER}/{number}.json", Round)
            if later is None:
                return found
            found = later

    def _reduced(self, state: Round) -> Round:
        """The next state, once all parts have counted; the same before that."""
        while not self._searching(state).done:
            names = [f"{FOLDER}/{state['number']}/{i + 1}-of-{state['parts']}.json" for i in range(state["parts"])]
            found: list[list[Counts] | None] = [read_note(self._notes, name, list[Counts]) for name in names]
            parts = [counts for counts in found if counts is not None]
            if len(parts) < len(names):
                break
            search = self._searching(state)
            search.narrow(parts)
            state = {"number": state["number"] + 1, "parts": state["parts"], "brackets": search.brackets()}
            write_note(self._notes, f"{FOLDER}/{state['number']}.json", state)
        return state

    def _missing(self, state: Round) -> list[int]:
        names = set(self._notes.names(f"{FOLDER}/{state['number']}"))
        of = state["parts"]
        return [i for i in range(1, of + 1) if f"{FOLDER}/{state['number']}/{i}-of-{of}.json" not in names]
