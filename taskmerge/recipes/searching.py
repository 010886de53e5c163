"""The `search` section: the numbers and methods to vary, the objective, and the floors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from taskmerge.declarations import Between, Doc, place_field
from taskmerge.errors import Problem, UsageError, clipped, did_you_mean
from taskmerge.metrics.retrieval import METRICS
from taskmerge.recipes.scores import DEFAULT, parse_objective
from taskmerge.words.places import output_path

Choice = float | bool | str
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Range:
    """The range of one number or word: `[low, high]`, several values, or `low:high:step`."""

    shorthand: ClassVar[str] = "values"

    values: Annotated[
        tuple[Choice, ...],
        Doc(
            "`[low, high]`: any value between two numbers; three or more numbers, or words: one of them; "
            "`0.1:1.0:0.1`: a range with steps"
        ),
    ] = ()
    low: Annotated[float | None, Doc("the lower end of the range")] = None
    high: Annotated[float | None, Doc("the upper end of the range")] = None
    step: Annotated[
        float | None, Between(0, None, open="low"), Doc("only low, low + step, …; by default all values")
    ] = None
    log: Annotated[
        bool, Doc("search on a logarithmic scale: as many trials between 0.01 and 0.1 as between 0.1 and 1")
    ] = False
    depth: Annotated[
        int | None, Between(2, 16), Doc("number of values of a gradient over depth, from the first layer to the last")
    ] = None
    place: str = place_field()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(least, most) of numbers; None where one of several values is chosen."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if len(self.values) == 2 and all(_is_number(value) for value in self.values):
            return float(self.values[0]), float(self.values[1])
        return None

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The values that one is chosen of; () where `bounds` hold."""
        return () if self.bounds is not None else self.values

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if self.values and (self.low is not None or self.high is not None):
            yield Problem("vary: both a list of values and low or high", self.place, "keep one of them")
        elif not self.values and (self.low is None or self.high is None):
            yield Problem("vary: a range needs both low and high", self.place, "write [0.1, 1.0], or {low: , high: }")
        elif len(self.values) == 1 and self._grid() is None:
            move = "write [low, high], several values, or low:high:step in quotes"
            yield Problem(f"vary: {self.values[0]!r} is a single value: nothing varies", self.place, move)
        elif len(set(self.values)) < len(self.values):
            yield Problem("vary: a value is listed twice", self.place, "remove the repeated value")
        else:
            yield from self._bound_problems()

    def _bound_problems(self) -> Iterator[Problem]:
        bounds = self.read().bounds
        if bounds is None:
            if self.step is not None or self.log:
                yield Problem(
                    f"vary: {'log' if self.log else 'step'} is for a range [low, high]",
                    self.place,
                    "write {low: …, high: …}, or leave it out",
                )
            return
        low, high = bounds
        if not low < high:
            yield Problem(f"vary: the range {low:g} to {high:g} is empty", self.place, f"write [{high:g}, {low:g}]")
        elif self.log and low <= 0:
            yield Problem(f"vary: log needs numbers above 0, not {low:g}", self.place, "begin for example at 0.001")
        elif self.log and self.read().step is not None:
            yield Problem("vary: log and step cannot be combined", self.place, "leave one out")
        elif (step := self.read().step) is not None and (high - low) / step > MOST_STEPS:
            yield Problem(f"vary: {low:g} to {high:g} by {step:g} are too many steps", self.place, "use a larger step")

    def read(self) -> Range:
        """Return the same range with `low:high:step` expanded."""
        grid = self._grid()
        if grid is None:
            return self
        low, high, step = grid
        return replace(self, values=(), low=low, high=high, step=step)

    def _grid(self) -> tuple[float, float, float] | None:
        lone = self.values[0] if len(self.values) == 1 else None
        if not isinstance(lone, str):
            return None
        try:
            return parse_grid(lone)
        except UsageError:
            return None


