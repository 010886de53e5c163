"""Objectives of a search, as a recipe writes them: `mean(retrieval.*.mrr)`, `retrieval.audio.recall_at_1`, `min(…)`.

A score's name is `retrieval.SET.METRIC`, an item searching its text; `retrieval.SET.METRIC.from_text`, a text searching
any of its items; or `agreement.SET`, the share of each item's nearest texts that are also nearest under the
specialist of that name. The last needs no pairs: it does not matter which text belongs to which item.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from taskmerge.errors import UsageError, did_you_mean
from taskmerge.metrics.retrieval import METRICS
from taskmerge.words.patterns import Pattern, PatternError

Reduction = Literal["mean", "min", "max", "geometric_mean"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "min", "max", "geometric_mean")
DIRECTIONS = ("to_text", "from_text")
RETRIEVAL, AGREEMENT = "retrieval", "agreement"
FAMILIES = (RETRIEVAL, AGREEMENT)
DEFAULT = "mean(retrieval.*.mrr)"
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\((.*)\)\Z", re.DOTALL)
_SPLIT = re.compile(r",(?![^{]*\})")
_FORM = "write mean(retrieval.*.mrr), min(retrieval.*.recall_at_1), retrieval.SET.mrr or mean(agreement.*)"


@dataclass(frozen=True)
class Objective:
    """A number made of scores. text: as written.  patterns: of the names of scores.  reduction: of those they name."""

    text: str
    reduction: Reduction
    patterns: tuple[str, ...]

    def names(self, known: Iterable[str]) -> list[str]:
        """Return the scores that it is made of, in the order of `known`."""
        return [name for name in known if any(Pattern.parse(pattern).matches(name) for pattern in self.patterns)]

    def of(self, scores: Mapping[str, Any]) -> Any:
        """Compute its value. scores: name -> number, or arrays of numbers of one shape, for which it is an array."""
        rows = np.stack([np.asarray(scores[name], dtype=np.float64) for name in self.names(scores)])
        if self.reduction == "geometric_mean":
            return np.exp(np.log(np.maximum(rows, 1e-12)).mean(axis=0))
        if self.reduction == "mean":
            return rows.mean(axis=0)
        return rows.min(axis=0) if self.reduction == "min" else rows.max(axis=0)

    def check(self, known: Iterable[str]) -> None:
        """Raise UsageError for a pattern that names no score, or a lone one that names several."""
        names = list(known)
        for pattern in self.patterns:
            if not any(Pattern.parse(pattern).matches(name) for name in names):
                raise UsageError(f"{self.text!r}: {pattern!r} matches no score", next_move=did_you_mean(pattern, names))
        if "(" not in self.text and len(found := self.names(names)) > 1:
            raise UsageError(f"{self.text!r} matches {len(found)} scores", next_move=f"write mean({self.text})")


def parse_objective(text: str, families: Sequence[str] = FAMILIES) -> Objective:
    """Read an objective.

    Args:
        text: as the user wrote it.
        families: what names of scores begin with; () for any.

    Raises:
        UsageError: saying what of it cannot be read.
    """
    call = _CALL.match(text.strip())
    name, inside = (call[1], call[2]) if call else ("mean", text.strip())
    if name not in REDUCTIONS:
        raise UsageError(f"{text!r}: unknown function {name!r}", next_move=did_you_mean(name, REDUCTIONS))
    patterns = tuple(part.strip() for part in _SPLIT.split(inside))
    if not all(patterns) or "(" in inside or ")" in inside:
        raise UsageError(f"{text!r} cannot be read", next_move=_FORM)
    for pattern in patterns:
        _check_pattern(text, pattern, families)
    return Objective(text.strip(), name, patterns)


def _check_pattern(text: str, pattern: str, families: Sequence[str]) -> None:
    try:
        Pattern.parse(pattern)
    except PatternError as error:
        raise UsageError(f"{text!r}: {error.problems[0].what}", next_move=_FORM) from None
    family = pattern.partition(".")[0]
    if families and family not in families and not set(family) & set("*?[{"):
        raise UsageError(f"{text!r}: there are no scores called {family!r}", next_move=did_you_mean(family, families))


def retrieval_name(set_name: str, metric: str, direction: str = "to_text") -> str:
    """Return the name of a retrieval score."""
    tail = "" if direction == "to_text" else f".{direction}"
    return f"{RETRIEVAL}.{set_name}.{metric}{tail}"


def score_names(sets: Iterable[str], with_specialist: Iterable[str]) -> list[str]:
    """Return every score of these sets. with_specialist: sets with the name of a specialist."""
    names = [retrieval_name(one, metric, way) for one in sets for way in DIRECTIONS for metric in METRICS]
    return names + [f"{AGREEMENT}.{one}" for one in with_specialist]
