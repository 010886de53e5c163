"""Recipe -> Plan: every check of a merge, from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.components import BACKBONE, EMBEDDINGS, layer_index
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.lineage.grafts import naming
from taskmerge.checkpoints.lineage.modules import check_modules
from taskmerge.checkpoints.lineage.names import align
from taskmerge.checkpoints.lineage.tokenizers import Rows
from taskmerge.checkpoints.lineage.vocabulary import match_tokens
from taskmerge.checkpoints.output.layout import lay_out, natural
from taskmerge.checkpoints.output.saving import stored_format
from taskmerge.checkpoints.weights import Weights
from taskmerge.errors import MergeError, Problem, RecipeError
from taskmerge.merging.covariances import missing, protected_specialists
from taskmerge.merging.inputs import open_inputs
from taskmerge.merging.steps import BASE, Action, Dropped, Plan, Source, TensorStep
from taskmerge.methods import MergeMethod
from taskmerge.recipes import Recipe, Rule, Standing, layer_depth

_MOST_PROBLEMS = 50


def plan(recipe: Recipe, inputs: Mapping[str, Weights] | None = None) -> Plan:
    """Decides what becomes of every tensor. Reads headers and configs; no tensor.

    inputs: the base (under "base") and the specialists when they are already open, e.g. in memory.
    Raises RecipeError, MergeError or CheckpointError with every problem found.
    """
    opened = dict(inputs) if inputs is not None else open_inputs(recipe)
    overrides = {name: list(globs) for name, globs in recipe.components.items()}
    empty = [Problem("holds no tensors", weights.label) for weights in opened.values() if not weights.tensors]
    if empty:
        raise MergeError(empty)
    check_modules(opened, BASE)
    names_of = naming(opened)
    named = {
        label: weights if label == names_of else align(opened[names_of], weights, overrides).weights
        for label, weights in opened.items()
    }
    named, rows = match_tokens(named, recipe.output.tokenizer)
    dtype = recipe.output.dtype or getattr(opened[BASE], "output_dtype", None)
    return _Planner(recipe, Census.of(named, recipe.components, names_of), rows, dtype).plan()


@dataclass
class _Planner:
    """One planning run: collects steps and problems."""

    recipe: Recipe
    census: Census
    rows: Rows | None = None
    dtype: str | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    methods: dict[str, MergeMethod] = field(default_factory=dict)
    copied: dict[str, tuple[str, str]] = field(default_factory=dict)
    protected: tuple[str, ...] = ()

    def plan(self) -> Plan:
        census, recipe = self.census, self.recipe
        self.copied = census.copied(recipe.copy or {}, recipe.place, self.problems)
        merge = recipe.merge
        self.protected = tuple(protected_specialists(census, merge.protect, merge.place, self.problems))
        self.problems += missing(census.inputs, self.protected, "protect", merge.place)
        decided = [self._base_step(name) for name in census.base.tensors]
        decided += [self._own_step(name, owners) for name, owners in census.own.items()]
        self._unused_rules()
        self._tokens_left_out()
        self._layers()
        self._covariances()
        if self.problems:
            said_by_recipe = all(problem.place is not None for problem in self.problems)
            raise (RecipeError if said_by_recipe else MergeError)(self.problems[:_MOST_PROBLEMS])
        steps = sorted((step for step in decided if step is not None), key=lambda step: natural(step.info.name))
        parts = census.parts
        return Plan(
            inputs=census.inputs,
            steps=tuple(steps),
            dropped=tuple(self.dropped),
            methods=self.methods,
            shards=tuple(lay_out([step.info for step in steps], recipe.output.shard_size, parts)),
            parts=parts,
            config=census.config,
            side_folders=census.side_folders,
            tokenizer_folder=self._tokenizer_folder(),
            texts=self.rows.texts if self.rows else {},
            seed=recipe.seed,
            protect_energy=merge.protect_energy,
            warnings=tuple(self.warnings),
        )

    def _tokenizer_folder(self) -> Path | None:
        if self.rows is not None:
            return self.rows.folder
        chosen = self.census.inputs.get(self.recipe.output.tokenizer)
        return getattr(chosen, "folder", None)

    def _rule(self, name: str) -> Rule | None:
        for number, rule in enumerate(self.recipe.merge.rules):
            if any(self.census.selects(pattern, name) for pattern in rule.match):
                self.used.add(number)
                return rule
        return None

    def _base_step(self, name: str) -> TensorStep | None:
        rule = self._rule(name)
        if rule is not None and (rule.drop or rule.keep is not None):
            return self._ruled(name, rule, [BASE])
        if rule is None and name in self.copied:
            label, pattern = self.copied[name]
            return self._taken(name, label, f"copy {pattern!r}")
        if not self._fits(name):
            return None
        info = self.census.base.tensors[name]
        if info.format.kind == "small_float":
            self._problem(
                f"{name!r} is {info.dtype}: such tensors are not merged, their scales are not known here",
                f"dequantise the models first, or keep it: rules: - {{match: {name!r}, keep: base}}",
            )
            return None
        if not info.format.mergeable:
            everyone = tuple(Source(label, name) for label in self._having(name))
            return self._step(name, "keep", f"{info.dtype}: must agree in all inputs", Source(BASE, name), everyone)
        return self._merged(name, rule)

    def _own_step(self, name: str, owners: list[str]) -> TensorStep | None:
        rule = self._rule(name)
        if rule is not None and (rule.drop or rule.keep is not None):
            return self._ruled(name, rule, owners)
        if name in self.copied:
            label, pattern = self.copied[name]
            return self._taken(name, label, f"copy {pattern!r}")
        untied = self.census.untied_head(name, owners)
        if untied is not None:
            self._problem(
                f"{untied} has a head of its own ({name!r}), the base ties its head to its token table",
                f"untie the base, or give it up: rules: - {{match: {name!r}, drop: true}}",
            )
            return None
        surplus = self.census.surplus(name, owners)
        if surplus is not None:
            self.dropped += [Dropped(Source(owner, name), surplus) for owner in owners]
            return None
        if len(owners) == 1:
            return self._taken(name, owners[0], f"only {owners[0]} has it", named=False)
        self._problem(
            f"{' and '.join(owners)} both bring their own {name!r}, which the base lacks",
            f"say whose: copy: {{{owners[0]}: [{self.census.components[name]}]}}, "
            f"or a rule {{match: {name!r}, keep: {owners[0]}}}",
        )
        return None

    def _ruled(self, name: str, rule: Rule, owners: list[str]) -> TensorStep | None:
        if rule.keep is not None:
            return self._taken(name, rule.keep, _said(rule))
        self.dropped += [Dropped(Source(owner, name), _said(rule)) for owner in owners]
        return None

    def _taken(self, name: str, label: str, said: str, named: bool = True) -> TensorStep | None:
        inputs = self.census.inputs
        if name not in inputs[label].tensors:
            self._problem(f"{said} takes {name!r} from {label}, which has no such tensor", "take another input's")
            return None
        self.dropped += [
            Dropped(Source(other, name), f"{said}: taken from {label}")
            for other in inputs
            if other != label and name in inputs[other].tensors
        ]
        step = self._step(name, "keep" if label == BASE else "copy", said, Source(label, name))
        return replace(step, as_is=named)

    def _merged(self, name: str, rule: Rule | None) -> TensorStep:
        settings = self.recipe.merge.settings(rule)
        said = _said(rule)
        standing = self._standing(name)
        weights = settings.weights(self.recipe.specialists, standing)
        having = self._having(name)
        if not having:
            lacking = self.census.absence(self.census.specialists[0], name)
            return self._step(name, "keep", f"{said}; {lacking}", Source(BASE, name))
        active = [label for label, weight in weights.items() if weight != 0 and label in having]
        if not active:
            return self._step(name, "keep", f"{said}; every weight is 0", Source(BASE, name))
        self.methods[settings.method.name] = settings.method
        sources = tuple(Source(label, name) for label in active)
        shares = tuple(weights[label] for label in active)
        options = settings.resolved(active, standing)
        self._try_method(settings.method, shares, options, name, (rule or self.recipe.merge).place)
        return self._step(name, "merge", said, Source(BASE, name), sources, shares, settings.method.name, options)

    def _try_method(
        self, method: MergeMethod, shares: tuple[float, ...], options: Mapping[str, Any], name: str, place: str
    ) -> None:
        """Notes, once, what the method has against these weights and options."""
        try:
            method.program(shares, options, self.census.base.tensors[name].shape)
        except MergeError as error:
            found = [replace(problem, place=place) for problem in error.problems]
            self.problems += [problem for problem in found if problem not in self.problems]

    def _having(self, name: str) -> list[str]:
        return [label for label in self.census.specialists if name in self.census.inputs[label].tensors]

    def _standing(self, name: str) -> Standing:
        """Where a gradient finds the tensor: its depth, first layer to last, in its own component."""
        index, component = layer_index(name), self.census.components[name]
        if index is None:
            return Standing(None, component == EMBEDDINGS)
        return Standing(layer_depth(index, self.census.components.depth(component)))

    def _fits(self, name: str) -> bool:
        """Whether every specialist has the tensor in the base's shape; notes the problem when one does not."""
        info = self.census.base.tensors[name]
        advice = f"is it the same lineage? A rule keeps one side: - {{match: {name!r}, keep: base}}"
        fits = True
        for label in self.census.specialists:
            weights = self.census.inputs[label]
            other = weights.tensors.get(name)
            if other is None:
                if self.census.absence(label, name):
                    continue
                self._problem(f"{label} ({weights.label}) lacks the base's tensor {name!r}", advice)
            elif other.shape != info.shape:
                self._problem(
                    f"{name!r} is {list(info.shape)} in the base ({self.census.base.label}) and {list(other.shape)} "
                    f"in {label} ({weights.label})",
                    advice,
                )
            elif other.format.mergeable != info.format.mergeable:
                self._problem(f"{name!r} is {info.dtype} in the base and {other.dtype} in {label}", advice)
            else:
                continue
            fits = False
        return fits

    def _step(
        self,
        name: str,
        action: Action,
        said: str,
        source: Source,
        specialists: tuple[Source, ...] = (),
        weights: tuple[float, ...] = (),
        method: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> TensorStep:
        info = stored_format(self.census.inputs[source.label].tensors[name], self.dtype)
        component = self.census.components[name]
        shielded = self.protected if action == "merge" and len(info.shape) == 2 else ()
        return TensorStep(info, component, action, said, source, specialists, weights, method, options or {}, shielded)

    def _problem(self, what: str, next_move: str, place: str | None = None) -> None:
        self.problems.append(Problem(what, place, next_move))

    def _covariances(self) -> None:
        for method in self.methods.values():
            if "covariances" in method.inputs:
                self.problems += missing(
                    self.census.inputs, self.census.specialists, f"the method {method.name}", self.recipe.merge.place
                )

    def _layers(self) -> None:
        wanted, found = self.recipe.layers, self.census.components.depth(BACKBONE)
        if wanted is not None and found != wanted:
            self._problem(
                f"the recipe is for a model of {wanted} layers; {self.census.base.label} has {found}",
                "take as many layers as the model has (taskmerge merges whole models)",
                self.recipe.place,
            )

    def _tokens_left_out(self) -> None:
        for label, tokens in (self.rows.left_out if self.rows else {}).items():
            some = ", ".join(map(repr, tokens[:3])) + (", …" if len(tokens) > 3 else "")
            self.warnings.append(f"tokens of {label} without a row in the output: {len(tokens)} ({some})")

    def _unused_rules(self) -> None:
        for number, rule in enumerate(self.recipe.merge.rules):
            if number in self.used or rule.optional:
                continue
            if any(self.census.selects(pattern, name) for pattern in rule.match for name in self.census.components):
                self.warnings.append(f"{rule.place}: {_said(rule)} never applies: earlier rules take all it names")
            else:
                first = rule.match[0]
                self._problem(f"{_said(rule)} names no tensor", self.census.nearest(first), rule.place)


def _said(rule: Rule | None) -> str:
    if rule is None:
        return "no rule names it"
    return f"rule {', '.join(map(repr, rule.match))}"
