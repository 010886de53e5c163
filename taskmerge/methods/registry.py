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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
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
from taskmerge.errors import MergeError, Problem, UsageError
from taskmerge.methods.options import Scale

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from taskmerge.kernels.operands import Measurement
    from taskmerge.kernels.program import Program

Memory = Callable[[int, tuple[int, ...]], float]

INPUTS: dict[str, str] = {
    "deltas": "the task vectors: (specialists, *shape), float64",
    "weights": "one weight per specialist: (specialists,), float64",
    "base": "the base tensor: (*shape), float64",
    "random_bits": "32 random bits per entry: (specialists, *shape), int64 in [0, 2^32)",
    "noise": "standard deviation of the storage rounding in each delta's entries: (specialists,), float64; 0 where a "
    "delta is exact, such as an adapter's own product",
    "covariances": "covariance of the inputs of this linear layer: (specialists, inputs, inputs), float64, or None",
}
"""Every positional argument that a merge method of tensors may ask for, by name."""

_OPTIONAL = ("covariances", "noise")


def _every_method(*, scale: Scale = 1.0) -> None:
    """The options that all methods have; the engine applies them. A method that declares one itself applies it."""


EVERY_METHOD = parameters_of(_every_method)


@dataclass(frozen=True)
class MergeMethod:
    """One merge method: an elementwise one says a Program, any other computes on whole tensors.

    function: pure. Elementwise: `(weights, *, options) -> Program`. Others: takes `inputs` by name and its own options
    by keyword, returns the merged delta (*shape). own: the parameters it declares itself. inputs: which of `INPUTS` it
    takes. source: paper or tool. whole_matrices: works on 2-D tensors and merges all others by their mean.
    memory: (specialists, shape) -> float64 entries held at the peak of `merge`, deltas, base and result included.
    weighted_by: what finds the weights from the Gram matrix of the deltas, in place of those given.
    """

    name: str
    function: Callable[..., Any]
    own: tuple[Parameter, ...]
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    source: str = ""
    whole_matrices: bool = False
    memory: Memory | None = None
    weighted_by: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        merged: Tensor = self.function(*inputs, **keywords)
        return merged

    @property
    def doc(self) -> str:
        """The docstring of the function; "" without one."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def elementwise(self) -> bool:
        """True if the method is a Program, which streams; else it takes complete tensors."""
        return self.inputs == ("weights",)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The method's own parameters, and those of all methods."""
        declared = {row.name for row in self.own}
        return (*self.own, *(row for row in EVERY_METHOD if row.name not in declared))

    @cached_property
    def recipe_parameters(self) -> tuple[Parameter, ...]:
        """The parameters as a recipe may give them: any float may be a gradient over depth."""
        return tuple(replace(row, kind=_in_recipe(row.kind)) for row in self.parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each optional parameter, by name."""
        return {row.name: row.default for row in self.parameters if not row.required}

    def options(self, given: Mapping[str, Any] | None = None, place: str | None = None) -> dict[str, Any]:
        """Return all options of one call: checked values and defaults. Raises UsageError with every problem."""
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
        thresholds: Measurement | None = None,
        covariances: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Merge task vectors in memory: the same as a fuse does, before it adds the base and rounds.

        Args:
            deltas, weights, base, random_bits, covariances, noise: as in `INPUTS`, float64 inside.
            options: as from `options`.
            thresholds: what trim "model" found over the whole model; left out: these deltas are the whole model.

        Returns: the scaled merged delta, (*shape), float64; of an empty tensor an empty one, whatever the method.

        Raises: MergeError when an input it needs is missing or the result has another shape.
        """
        import torch

        deltas, weights = deltas.double(), weights.double()
        have = {"deltas": deltas, "weights": weights, "base": base, "random_bits": random_bits,
                "covariances": covariances, "noise": noise}  # fmt: skip
        program = self.program(weights.tolist(), options, deltas.shape[1:])
        for name in self.needs(options) if deltas.numel() else ():
            if have[name] is None and name not in _OPTIONAL:
                raise MergeError(f"the method {self.name!r} needs {name} ({INPUTS[name]})", next_move=f"pass {name}=…")
        if deltas.numel() == 0:
            return deltas.new_zeros(deltas.shape[1:])
        if program is not None:
            from taskmerge.kernels import interpret

            return interpret(program, deltas, base=base, random_bits=random_bits, thresholds=thresholds)
        if self.weighted_by is not None:
            flat = deltas.reshape(deltas.shape[0], -1)
            have["weights"] = torch.as_tensor(self.weighted_by((flat @ flat.T).cpu().numpy()), device=deltas.device)
        merged: Tensor = self.function(*(have[name] for name in self.inputs), **self._split(options)[0])
        if tuple(merged.shape) != tuple(deltas.shape[1:]):
            made, wanted = tuple(merged.shape), tuple(deltas.shape[1:])
            raise MergeError(
                f"the method {self.name!r} made a tensor of shape {made} from deltas of shape {wanted}",
                next_move="return one delta of the same shape as each input delta",
            )
        return merged.double() * self.scale(options)

    def scale(self, options: Mapping[str, Any]) -> float:
        """Return the factor that the engine applies to a merged delta; 1 for a method that declares `scale` itself."""
        return float(self._split(options)[1].get("scale", 1.0))

    def program(
        self,
        weights: Sequence[float | Fraction],
        options: Mapping[str, Any],
        shape: Sequence[int],
        token_table: bool = False,
    ) -> Program | None:
        """Return the Program that merges a tensor of this shape; None if the method takes the complete tensor.

        token_table: whether the tensor has one row a token; see `decomposes_matrices`.

        Raises MergeError for weights or options that it cannot work with.
        """
        if self.whole_matrices and (token_table or len(shape) != 2):
            from taskmerge.methods.pieces import mean

            program = mean(tuple(weights))
        elif self.elementwise:
            program = self.function(tuple(weights), **self._split(options)[0])
        else:
            return None
        if self.weighted_by is not None:
            parts = 1 if self.elementwise else len(weights)  # a mean divides by the number of specialists
            program = replace(program, from_gram=partial(_shares_of, self.weighted_by, parts))
        if isinstance(program.sparsify, tuple) and len(program.sparsify) != len(weights):
            raise MergeError(
                f"{len(program.sparsify)} numbers for {len(weights)} specialists",
                next_move="return one way to sparsify per specialist",
            )
        return replace(program, scale=self.scale(options))

    def peak_bytes(self, specialists: int, shape: tuple[int, ...]) -> int:
        """Return the bytes at the peak of `merge`, for one tensor of this shape: deltas, base and result included.

        As declared and measured (benchmarks/whole_tensor_memory.py); a method that declares nothing is taken to hold
        each delta twice, the base, the result and one more of their size.
        """
        entries = self.memory(specialists, shape) if self.memory else math.prod(shape) * (2 * specialists + 3)
        return math.ceil(8 * entries)

    @property
    def decomposes_matrices(self) -> bool:
        """True if the method decomposes complete matrices, so that it must not get a token table (one row per token).

        An embedding or an output head has a hundred thousand rows or more, in no particular order: a singular value
        decomposition of it takes hours, and mixes tokens. `program(…, token_table=True)` merges it by its mean, as all
        tensors that are not matrices; `token_table_note` reports it.
        """
        return self.whole_matrices

    def token_table_note(self, name: str, shape: Sequence[int]) -> str:
        """Return the note to print if a token table is merged by its mean instead of by this method."""
        size = " x ".join(f"{length:,}" for length in shape)
        return (
            f"{name} ({size}) is a token table: {self.name} merges matrices and gives it the mean, Σ w d / "
            f"T. To change this, write a rule: {{match: {name!r}, method: task_arithmetic}}"
        )

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options it takes itself, and those that the engine applies."""
        names = {row.name for row in self.own}
        own = {name: value for name, value in options.items() if name in names}
        return own, {name: value for name, value in options.items() if name not in names}

    def needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the inputs that `merge` needs in addition to deltas and weights."""
        if not self.elementwise:
            return frozenset(self.inputs) - {"deltas", "weights"}
        program = self.program((1.0, 1.0), _one_for_all(options), ())
        assert program is not None
        needed = {"random_bits"} if program.random else set()
        return frozenset(needed | ({"base"} if program.base in ("weighted", "summed") else set()))


def _shares_of(find: Callable[[np.ndarray], np.ndarray], parts: int, gram: np.ndarray) -> np.ndarray:
    return find(gram) / parts


def _one_for_all(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[0] if isinstance(value, tuple) else value for name, value in options.items()}


def _in_recipe(kind: Kind) -> Kind:
    """What a recipe may give for a parameter: gradients for numbers, a number by name where each specialist has one."""
    if isinstance(kind, NumberEach):
        return kind.in_recipe()
    return Graded(kind) if isinstance(kind, Number) and not kind.integer else kind


_METHODS: dict[str, MergeMethod] = {}
_private = False


@overload
def merge_method(function: Callable[..., Tensor | Program]) -> MergeMethod: ...


@overload
def merge_method(
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    source: str = "",
    whole_matrices: bool = False,
    memory: Memory | None = None,
) -> Callable[[Callable[..., Tensor | Program]], MergeMethod]: ...
def merge_method(
    function: Callable[..., Tensor | Program] | None = None,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    source: str = "",
    whole_matrices: bool = False,
    memory: Memory | None = None,
) -> MergeMethod | Callable[[Callable[..., Tensor | Program]], MergeMethod]:
    """Declare a function to be a merge method, and register it under its name and aliases.

    A function of `weights` alone returns a Program, which streams; a function of `deltas` returns a tensor.

    Args:
        function: the function; its annotated keyword arguments are the parameters of the method.
        name: name of the method; default: the function's.
        aliases: other names.
        source: paper that the method comes from.
        whole_matrices: the method is for 2-D tensors; all other tensors are merged by their mean.
        memory: (specialists, shape) -> float64 entries in memory at the peak, with deltas, base and result.

    Returns:
        The method; a decorator if `function` is not given.

    Raises:
        DeclarationError: for a signature that cannot be checked.
    """

    def declare(function: Callable[..., Any]) -> MergeMethod:
        inputs = _inputs_of(function)
        own = name or function.__name__
        rows = parameters_of(function)
        method = MergeMethod(own, function, rows, inputs, tuple(aliases), source, whole_matrices, memory)
        if not _private:
            register(method)
        return method

    return declare(function) if function is not None else declare


def _inputs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    names = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(f"{function.__name__}: write out every argument instead of *{argument.name}")
        if argument.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        if argument.name not in INPUTS:
            raise DeclarationError(
                f"{function.__name__}: unknown positional argument {argument.name!r} (there "
                f"are {', '.join(INPUTS)}; options come after a *)"
            )
        names.append(argument.name)
    if names != ["weights"] and names[:1] != ["deltas"]:
        raise DeclarationError(
            f"{function.__name__}: the first argument of a merge method is `deltas`, or `weights` alone for one that "
            "returns a Program"
        )
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


def registered_now() -> Mapping[str, MergeMethod]:
    """Return the methods registered so far, by name and alias; `discovery` also searches installed packages."""
    return _METHODS
