"""The `merge` section: a method, its parameters next to it, and rules for tensors with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Annotated, Any, Literal

from taskmerge.declarations import BAD, At, Between, Doc, Gradient, Parameter, fields_of, place_field, read_mapping
from taskmerge.errors import Problem, UsageError
from taskmerge.methods import MergeMethod, find_method
from taskmerge.methods.weighting import weighed_by_metagpt
from taskmerge.recipes.depth import Standing, at_depth
from taskmerge.recipes.method_schema import by_method
from taskmerge.recipes.sections import BaseOrSpecialist, GradedNumber, NamePattern, Specialist, SpecialistName

GradedWeight = Annotated[GradedNumber, Gradient()]
Weight = GradedWeight | Mapping[SpecialistName, GradedWeight] | Literal["metagpt"]
"""One weight for all specialists, one for each named, or weights found from the task vectors' norms (MetaGPT)."""

_filled = {"filled": "options"}


@dataclass(frozen=True)
class Rule:
    """The treatment of the tensors that match; the first rule that matches a tensor applies.

    options: the method's parameters next to `match`.  merge_method: the method itself, None where the rule
    does not merge (keep, drop).
    """

    match: Annotated[
        tuple[NamePattern, ...], Doc("name patterns; each may begin with a component: `backbone.layers.{0..7}.*`")
    ]
    also: Annotated[tuple[NamePattern, ...], Doc("name patterns that must all match as well: `also: ['*.mlp.*']`")] = ()
    keep: Annotated[
        BaseOrSpecialist | None, Doc("copy the tensors from `base` or from the specialist of this name without merging")
    ] = None
    drop: Annotated[bool, Doc("leave the tensors out of the output")] = False
    method: Annotated[str | None, Doc("a different merge method")] = None
    weight: Annotated[Weight | None, Doc("different weights: one for all specialists, or by name")] = None
    optional: Annotated[bool, Doc("allow the rule to match nothing, which is an error otherwise")] = False
    options: Mapping[str, Any] = field(default_factory=dict, metadata=_filled)
    merge_method: MergeMethod | None = field(default=None, compare=False, repr=False, metadata=_filled)
    place: str = place_field()


@dataclass(frozen=True)
class Merge:
    """The merge method, its parameters and its rules.

    options: the method's parameters as given (numbers may be gradients over depth).  merge_method: the method itself.
    """

    method: Annotated[str, Doc("name of a merge method, or path/to/file.py:name")] = "task_arithmetic"
    weight: Annotated[Weight | None, Doc("weights that replace the specialists' own")] = None
    rules: Annotated[
        tuple[Rule, ...], Doc("exceptions for some tensors; the first rule that matches a tensor applies")
    ] = ()
    protect: Annotated[
        tuple[NamePattern, ...],
        Doc(
            "components (`audio_projector`) whose token directions are removed from the other task vectors "
            "before merging"
        ),
    ] = ()
    protect_energy: Annotated[
        float, Between(0, 1), Doc("the share of those tokens' energy that the protected directions cover")
    ] = 0.9
    edges: Annotated[
        Literal["ends", "first"],
        Doc(
            "the value of a gradient for tensors outside the layers: the first for embeddings and the last "
            "for others, or the first for all (as mergekit does)"
        ),
    ] = "ends"
    options: Mapping[str, Any] = field(default_factory=dict, metadata=_filled)
    merge_method: MergeMethod | None = field(default=None, compare=False, repr=False, metadata=_filled)
    place: str = place_field()

    def settings(self, rule: Rule | None = None) -> Settings:
        """Method, options (defaults filled in) and weights that hold under a rule, or where no rule matches."""
        method = (rule.merge_method if rule else None) or self.merge_method or find_method(self.method)
        own = rule is not None and rule.method is not None
        given = {**({} if own else self.options), **(rule.options if rule else {})}
        weight = self.weight if rule is None or rule.weight is None else rule.weight
        below = self.weight if isinstance(weight, Mapping) and weight is not self.weight else None
        if isinstance(weight, str):
            method, weight = weighed_by_metagpt(method), None
        return Settings(
            method, {**method.defaults, **given}, weight, None if isinstance(below, str) else below, self.edges
        )

    @classmethod
    def read_section(cls, value: Mapping[str, Any], at: At, problems: list[Problem]) -> Any:
        """Return a Merge from its mapping; see `taskmerge.declarations.Section`."""
        before = len(problems)
        method = _method(value.get("method", cls.method), at.child("method"), problems)
        parameters = () if method is None else method.recipe_parameters
        plain = {key: entry for key, entry in value.items() if key != "rules"}
        read = _read(plain, fields_of(cls), parameters, at, problems, tolerant=method is None)
        rules = _rules(value.get("rules"), method, at.child("rules"), problems)
        if len(problems) > before:
            return BAD
        options = {row.name: read.pop(row.name) for row in parameters if row.name in read}
        return cls(**read, rules=rules, options=options, merge_method=method, place=at.place)

    @classmethod
    def section_schema(cls) -> dict[str, Any]:
        """JSON Schema of the section: each built-in method with its own parameters."""
        rules = {"type": "array", "items": by_method(fields_of(Rule), "method", required=("match",), partial=True)}
        return by_method(fields_of(cls), "method", replaced={"rules": rules}, default=cls.method)


