"""A program's numbers as fractions: nothing of them is rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from taskmerge.kernels.exact.expansions import Scalar, scaled_alike
from taskmerge.kernels.pairs import Job
from taskmerge.kernels.program import Consensus, DropRandom, Elect, Program, by_mass


@dataclass(frozen=True)
class Terms:
    """result = base_factor · b + scale · consensus(survivors, weights).

    rescaling: what survivors of each specialist are divided by, and what multiplied by.
    """

    weights: tuple[Fraction, ...]
    rescaling: tuple[tuple[float, float | Fraction], ...]
    scale: Fraction
    base_factor: Fraction
    consensus: Consensus
    base_left_out: bool

    @classmethod
    def of(cls, program: Program, job: Job) -> Terms | None:
        """Return the terms of a job; None if a measurement is not finite, because inputs are not."""
        weights = program.weights if job.measured.weights is None else job.measured.weights
        rescaling = [_rescaling(program, job, i) for i in range(len(weights))]
        numbers = (*weights, *(factor for _, factor in rescaling))
        if not all(isinstance(number, Fraction) or math.isfinite(number) for number in numbers):
            return None
        return cls(
            tuple(Fraction(weight) for weight in weights),
            tuple(rescaling),
            Fraction(program.scale),
            program.base_factor(weights),
            program.consensus,
            program.base == "left_out",
        )

    @cached_property
    def factors(self) -> tuple[Fraction, ...]:
        """`rescaling`, exactly."""
        return tuple(Fraction(factor) / Fraction(divisor) for divisor, factor in self.rescaling)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """The amount that each agreeing specialist adds to the divisor of a mean; empty if there is no division."""
        if not isinstance(self.consensus, Elect) or self.consensus.average == "none":
            return ()
        return self.weights if self.consensus.average == "weight" else (Fraction(1),) * len(self.weights)

    @cached_property
    def quotient(self) -> tuple[list[Scalar], list[Scalar], Scalar]:
        """The move as Σ m_i d_i / Σ s_i over those that agree, or over a number where s is empty: m, s, the number."""
        moves = [self.scale * weight * factor for weight, factor in zip(self.weights, self.factors, strict=True)]
        scalars, common = scaled_alike([*moves, *self.shares])
        return scalars[: len(moves)], scalars[len(moves) :], Scalar.of(common)


def _rescaling(program: Program, job: Job, specialist: int) -> tuple[float, float | Fraction]:
    """What survivors of a random drop are divided by, and what multiplied by."""
    how = program.ways[specialist]
    if isinstance(how, DropRandom) and how.rescale == "inverse_density":
        return how.density, 1.0
    if by_mass(how) and job.measured.factors is not None:
        return 1.0, job.measured.factors[specialist]
    return 1.0, 1.0
