"""Merge methods: what one is, how it is declared, where it is found.

A merge method is a function of tensors; its signature is its only declaration:

    @merge_method(source="arXiv 2306.01708")
    def median(deltas, weights, *, scale: Annotated[float, Between(0, 2), Doc("step along the median")] = 1.0):
        "Coordinate-wise median of the task vectors."
        return scale * deltas.median(dim=0).values

It takes some of the positional inputs in `INPUTS` by name, options by keyword, and returns what is added to the base.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from taskmerge.declarations import (
    BAD,
    At,
    DeclarationError,
    Graded,
    Kind,
    Number,
    NumberEach,
    Parameter,
    parameters_of,
    read_mapping,
)
from taskmerge.errors import MergeError, Problem, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from taskmerge.kernels.program import Program

Stream = Callable[[Sequence[float], Mapping[str, Any]], "Program | None"]

INPUTS: dict[str, str] = {
    "deltas": "the task vectors: (specialists, *shape), float32 or float64",
    "weights": "one weight per specialist: (specialists,), float64",
    "base": "the base tensor: (*shape), the deltas' dtype",
    "random_bits": "32 random bits per entry: (specialists, *shape), int64 in [0, 2^32)",
    "thresholds": "least magnitude kept, per specialist, found over the whole model: (specialists,), float32, or None",
    "covariances": "of the inputs of this linear layer: (specialists, inputs, inputs), float64, or None",
}
"""Every positional argument that a merge method may ask for, by name."""


@dataclass(frozen=True)
class MergeMethod:
    """One merge method.

    function: pure; takes `inputs` by name and `parameters` by keyword, returns the scaled merged delta (*shape).
    inputs: which of `INPUTS` it takes.  source: paper or tool.  whole_matrices: works on 2-D tensors and merges all
    others by their mean.  stream: for elementwise methods, the Program that does the same in bounded memory.
    """

    name: str
    function: Callable[..., Tensor]
    parameters: tuple[Parameter, ...]
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    source: str = ""
    whole_matrices: bool = False
    stream: Stream | None = None

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        return self.function(*inputs, **keywords)

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @cached_property
    def recipe_parameters(self) -> tuple[Parameter, ...]:
        """The parameters as a recipe may give them: any float may be a gradient over depth."""
        return tuple(replace(row, kind=_in_recipe(row.kind)) for row in self.parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        return {row.name: row.default for row in self.parameters if not row.required}

    def options(self, given: Mapping[str, Any] | None = None, place: str | None = None) -> dict[str, Any]:
        """All options of one call: those given, checked, and defaults. Raises UsageError with every problem."""
        problems: list[Problem] = []
        at = At(lambda path: ".".join(str(step) for step in path) or place or self.name, (self.name,))
        read = read_mapping(given or {}, self.parameters, at, problems)
        if problems or BAD in read.values():
            raise UsageError(problems)
        return {**self.defaults, **read}

    def merge(
        self,
        deltas: Tensor,
        weights: Tensor,
        options: Mapping[str, Any],
        *,
        base: Tensor | None = None,
        random_bits: Tensor | None = None,
        thresholds: Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> Tensor:
        """Run the plain function. options: as from `options`. Shapes as in `INPUTS`; returns (*shape).

        An empty tensor has an empty delta, whatever the method. Raises MergeError when an input it needs is missing or
        the result has another shape.
        """
        have = {
            "deltas": deltas,
            "weights": weights,
            "base": base,
            "random_bits": random_bits,
            "thresholds": thresholds,
            "covariances": covariances,
        }
        for name in self.inputs:
            if have[name] is None and name not in ("thresholds", "covariances"):
                raise MergeError(f"the method {self.name!r} needs {name} ({INPUTS[name]})")
        if deltas.numel() == 0:
            return deltas.new_zeros(deltas.shape[1:])
        merged = self.function(*(have[name] for name in self.inputs), **options)
        if tuple(merged.shape) != tuple(deltas.shape[1:]):
            made, wanted = tuple(merged.shape), tuple(deltas.shape[1:])
            raise MergeError(
                f"the method {self.name!r} made a tensor of shape {made} from deltas of shape {wanted}",
                next_move="a merge method returns one delta, of the same shape as each that it was given",
            )
        return merged

    def program(self, weights: Sequence[float], options: Mapping[str, Any], shape: Sequence[int]) -> Program | None:
        """What the kernels need to merge one tensor of this shape, or None when it takes the whole tensor.

        A program with numbers for each specialist (`Program.each`) is streamed into float64 outputs only.
        """
        if self.whole_matrices and len(shape) != 2:
            from taskmerge.methods.pieces import mean_program

            return mean_program(weights, options)
        return self.stream(weights, options) if self.stream else None

    def needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The inputs besides deltas and weights that `merge` must be given."""
        return frozenset(self.inputs) - {"deltas", "weights"}


