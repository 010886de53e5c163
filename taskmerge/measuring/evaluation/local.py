"""Retrieval on the user's own sets, every variant of a model side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.declarations import COUNT, TEXTS, Listed, Mapped, Named, checked_arguments, optional
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.loading import open_to_measure
from taskmerge.embedders.pairs import Pairs, read_pairs
from taskmerge.embedders.prompts import ROLES, Role
from taskmerge.errors import Problem, UsageError
from taskmerge.measuring.evaluation.table import Condition, Difference, EvaluationTable, RetrievalResult
from taskmerge.metrics.bootstrap import Interval, mean_intervals
from taskmerge.metrics.retrieval import METRICS, QueryScores, score_queries
from taskmerge.words.devices import device_or_default
from taskmerge.words.precisions import precision_name

if TYPE_CHECKING:
    from taskmerge.embedders.takes import Model, PairSource, PromptSource


BATCH_SIZE = 32
DIRECTIONS = ("to_text", "from_text")
"""to_text: the item is the query, to find its text among the distinct texts.  from_text: the text is the query, to find
any item that has it."""
Groups = Sequence[object] | None
_Key = tuple[str, str, str, int | None]
"""(variant, set, direction, dimension)"""


@checked_arguments(
    variants=Named("models"), sets=Named("sets of pairs"), batch_size=COUNT, directions=TEXTS,
    dimensions=Listed(COUNT, empty=True), against=optional(Mapped(TEXTS)),
)  # fmt: skip
def evaluate_retrieval(
    variants: Mapping[str, Model],
    sets: Mapping[str, PairSource],
    *,
    batch_size: int = BATCH_SIZE,
    directions: Sequence[str] = DIRECTIONS,
    device: str | None = None,
    precision: str | None = None,
    prompts: PromptSource = None,
    dimensions: Sequence[int] = (),
    against: Mapping[str, Sequence[str]] | None = None,
) -> EvaluationTable:
    """Score every variant on every set.

    The searching side is embedded as queries and the other side as documents, each behind the prompt for that role, the
    model's own or the user's.

    Args:
        variants: name -> a model that `open_embedder` takes. Each is opened when it is scored, and released afterwards.
        sets: name -> pairs that `read_pairs` takes. Texts that differ only in spelling count as one text, see
            `Pairs.distinct`.
        batch_size: items per batch.
        directions: some of `DIRECTIONS`.
        device: device that the models run on; default: the CPU for a path, else the model's own device.
        precision: precision that the models run in, see `taskmerge.words.precisions`; default: their own. The table
            records it.
        prompts: prompts that replace the models' own, see `Embedder.prompted`.
        dimensions: lengths that embeddings are truncated to, each scored in addition to the full length (Matryoshka,
            arXiv 2205.13147).
        against: variant -> the variants that it is compared with, query by query; default: the previous one, and the
            first.

    Returns:
        All scores with intervals. A set of a modality that a variant does not take has no rows for that variant (a text
        backbone does not take audio).

    Raises:
        UsageError: with all problems of the sets, before any model runs; for dimensions that a model does not have; for
            a set that no variant takes (for a single model, before it runs).
    """
    device = device_or_default(device)
    checked = _checked(sets)
    _check_choices(variants, directions, against)
    scored: dict[_Key, _Scored] = {}
    conditions = []
    for variant, source in variants.items():
        embedder = open_to_measure(source, device=device, precision=precision).prompted(prompts)
        taken = {name: pairs for name, pairs in checked.items() if pairs.modality in embedder.modalities}
        if len(variants) == 1:
            _check_taken({name: pairs for name, pairs in checked.items() if name not in taken})
        for name, pairs in taken.items():
            own = embedder.prompted(None, name)
            conditions.append(_condition(variant, name, own, pairs, directions))
            for key, found in _score(own, pairs, batch_size, directions, dimensions):
                scored[variant, name, key[0], key[1]] = found
    measured = {name for _, name, _, _ in scored}
    _check_taken({name: pairs for name, pairs in checked.items() if name not in measured})
    return _table(list(variants), list(checked), scored, conditions, against)


@dataclass(frozen=True)
class _Scored:
    """The queries' own scores in one direction. groups: queries that are resampled together."""

    modality: str
    scores: QueryScores
    groups: Groups
    queries: int
    gallery: int

    def intervals(self) -> dict[str, Interval]:
        return mean_intervals({metric: self.scores[metric] for metric in METRICS}, groups=self.groups)

    def minus(self, other: _Scored) -> dict[str, Interval]:
        losses = {metric: self.scores[metric] - other.scores[metric] for metric in METRICS}
        return mean_intervals(losses, groups=self.groups)


