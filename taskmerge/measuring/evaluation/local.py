"""Retrieval on the user's own sets, every variant of a model side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np

from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_embedder
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.errors import Problem, UsageError
from taskmerge.metrics.bootstrap import Interval, mean_interval
from taskmerge.metrics.retrieval import METRICS, collapse, score_queries
from taskmerge.words.devices import device_or_default
from taskmerge.words.json_text import check_json

BATCH_SIZE = 32
DIRECTIONS = ("to_text", "from_text")
"""to_text: the item is to find its text among the distinct texts.  from_text: the text is to find any item that has it.
"""


@dataclass(frozen=True)
class RetrievalResult:
    """One variant on one set in one direction. intervals: by metric; queries, gallery: how many there were."""

    variant: str
    set_name: str
    modality: str
    direction: str
    queries: int
    gallery: int
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class EvaluationTable:
    """All results, in the order measured: variants within sets."""

    results: tuple[RetrievalResult, ...]

    def get(self, variant: str, set_name: str, metric: str = "recall_at_1", direction: str = "to_text") -> Interval:
        """One cell. Raises UsageError when it was not measured."""
        for row in self.results:
            if (row.variant, row.set_name, row.direction) == (variant, set_name, direction) and metric in row.intervals:
                return row.intervals[metric]
        raise UsageError(f"{metric} of {variant!r} on {set_name!r} ({direction}) was not measured")

    @property
    def variants(self) -> list[str]:
        return collapse([row.variant for row in self.results])[0]

    @property
    def sets(self) -> list[str]:
        return collapse([row.set_name for row in self.results])[0]

    def __add__(self, other: EvaluationTable) -> EvaluationTable:
        return EvaluationTable((*self.results, *other.results))

    def as_dict(self) -> dict[str, Any]:
        return {"results": [asdict(row) for row in self.results]}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> EvaluationTable:
        """The inverse of `as_dict`, for resumed runs. Raises CheckpointError for a table that is none."""
        found: EvaluationTable = check_json(table, cls, "an evaluation table")
        return found


class Evaluated(TypedDict, total=False):
    """What an evaluation gives: local retrieval, and variant -> mteb task -> score."""

    retrieval: EvaluationTable
    mteb: dict[str, dict[str, float]]


def evaluate_retrieval(
    variants: Mapping[str, Any],
    sets: Mapping[str, Any],
    *,
    batch_size: int = BATCH_SIZE,
    directions: Sequence[str] = DIRECTIONS,
    device: str | None = None,
) -> EvaluationTable:
    """Every variant on every set.

    variants: name -> what `open_embedder` takes, opened when its turn comes and let go after it.  sets: name -> what
    `read_pairs` takes. Equal texts are one text. A set of a modality that a variant does not take is left out of
    its rows (a text backbone hears nothing). Raises UsageError with all that is wrong about the sets before any model
    runs, and for a set that no variant takes: a single model is asked before it runs.
    """
    device = device_or_default(device)
    checked = _checked(sets)
    unknown = set(directions) - set(DIRECTIONS)
    if unknown:
        raise UsageError(f"unknown direction {sorted(unknown)}", next_move=f"known: {', '.join(DIRECTIONS)}")
    results: list[RetrievalResult] = []
    for variant, source in variants.items():
        embedder = open_embedder(source, device=device)
        if len(variants) == 1:
            _check_taken({name: pairs for name, pairs in checked.items() if pairs.modality not in embedder.modalities})
        for name, pairs in checked.items():
            if pairs.modality in embedder.modalities:
                results += _evaluate(variant, embedder, name, pairs, batch_size, directions)
    measured = {row.set_name for row in results}
    _check_taken({name: pairs for name, pairs in checked.items() if name not in measured})
    order = list(checked)
    return EvaluationTable(tuple(sorted(results, key=lambda row: order.index(row.set_name))))


def retrieval_results(
    items: np.ndarray, texts: np.ndarray, right: np.ndarray, directions: Sequence[str] = DIRECTIONS
) -> Iterator[tuple[str, int, int, dict[str, Interval]]]:
    """(direction, queries, gallery, metric -> interval) from embeddings: items (n, d), distinct texts (m, d), right
    (n,).
    """
    for direction in directions:
        if direction == "to_text":
            scores = score_queries(items, texts, [[row] for row in right])
            groups: Sequence[object] | None = right.tolist()
            counts = (len(items), len(texts))
        else:
            order = np.argsort(right, kind="stable")
            edges = np.searchsorted(right[order], np.arange(len(texts) + 1))
            owned = [order[start:stop].tolist() for start, stop in pairwise(edges)]
            scores, groups, counts = score_queries(texts, items, owned), None, (len(texts), len(items))
        yield direction, *counts, {metric: mean_interval(scores[metric], groups=groups) for metric in METRICS}


def _evaluate(
    variant: str, embedder: Embedder, name: str, pairs: Pairs, batch_size: int, directions: Sequence[str]
) -> list[RetrievalResult]:
    texts, right = collapse(pairs.texts)
    batches = (batch for batch, _ in pairs.batches(batch_size))
    items = np.concatenate([embedder.encode(batch, pairs.modality, batch_size=batch_size) for batch in batches])
    gallery = embedder.encode(texts, "text", batch_size=batch_size)
    return [
        RetrievalResult(variant, name, pairs.modality, direction, queries, size, intervals)
        for direction, queries, size, intervals in retrieval_results(items, gallery, right, directions)
    ]


def _check_taken(left: Mapping[str, Pairs]) -> None:
    """Raises UsageError for sets that no variant takes: nothing would be said of them."""
    move = "`taskmerge graft` attaches an encoder; leave the set out to measure the others"
    problems = [
        Problem(f"{name} holds {pairs.modality}, for which no model here has an encoder", pairs.source, move)
        for name, pairs in left.items()
    ]
    if problems:
        raise UsageError(problems)


def _checked(sets: Mapping[str, Any]) -> dict[str, Pairs]:
    problems: list[Problem] = []
    checked = {}
    for name, source in sets.items():
        try:
            pairs = read_pairs(source).check()
        except UsageError as error:
            for part in error.problems:
                problems.append(Problem(part.what, f"{name}: {part.place}" if part.place else name, part.next_move))
            continue
        if len(collapse(pairs.texts)[0]) < 2:
            problems.append(Problem("all items have the same text: nothing can be ranked", f"{name}: {pairs.source}"))
        checked[name] = pairs
    if not sets:
        problems.append(Problem("no set to evaluate on"))
    if problems:
        raise UsageError(problems)
    return checked
