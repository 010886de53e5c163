"""Conclusions: the model to use, and the next move, from measurements, else from the decisions of the stages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taskmerge.measuring.evaluation.table import Evaluated, EvaluationTable
from taskmerge.metrics.bootstrap import Interval
from taskmerge.reporting.content import Banner, Block, RangeChart, Section, Span, Tone
from taskmerge.reporting.evaluations import evaluated_sections
from taskmerge.words.statistics import title as title_of

DECIDING, DIRECTION = "mrr", "to_text"
MADE = ("fused", "recovered", "rehearsed")
"""Variants that the stages of a recipe make."""


@dataclass(frozen=True)
class Choice:
    """The variant with the highest mean over all sets, among those that take every set.

    better, worse: variants that it differs from beyond chance on some set. even: those it was compared with otherwise.
    """

    variant: str
    mean: float
    better: tuple[str, ...]
    worse: tuple[str, ...]
    even: tuple[str, ...]


def choose(table: EvaluationTable) -> Choice | None:
    """Choose by `DECIDING`; None where no variant was scored on every set."""
    scores: dict[str, dict[str, float]] = {}
    for row in table.results:
        if row.direction == DIRECTION and row.dimension is None:
            scores.setdefault(row.variant, {})[row.set_name] = row.intervals[DECIDING].estimate
    whole = {name: float(np.mean(list(own.values()))) for name, own in scores.items() if set(own) == set(table.sets)}
    if not whole:
        return None
    best = max(whole, key=whole.__getitem__)
    ups: dict[str, list[bool]] = {}
    for one in table.differences:
        if one.direction != DIRECTION or one.dimension is not None or best not in (one.variant, one.reference):
            continue
        sign = 1 if one.variant == best else -1
        found = one.intervals[DECIDING]
        other = one.reference if sign == 1 else one.variant
        ups.setdefault(other, [])
        if found.excludes(0):
            ups[other].append(sign * found.estimate > 0)
    return Choice(
        best,
        whole[best],
        tuple(name for name, found in ups.items() if True in found),
        tuple(name for name, found in ups.items() if False in found),
        tuple(name for name, found in ups.items() if not found),
    )


def evaluation_page(evaluated: Evaluated, places: Mapping[str, str] | None = None) -> list[Section]:
    """Return the sections of an evaluation, first the model to use. places: variant -> folder, if known."""
    table = evaluated.get("retrieval")
    verdict = [Section("Verdict", tuple(evaluation_verdict(evaluated, places or {})))]
    if table is None:
        return [*verdict, *evaluated_sections(evaluated)]
    return [*verdict, Section("Side by side", tuple(_ranges(table))), *evaluated_sections(evaluated)]


def evaluation_verdict(evaluated: Evaluated, places: Mapping[str, str]) -> list[Banner]:
    """Return the best variant, and the variants that it is significantly better than."""
    if "retrieval" not in evaluated:
        means = _mteb_means(evaluated)
        if len(means) < 2:
            return [Banner("plain", f"{name}: mean {mean:.4f} over mteb's tasks", "") for name, mean in means.items()]
        best = max(means, key=means.__getitem__)
        said = "The mean over the tasks that all variants ran; the paired differences show what is beyond chance."
        return [Banner("open", f"Highest on mteb: {best}, mean {means[best]:.4f}{_at(best, places)}", said)]
    table = evaluated["retrieval"]
    found = choose(table)
    if found is None:
        said = "No variant supports all sets. The best score on each set is bold below."
        return [Banner("open", "No single model supports all of these sets", said)]
    sets = ", ".join(table.sets)
    if len(table.variants) == 1:
        move = "`taskmerge evaluate RECIPE` also scores its base and specialists, query by query"
        head = f"{found.variant}: {title_of(DECIDING)} {found.mean:.3f} over {sets}"
        return [
            Banner(
                "plain", head, "Only one model was scored: compare it with others to see whether this is good.", [move]
            )
        ]
    tone, said = _sure(found)
    use = "Use" if tone == "good" else "Highest score, but not certainly the best:"
    head = f"{use} {found.variant}: mean {title_of(DECIDING)} {found.mean:.3f} over {sets}{_at(found.variant, places)}"
    place = places.get(found.variant) if tone == "good" and found.variant in MADE else None
    moves = [] if place is None else [f"taskmerge push {shlex.quote(place)} owner/name --dry-run"]
    return [Banner(tone, head, said, moves)]


def _sure(found: Choice) -> tuple[Tone, str]:
    said = []
    if found.better:
        said.append(f"Better than {', '.join(found.better)} beyond chance on at least one set.")
    if found.worse:
        said.append(f"Worse than {', '.join(found.worse)} beyond chance on at least one set.")
    if found.even:
        said.append(f"Not distinguishable from {', '.join(found.even)}: more pairs would decide.")
    tone: Tone = "open" if found.worse or not found.better else "good"
    return tone, " ".join(said) or "It was not compared with another variant query by query."


def _at(variant: str, places: Mapping[str, str]) -> str:
    return f" ({shlex.quote(places[variant])})" if variant in places else ""


def _mteb_means(evaluated: Evaluated) -> dict[str, float]:
    scores = evaluated["mteb"].scores if "mteb" in evaluated else {}
    shared = set.intersection(*(set(own) for own in scores.values())) if scores else set()
    return {name: float(np.mean([own[task] for task in shared])) for name, own in scores.items()} if shared else {}


def _ranges(table: EvaluationTable) -> list[Block]:
    """For each set every variant's score with its interval, then the paired differences."""
    blocks: list[Block] = []
    for name in table.sets:
        rows = [row for row in table.results if (row.set_name, row.direction, row.dimension) == (name, DIRECTION, None)]
        spans = [Span(row.variant, *_ends(row.intervals[DECIDING])) for row in rows]
        title = f"{title_of(DECIDING)} on {name}, item to text"
        blocks.append(RangeChart(title, spans, "Means with 95 % bootstrap intervals over the queries."))
        pairs = [
            Span(f"{one.variant} − {one.reference}", *_ends(one.intervals[DECIDING]))
            for one in table.differences
            if (one.set_name, one.direction, one.dimension) == (name, DIRECTION, None)
        ]
        note = "Differences on the same queries; an interval that contains zero shows no difference beyond chance."
        blocks.append(RangeChart(f"{title_of(DECIDING)} on {name}: paired differences", pairs, note, zero=True))
    return blocks


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high