def _in_recipe(kind: Kind) -> Kind:
    """What a recipe may give for a parameter: gradients for numbers, a number by name where each specialist has one."""
    if isinstance(kind, NumberEach):
        return kind.in_recipe()
    return Graded(kind) if isinstance(kind, Number) and not kind.integer else kind


_METHODS: dict[str, MergeMethod] = {}
_private = False


@overload
def merge_method(function: Callable[..., Tensor]) -> MergeMethod: ...
@overload
def merge_method(
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    source: str = "",
    whole_matrices: bool = False,
    stream: Stream | None = None,
) -> Callable[[Callable[..., Tensor]], MergeMethod]: ...
def merge_method(
    function: Callable[..., Tensor] | None = None,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    source: str = "",
    whole_matrices: bool = False,
    stream: Stream | None = None,
) -> MergeMethod | Callable[[Callable[..., Tensor]], MergeMethod]:
    """Declare a function to be a merge method and register it under its name (and aliases).

    Raises DeclarationError at once for a signature that cannot be checked.
    """

    def declare(function: Callable[..., Tensor]) -> MergeMethod:
        inputs = _inputs_of(function)
        own = name or function.__name__
        rows = parameters_of(function)
        method = MergeMethod(own, function, rows, inputs, tuple(aliases), source, whole_matrices, stream)
        if not _private:
            register(method)
        return method

    return declare(function) if function is not None else declare


def _inputs_of(function: Callable[..., Tensor]) -> tuple[str, ...]:
    names = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(f"{function.__name__}: name every argument instead of *{argument.name}")
        if argument.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        if argument.name not in INPUTS:
            raise DeclarationError(
                f"{function.__name__}: unknown positional argument {argument.name!r} "
                f"(there are {', '.join(INPUTS)}; options stand after a *)"
            )
        names.append(argument.name)
    if not names or names[0] != "deltas":
        raise DeclarationError(f"{function.__name__}: the first argument of a merge method is `deltas`")
    return tuple(names)


def register(method: MergeMethod) -> None:
    """Make a method known by its name and aliases. Raises DeclarationError when a name is taken by another."""
    for name in (method.name, *method.aliases):
        taken = _METHODS.get(name)
        if taken is not None and taken.function.__qualname__ != method.function.__qualname__:
            raise DeclarationError(f"a merge method named {name!r} exists already: {taken.summary}")
        _METHODS[name] = method


@contextmanager
def unregistered() -> Iterator[None]:
    """Inside, `merge_method` declares without registering: for files that a recipe names."""
    global _private
    before, _private = _private, True
    try:
        yield
    finally:
        _private = before


def known_names() -> list[str]:
    """Every registered name and alias, sorted."""
    from taskmerge.methods.discovery import load_entry_points

    load_entry_points()
    return sorted(_METHODS)


def all_methods() -> list[MergeMethod]:
    """Every registered method once, sorted by name."""
    return sorted({_METHODS[name].name: _METHODS[name] for name in known_names()}.values(), key=lambda m: m.name)


def registered(name: str) -> MergeMethod:
    """The method registered under a name or alias. Raises UsageError with the nearest name."""
    if name not in _METHODS:
        known = known_names()
        if name not in _METHODS:
            raise UsageError(f"unknown merge method {name!r}", next_move=did_you_mean(name, known))
    return _METHODS[name]