def scores_both_ways(
    queries: Mapping[str, tuple[np.ndarray, np.ndarray]], right: np.ndarray, similarity: str = "cosine"
) -> Iterator[tuple[str, QueryScores, Groups, tuple[int, int]]]:
    """Yield (direction, scores of every query, groups, (queries, gallery)).

    queries: direction -> (items (n, d), distinct texts (m, d)) embedded for it.  right: (n,) text of each item.
    """
    for direction, (items, texts) in queries.items():
        if direction == "to_text":
            scores = score_queries(items, texts, [[row] for row in right], similarity=similarity)
            yield direction, scores, right.tolist(), (len(items), len(texts))
        else:
            order = np.argsort(right, kind="stable")
            edges = np.searchsorted(right[order], np.arange(len(texts) + 1))
            owned = [order[start:stop].tolist() for start, stop in pairwise(edges)]
            yield direction, score_queries(texts, items, owned, similarity=similarity), None, (len(texts), len(items))


def roles_of(direction: str) -> tuple[Role, Role]:
    """Return (role of the items, role of the texts): the searching side is the query."""
    return ("query", "document") if direction == "to_text" else ("document", "query")


def embed_roles(
    embedder: Embedder, pairs: Pairs, texts: Sequence[str], directions: Sequence[str], batch_size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Embed both sides for each direction: items (n, d), texts (m, d).

    Roles that a model embeds alike are embedded once, and items are decoded once.
    """
    wanted = [roles_of(direction) for direction in directions]
    item_roles = needed_roles(embedder, pairs.load(0, 1), pairs.modality, [roles[0] for roles in wanted])
    text_roles = needed_roles(embedder, texts[:1], "text", [roles[1] for roles in wanted])
    items: dict[Role, list[np.ndarray]] = {role: [] for role in item_roles.values()}
    for batch, _ in pairs.batches(batch_size):
        for role, rows in items.items():
            rows.append(embedder.encode(batch, pairs.modality, role, batch_size=batch_size))
    by_role = {role: np.concatenate(rows) for role, rows in items.items()}
    galleries = {
        role: embedder.encode(texts, "text", role, batch_size=batch_size) for role in dict.fromkeys(text_roles.values())
    }
    return {
        direction: (by_role[item_roles[item]], galleries[text_roles[text]])
        for direction, (item, text) in zip(directions, wanted, strict=True)
    }


def needed_roles(embedder: Embedder, sample: Sequence[Any], modality: str, roles: Sequence[Role]) -> dict[Role, Role]:
    """Map each role to the role that is run for it: one of them if a model embeds both alike."""
    same = len(set(roles)) > 1 and embedder.same_for_both_roles(sample, modality)
    return {role: roles[0] if same else role for role in roles}


def _score(
    embedder: Embedder, pairs: Pairs, batch_size: int, directions: Sequence[str], dimensions: Sequence[int]
) -> Iterator[tuple[tuple[str, int | None], _Scored]]:
    texts, right = pairs.distinct()
    if dimensions:
        _check_dimensions(embedder.label, embedder.encode(texts[:1], "text").shape[1], dimensions)
    embedded = embed_roles(embedder, pairs, texts, directions, batch_size)
    for dimension in (None, *dimensions):
        cut = {way: (items[:, :dimension], own[:, :dimension]) for way, (items, own) in embedded.items()}
        for direction, scores, groups, counts in scores_both_ways(cut, right, embedder.similarity):
            yield (direction, dimension), _Scored(pairs.modality, scores, groups, *counts)


def _condition(variant: str, name: str, embedder: Embedder, pairs: Pairs, directions: Sequence[str]) -> Condition:
    used = [roles_of(direction) for direction in directions]

    def before(modality: str, side: int) -> dict[str, str | None]:
        roles = [role for role in ROLES if role in {pair[side] for pair in used}]
        return {role: _said(embedder, role, modality) for role in roles}

    dtype = precision_name(embedder.dtype)
    spellings = len(set(pairs.texts)) - len(pairs.distinct()[0])
    return Condition(variant, name, before(pairs.modality, 0), before("text", 1), embedder.similarity, dtype, spellings)


def _said(embedder: Embedder, role: Role, modality: str) -> str | None:
    found = embedder.prompt(role, modality)
    return found if found is not None or not embedder.takes_prompts else ""


def _table(
    variants: Sequence[str],
    sets: Sequence[str],
    scored: Mapping[_Key, _Scored],
    conditions: Sequence[Condition],
    against: Mapping[str, Sequence[str]] | None,
) -> EvaluationTable:
    results, differences = [], []
    for (variant, name, direction, dimension), own in sorted(scored.items(), key=lambda row: sets.index(row[0][1])):
        counts = (own.modality, direction, own.queries, own.gallery)
        results.append(RetrievalResult(variant, name, *counts, own.intervals(), dimension))
        references = _neighbours(variants, variant) if against is None else against.get(variant, ())
        for reference in references:
            other = scored.get((reference, name, direction, dimension))
            if other is not None:
                found = own.minus(other)
                differences.append(Difference(variant, reference, name, direction, found, dimension))
    return EvaluationTable(tuple(results), tuple(differences), tuple(conditions))


def _neighbours(variants: Sequence[str], variant: str) -> list[str]:
    """The variant before it, and the first."""
    place = variants.index(variant)
    return list(dict.fromkeys([variants[place - 1], variants[0]])) if place else []


def _check_choices(
    variants: Mapping[str, Any],
    directions: Sequence[str],
    against: Mapping[str, Sequence[str]] | None,
) -> None:
    unknown = set(directions) - set(DIRECTIONS)
    if unknown or not directions:
        what = f"unknown direction {sorted(unknown)}" if unknown else "no direction to evaluate"
        raise UsageError(what, next_move=f"known: {', '.join(DIRECTIONS)}")
    strange = {name for variant, others in (against or {}).items() for name in (variant, *others)} - set(variants)
    if strange:
        raise UsageError(f"unknown variant {sorted(strange)[0]!r}", next_move=f"there are: {', '.join(variants)}")


def _check_dimensions(label: str, width: int, dimensions: Sequence[int]) -> None:
    if max(dimensions) > width:
        raise UsageError(
            f"{label}: embeddings have {width} dimensions and cannot be truncated to {max(dimensions)}",
            next_move=f"use dimensions of at most {width}",
        )


def _check_taken(left: Mapping[str, Pairs]) -> None:
    """Raises UsageError for sets that no variant takes: nothing would be said of them."""
    move = "`taskmerge graft` attaches an encoder; or leave out the set to measure the others"
    problems = [
        Problem(f"{name} contains {pairs.modality}, and none of the models has an encoder for it", pairs.source, move)
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
        if len(pairs.distinct()[0]) < 2:
            problems.append(
                Problem(
                    "all items have the same text: they cannot be ranked",
                    f"{name}: {pairs.source}",
                    "give pairs with at least two different texts",
                )
            )
        checked[name] = pairs
    if not sets:
        problems.append(Problem("there is no set to evaluate on", next_move="give at least one: {NAME: PAIRS}"))
    if problems:
        raise UsageError(problems)
    return checked
