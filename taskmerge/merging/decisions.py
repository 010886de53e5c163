"""The decision for each tensor: the rule that applies, the specialists that take part, the method and the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from taskmerge.checkpoints.components import EMBEDDINGS, is_token_table, layer_index
from taskmerge.checkpoints.lineage.alignment import Alignment
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.output.saving import stored_format
from taskmerge.checkpoints.state_dict import BASE
from taskmerge.errors import MergeError, Problem
from taskmerge.merging.agreement import Layers
from taskmerge.merging.inputs import Inputs
from taskmerge.merging.notes import pattern_of
from taskmerge.merging.steps import Action, Dropped, Source, TensorStep
from taskmerge.methods import MergeMethod
from taskmerge.recipes import Recipe, Rule, Settings, Standing, layer_depth

_QUOTE = "'"
Takes = Callable[[Census, str, str], bool]
Weighting = tuple[float | Fraction, ...]


@dataclass
class Decisions:
    """The decisions of a plan, tensor by tensor.

    fixed: tensors that are never merged, and why.  copied: those that the recipe copies -> (specialist, pattern).
    protected: the specialists that rules of `protect` name.  problems, warnings, dropped: of the whole plan; what is
    found is added to them.  methods: those that tensors are merged by.
    """

    recipe: Recipe
    inputs: Inputs
    alignment: Alignment
    dtype: str | None
    bare: bool
    takes: Takes | None
    fixed: Mapping[str, str]
    copied: Mapping[str, tuple[str, str]]
    protected: tuple[str, ...]
    problems: list[Problem]
    warnings: list[str]
    dropped: list[Dropped]
    methods: dict[str, MergeMethod] = field(default_factory=dict)
    _used: set[int] = field(default_factory=set)
    _naming: set[str] = field(default_factory=set)
    _settled: dict[tuple[int, tuple[str, ...], Standing], tuple[Settings, Weighting, Mapping[str, Any]]] = field(
        default_factory=dict
    )
    _tried: set[tuple[int, int, int, int]] = field(default_factory=set)
    _contested: dict[tuple[tuple[str, ...], str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.census = self.alignment.census

    @cached_property
    def layers(self) -> Layers:
        """The layers of the base."""
        return Layers(self.census.base.tensors)

    def _rule(self, name: str) -> Rule | None:
        naming = self.census.selector.naming(self._patterns, name)
        self._naming |= naming
        for number, rule in enumerate(self.recipe.merge.rules):
            if not naming.isdisjoint(rule.match) and naming.issuperset(rule.also):
                self._used.add(number)
                return rule
        return None

    @cached_property
    def _patterns(self) -> tuple[str, ...]:
        """All that rules name tensors by."""
        return tuple(pattern for rule in self.recipe.merge.rules for pattern in (*rule.match, *rule.also))

    def base_step(self, name: str) -> TensorStep | None:
        """Decide the step of a tensor that the base has; None if there is no such step."""
        rule = self._rule(name)
        if rule is not None and (rule.drop or rule.keep is not None):
            return self._ruled(name, rule, [BASE])
        if rule is None and name in self.copied:
            label, pattern = self.copied[name]
            self.layers.copied(name, label)
            return self._taken(name, label, f"copy {pattern!r}")
        models = [label for label in self._having(name, absent=True) if label not in self.inputs.deltas]
        having = self._having(name)
        found = self.census.misfits(name, [*models, *(label for label in having if label not in models)])
        if found:
            self.problems += found
            return None
        info = self.census.base.tensors[name]
        if name in self.fixed:
            return self._must_agree(name, self.fixed[name])
        if info.format.kind == "small_float":
            self._problem(
                f"{name!r} is {info.dtype}: such tensors are not merged, because their scales are unknown",
                f"dequantise the models first, or keep this tensor: rules: - {{match: {name!r}, keep: base}}",
            )
            return None
        if not info.format.mergeable:
            return self._must_agree(name, f"{info.dtype}: must agree in all inputs")
        return self._merged(name, rule)

    def _must_agree(self, name: str, reason: str) -> TensorStep | None:
        """The base's tensor, which no specialist may have changed: that is seen before anything is written."""
        everyone = tuple(Source(label, name) for label in self._having(name))
        if self.bare:
            if everyone and name in self.fixed:
                self._problem(f"{name!r} is {reason}: it has no task vector", f"leave it out: without({name!r})")
            return None
        step = self._step(name, "keep", reason, Source(BASE, name), everyone)
        return replace(step, info=self.census.base.tensors[name])

    def own_step(self, name: str, owners: list[str]) -> TensorStep | None:
        """Decide the step of a tensor that only specialists have; None if there is no such step."""
        rule = self._rule(name)
        owners = self._distinct([label for label in owners if self._takes(label, name)])
        if not owners:
            return None
        if rule is not None and rule.drop:
            return self._ruled(name, rule, owners)
        if self.layers.beyond(name, owners):
            return None
        if rule is not None and rule.keep is not None:
            return self._ruled(name, rule, owners)
        if name in self.copied:
            label, pattern = self.copied[name]
            return self._taken(name, label, f"copy {pattern!r}")
        moving = [label for label in owners if self._moves(label, name)]
        if moving:
            self._problem(
                f"{self.census.base.label} lacks {name!r}, which {' and '.join(moving)} changes",
                f"leave it out: rules: - {{match: {name!r}, drop: true}}; in Python: without({name!r})",
            )
            return None
        surplus = self.census.surplus(name, owners)
        if surplus is not None:
            self.dropped += [Dropped(Source(owner, name), surplus) for owner in owners]
            return None
        if len(owners) == 1:
            self.layers.copied(name, owners[0])
            return self._taken(name, owners[0], f"only {owners[0]} has it", named=False)
        self._contested.setdefault((tuple(owners), self.census.components.home(name)), []).append(name)
        return None

    def say_contested(self) -> None:
        """Report tensors that several specialists add under the same names: one problem per component."""
        for (owners, _), names in self._contested.items():
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            which = pattern_of(names, self.census)
            self._problem(
                f"{' and '.join(owners)} both have their own {names[0]!r}{more}, which the base lacks",
                f"choose one: copy: {{{owners[0]}: [{which}]}}, or a rule {{match: {which}, "
                f"keep: {owners[0]}}}; in Python: without({(which.strip(_QUOTE) if more else names[0])!r})",
            )

    def _moves(self, label: str, name: str) -> bool:
        """Whether what a specialist has of a tensor is a change, not a tensor that it brings."""
        own = self.inputs.deltas.get(label)
        base = self.alignment.own_bases.get(label)
        return (own is not None and name not in own) or (base is not None and name in base.tensors)

    def _distinct(self, owners: list[str]) -> list[str]:
        """One label for each model among the owners: a model may have several, with a weight each."""
        return list({id(self.inputs.state_dicts[label]): label for label in reversed(owners)}.values())[::-1]

    def _ruled(self, name: str, rule: Rule, owners: list[str]) -> TensorStep | None:
        if rule.keep is not None:
            return self._taken(name, rule.keep, _reason(rule))
        self.dropped += [Dropped(Source(owner, name), _reason(rule), True) for owner in owners]
        return None

    def _taken(self, name: str, label: str, reason: str, named: bool = True) -> TensorStep | None:
        inputs = self.census.inputs
        if name not in inputs[label].tensors:
            self._problem(
                f"{reason} takes {name!r} from {label}, which has no such tensor", "take it from another input"
            )
            return None
        self.dropped += [
            Dropped(Source(other, name), f"{reason}: taken from {label}", True)
            for other in inputs
            if other != label and name in inputs[other].tensors
        ]
        step = self._step(name, "keep" if label == BASE else "copy", reason, Source(label, name))
        return replace(step, as_is=named)

    def _merged(self, name: str, rule: Rule | None) -> TensorStep | None:
        reason = _reason(rule)
        having = self._having(name)
        if not having:
            lacking = self.census.absence(self.census.specialists[0], name) or "no task vector changes it"
            return self._unmoved(name, f"{reason}; {lacking}")
        settings, shares, options = self._settings(rule, tuple(having), self._standing(name))
        if not any(shares) and not self.bare and not self._sums_models(settings.method, shares, options, name):
            return self._unmoved(name, f"{reason}; every weight is 0")
        self.methods[settings.method.name] = settings.method
        sources = tuple(Source(label, name) for label in having)
        self._try_method(settings.method, shares, options, name, (rule or self.recipe.merge).place)
        shape = self.census.base.tensors[name].shape
        if settings.method.decomposes_matrices and self._is_token_table(name) and len(shape) == 2:
            self.warnings.append(settings.method.token_table_note(name, shape))
        return self._step(name, "merge", reason, Source(BASE, name), sources, shares, settings.method.name, options)

    def _settings(
        self, rule: Rule | None, having: tuple[str, ...], standing: Standing
    ) -> tuple[Settings, Weighting, Mapping[str, Any]]:
        """Method, weights and options of a tensor; found once for all in the same place, which may be very many."""
        key = id(rule), having, standing
        if key not in self._settled:
            settings = self.recipe.merge.settings(rule)
            weights = settings.weights(self.recipe.specialists, standing)
            shares = tuple(weights[label] for label in having)
            self._settled[key] = settings, shares, settings.resolved(having, standing)
        return self._settled[key]

    def _sums_models(self, method: MergeMethod, shares: Weighting, options: Mapping[str, Any], name: str) -> bool:
        """Whether the result is Σ w x even where every weight is 0: not the base, then."""
        try:
            program = method.program(shares, options, self.census.base.tensors[name].shape)
        except MergeError:
            return False
        return program is not None and program.base == "summed"

    def _is_token_table(self, name: str) -> bool:
        """Whether a tensor has one row a token: an embedding, or an output head."""
        return is_token_table(name) or name.split(".")[-2:] == ["lm_head", "weight"]

    def _unmoved(self, name: str, reason: str) -> TensorStep | None:
        return None if self.bare else self._step(name, "keep", reason, Source(BASE, name))

    def _try_method(
        self,
        method: MergeMethod,
        shares: Weighting,
        options: Mapping[str, Any],
        name: str,
        place: str,
    ) -> None:
        """Notes, once, what the method has against these weights and options."""
        key = id(method), id(shares), id(options), len(self.census.base.tensors[name].shape)
        if key in self._tried:  # what `_settings` found is kept, so that its id is
            return
        self._tried.add(key)
        try:
            method.program(shares, options, self.census.base.tensors[name].shape)
        except MergeError as error:
            found = [replace(problem, place=place) for problem in error.problems]
            self.problems += [problem for problem in found if problem not in self.problems]

    def _having(self, name: str, absent: bool = False) -> list[str]:
        """The specialists that have a say in a tensor; absent: also those that lack it."""
        return [
            label
            for label in self.census.specialists
            if (absent or name in self.census.inputs[label].tensors) and self._takes(label, name)
        ]

    def _takes(self, label: str, name: str) -> bool:
        return self.takes is None or self.takes(self.census, label, name)

    def _standing(self, name: str) -> Standing:
        """Where a gradient finds the tensor: its depth, first layer to last, in its own component."""
        index, component = layer_index(name), self.census.components[name]
        if index is None:
            return Standing(None, component == EMBEDDINGS)
        return Standing(layer_depth(index, self.census.components.depth(component)))

    def _step(
        self,
        name: str,
        action: Action,
        reason: str,
        source: Source,
        specialists: tuple[Source, ...] = (),
        weights: Weighting = (),
        method: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> TensorStep:
        info = stored_format(self.census.inputs[source.label].tensors[name], self.dtype)
        component = self.census.components[name]
        shielded = self.protected if action == "merge" and len(info.shape) == 2 else ()
        return TensorStep(
            info, component, action, reason, source, specialists, weights, method, options or {}, shielded,
            self._is_token_table(name),
        )  # fmt: skip

    def _problem(self, what: str, next_move: str, place: str | None = None) -> None:
        self.problems.append(Problem(what, place, next_move))

    def say_unused_rules(self) -> None:
        """Report rules that match no tensor as problems, and rules that never apply as warnings."""
        for number, rule in enumerate(self.recipe.merge.rules):
            idle = [pattern for pattern in (*rule.match, *rule.also) if pattern not in self._naming]
            dead = [] if rule.optional else self.census.selector.check(idle, rule.place, "rule")
            self.problems += dead
            if not (dead or rule.optional or number in self._used):
                self.warnings.append(
                    f"{rule.place}: {_reason(rule)} never applies: earlier rules match all its tensors"
                )


def _reason(rule: Rule | None) -> str:
    if rule is None:
        return "no rule matches it"
    return " and ".join([f"rule {', '.join(map(repr, rule.match))}", *map(repr, rule.also)])