def parse_grid(text: str) -> tuple[float, float, float]:
    """Parse (low, high, step) from `0.1:1.0:0.1`. Raises UsageError."""
    parts = text.split(":")
    try:
        low, high, step = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"{clipped(repr(text), 80)} is not low:high:step", next_move="write 0.1:1.0:0.1") from None
    if not (math.isfinite(low + high + step) and step > 0 and low < high):
        raise UsageError(
            f"{text!r} has no steps",
            next_move="write 0.1:1.0:0.1, from the lower end of the range to the upper end of the range",
        )
    return low, high, step


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Floor:
    """The maximum loss of one modality."""

    shorthand: ClassVar[str] = "change"

    change: Annotated[
        float, Between(-1, 1), Doc("minimum difference from the specialist's score: -0.02 allows a loss of 0.02")
    ]
    metric: Annotated[str, Doc("the score to compare")] = "mrr"
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problem of an unknown metric."""
        if self.metric not in METRICS:
            yield Problem(f"floor: unknown metric {self.metric!r}", self.place, did_you_mean(self.metric, METRICS))


@dataclass(frozen=True)
class Search:
    """A search for weights, methods and their parameters."""

    vary: Annotated[
        Mapping[str, Range],
        Doc(
            "the numbers to vary and their ranges: `specialists.*.weight`, `merge.method`, `merge.density`, "
            "`rules.backbone.layers.{0..5}.*.weight`"
        ),
    ]
    maximize: Annotated[
        tuple[str, ...], Doc("`mean(retrieval.*.mrr)`, `min(…)`, one score, or several: a Pareto front")
    ] = (DEFAULT,)
    on: Annotated[Mapping[str, str], Doc("pairs by name; use the name of the specialist for its modality")] = field(
        default_factory=dict
    )
    floor: Annotated[
        Mapping[str, Floor], Doc("constraint for each set of `on`: the minimum difference from its specialist")
    ] = field(default_factory=dict)
    confirm: Annotated[
        Mapping[str, str] | None,
        Doc(
            "pairs that the search does not use, under the same names; by default a third of each set is "
            "reserved for this"
        ),
    ] = None
    trials: Annotated[
        int, Between(1, 100_000), Doc("number of trials, in addition to the points that are always evaluated")
    ] = 60
    sampler: Annotated[
        Literal["auto", "tpe", "gp", "cmaes", "random"],
        Doc(
            "the sampler of Optuna; `auto`: a Gaussian process for up to 150 trials if only numbers vary, otherwise TPE"
        ),
    ] = "auto"
    prune: Annotated[bool, Doc("stop trials early when they are clearly worse (one objective, enough pairs)")] = True
    sensitivity: Annotated[
        int, Between(0, 50), Doc("number of points of the curve along each number through the best trial")
    ] = 5
    path: Annotated[str | None, Doc("folder of the study and its report; by default `OUT-search`")] = None
    place: str = place_field()

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that affect several keys."""
        if not self.vary:
            yield Problem("search: nothing is varied", self.place, "add vary: {specialists.*.weight: [0.1, 1.0]}")
        for text in self.maximize:
            try:
                parse_objective(text, ())
            except UsageError as error:
                yield from (Problem(f"maximize: {told.what}", self.place, told.next_move) for told in error.problems)
        for key, names in (("floor", self.floor), ("confirm", self.confirm or {})):
            for name in names if self.on else ():
                if name not in self.on:
                    yield Problem(f"{key}: {name!r} is not a set of `on`", self.place, did_you_mean(name, self.on))
        if self.confirm is not None and (lost := [name for name in self.on if name not in self.confirm]):
            what = f"confirm: there are no pairs for {', '.join(map(repr, lost))}"
            yield Problem(what, self.place, "add them, or leave out `confirm`: a third of each set is then reserved")
        try:
            if self.path is not None:
                output_path(self.path)
        except UsageError as error:
            yield from (Problem(f"search: path: {told.what}", self.place, told.next_move) for told in error.problems)
