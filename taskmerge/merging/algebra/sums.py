"""Sums of task vectors as plans: what `base + 0.3 * a + 0.5 * b` writes is planned as a fuse is, and rounded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count

from taskmerge.checkpoints.lineage.alignment import align_all
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.selector import Selector
from taskmerge.checkpoints.state_dict import BASE, StateDict
from taskmerge.merging.inputs import Inputs
from taskmerge.merging.plan import plan_aligned
from taskmerge.merging.steps import Plan
from taskmerge.recipes import Output, Recipe, Specialist


@dataclass(frozen=True)
class Part:
    """A choice of tensors. patterns: as in a rule. keep: whether what they name is taken, or all else."""

    patterns: tuple[str, ...]
    keep: bool


@dataclass(frozen=True)
class Term:
    """One model's task vector, times a factor. model: the specialist; with base None, deltas themselves, but for `own`.

    parts: only tensors that all of them take. adapter: whether the model is the base with an adapter. number: of the
    task vector among all that were made, the order in which terms are added whatever the order of writing.
    """

    model: StateDict
    base: StateDict | None
    factor: Fraction
    label: str
    parts: tuple[Part, ...] = ()
    adapter: bool = False
    own: frozenset[str] = frozenset()
    number: int = field(default_factory=count().__next__)

    def times(self, factor: Fraction) -> Term:
        """Return the same task vector, scaled."""
        return replace(self, factor=self.factor * factor)


def joined(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return the terms in the order of their task vectors; those of the same one are added up."""
    found: dict[tuple[int, int, tuple[Part, ...]], Term] = {}
    for term in terms:
        key = id(term.model), id(term.base), term.parts
        before = found.get(key)
        found[key] = term if before is None else replace(before, factor=before.factor + term.factor)
    return tuple(sorted(found.values(), key=lambda term: term.number))


def plan_sum(base: StateDict, terms: Sequence[Term], *, bare: bool = False, beside: Sequence[Term] = ()) -> Plan:
    """Return the plan of base + Σ factor · task vector.

    Args:
        base: the model that is moved.
        terms: the task vectors; one that was taken from another model than `base` keeps that model as its own base.
        bare: plan the sum of the task vectors alone, in float64.
        beside: task vectors that are only aligned with the others, so that token rows agree.

    Raises: MergeError when a tensor of one has no counterpart in the others.
    """
    labels = _labels([*terms, *beside])
    named = dict(zip(labels, [*terms, *(replace(term, factor=Fraction(0)) for term in beside)], strict=True))
    spectators = set(labels[len(terms) :])
    inputs = Inputs(
        {BASE: base, **{label: term.model for label, term in named.items()}},
        {label: term.base for label, term in named.items() if term.base is not None and not same(term.base, base)},
        {label: term.own for label, term in named.items() if term.base is None},
        frozenset(label for label, term in named.items() if term.adapter and same(term.base, base)),
    )
    alignment = align_all(inputs.state_dicts, own_bases=inputs.own_bases)
    selector = Selector(alignment.census.components)
    chosen = {
        label: [(frozenset(selector.names(part.patterns)), part.keep) for part in term.parts]
        for label, term in named.items()
    }

    def takes(census: Census, label: str, name: str) -> bool:
        return label not in spectators and all((name in names) == keep for names, keep in chosen[label])

    recipe = Recipe(
        base=base.label,
        specialists={label: Specialist(term.label, weight=term.factor) for label, term in named.items()},  # type: ignore[arg-type]
        output=Output(),
    )
    return plan_aligned(recipe, inputs, alignment, bare=bare, takes=takes)


def same(one: StateDict | None, two: StateDict) -> bool:
    """Return whether two state dicts are one model: the same object, or opened from the same files."""
    if one is None or one is two:
        return one is two
    files, others = ({name: file.path for name, file in state_dict.beside.files.items()} for state_dict in (one, two))
    return bool(files) and files == others and one.tensors == two.tensors


def _labels(terms: Sequence[Term]) -> list[str]:
    """Names of the terms in messages; a repeated name gets a number."""
    found: list[str] = []
    for term in terms:
        name, number = term.label, 2
        while name in (BASE, *found):
            name, number = f"{term.label} ({number})", number + 1
        found.append(name)
    return found