@dataclass(frozen=True)
class Settings:
    """The settings for the tensors of one rule, gradients not yet resolved. options: every parameter of the method.

    weight: replaces the specialists' own weights; None to keep them (or if the method computes its own).
    section_weight: for the specialists that a rule's weights do not name, in preference to their own.
    """

    method: MergeMethod
    options: Mapping[str, Any]
    weight: GradedNumber | Mapping[str, GradedNumber] | None
    section_weight: GradedNumber | Mapping[str, GradedNumber] | None = None
    edges: str = "ends"

    def weights(self, specialists: Mapping[str, Specialist], standing: Standing) -> dict[str, float | Fraction]:
        """Return each specialist's weight for a tensor at this place."""
        weights: dict[str, float | Fraction] = {}
        for name, specialist in specialists.items():
            found = (_of(self.weight, name), _of(self.section_weight, name), specialist.weight)
            weights[name] = self._at(next(weight for weight in found if weight is not None), standing)
        return weights

    def resolved(self, active: Sequence[str], standing: Standing) -> dict[str, Any]:
        """Return the method's options for a tensor at this place: a number, or one per active specialist."""
        return {name: self._option(name, value, active, standing) for name, value in self.options.items()}

    def _option(self, name: str, value: Any, active: Sequence[str], standing: Standing) -> Any:
        if not isinstance(value, Mapping):
            return self._at(value, standing)
        default = self.method.defaults.get(name)
        each = tuple(self._at(value.get(label, default), standing) for label in active)
        return each[0] if len(set(each)) == 1 else each

    def _at(self, value: Any, standing: Standing) -> Any:
        if not isinstance(value, tuple):
            return value
        if standing.depth is not None:
            return at_depth(value, standing.depth)
        return value[0] if standing.embeddings or self.edges == "first" else value[-1]


def _of(weight: GradedNumber | Mapping[str, GradedNumber] | None, name: str) -> GradedNumber | None:
    """What a weight, one for all or by name, says of one specialist."""
    return weight.get(name) if isinstance(weight, Mapping) else weight


def _method(name: Any, at: At, problems: list[Problem]) -> MergeMethod | None:
    if not isinstance(name, str):
        return None
    try:
        return find_method(name, at.folder)
    except UsageError as error:
        problems.extend(_placed(error.problems, at))
        return None


def _placed(found: Sequence[Problem], at: At) -> Iterator[Problem]:
    for problem in found:
        what = f"{problem.what} ({problem.place})" if problem.place else problem.what
        yield Problem(what, at.place, problem.next_move)


def _read(
    value: Mapping[str, Any],
    own: Sequence[Parameter],
    parameters: Sequence[Parameter],
    at: At,
    problems: list[Problem],
    tolerant: bool,
) -> dict[str, Any]:
    """tolerant: the method is not known, so what could be one of its parameters is not judged."""
    if tolerant:
        names = {row.name for row in own}
        value = {key: entry for key, entry in value.items() if key in names}
    return read_mapping(value, [*own, *parameters], at, problems)


def _rules(value: Any, merge: MergeMethod | None, at: At, problems: list[Problem]) -> tuple[Rule, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        shown = "a mapping" if isinstance(value, Mapping) else repr(value)
        problems.append(Problem(f"rules must be a list, not {shown}", at.place, "begin each rule with `- match:`"))
        return ()
    return tuple(_rule(entry, merge, at.child(index), problems) for index, entry in enumerate(value))


def _rule(value: Any, merge: MergeMethod | None, at: At, problems: list[Problem]) -> Rule:
    if not isinstance(value, Mapping):
        problems.append(
            Problem(
                f"{at.name} must be a mapping with `match`, not {value!r}", at.place, "begin each rule with `- match:`"
            )
        )
        return Rule(())
    given = value.get("method")
    method = merge if given is None else _method(given, at.child("method"), problems)
    parameters = () if method is None else method.recipe_parameters
    if given is None:
        parameters = tuple(_optional(row) for row in parameters)
    before = len(problems)
    read = _read(value, fields_of(Rule), parameters, at, problems, tolerant=method is None)
    if len(problems) > before:
        return Rule(())
    options = {row.name: read.pop(row.name) for row in parameters if row.name in read}
    merges = read.get("keep") is None and not read.get("drop")
    rule = Rule(**read, options=options, merge_method=method if merges else None, place=at.place)
    problems.extend(_contradictions(rule, value, at))
    return rule


def _optional(row: Parameter) -> Parameter:
    return Parameter(row.name, row.kind, None, row.doc) if row.required else row


def _contradictions(rule: Rule, value: Mapping[str, Any], at: At) -> Iterator[Problem]:
    ways = [f"keep: {rule.keep}"] if rule.keep is not None else []
    ways += ["drop: true"] if rule.drop else []
    merging = [key for key in value if key not in ("match", "also", "keep", "drop", "optional")]
    if len(ways) == 2 or (ways and merging):
        both = " and ".join([*ways, *merging][:2])
        yield Problem(f"a rule has both {both}", at.place, "split it into two rules: a rule can keep, drop or merge")
    if not ways and not merging:
        yield Problem(
            f"the rule for {', '.join(map(repr, rule.match))} has no effect",
            at.place,
            "add keep, drop, method, weight or a parameter of the method",
        )


RESERVED = frozenset(entry.name for cls in (Merge, Rule) for entry in fields(cls))
