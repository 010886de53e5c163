"""Options that several methods share, declared once."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from taskmerge.declarations import Between, Doc, PerSpecialist

Each = float | tuple[float, ...]
"""A number, or one per specialist."""
MergeWeights = tuple[float | Fraction, ...]
"""What each task vector is multiplied by, in the specialists' order."""

Scale = Annotated[float, Doc("λ, the factor of the merged task vector before it is added to the base")]
Density = Annotated[
    Each, Between(0, 1), PerSpecialist(), Doc("ρ, the share of each task vector's entries that is kept; 0: none")
]
KeepProbability = Annotated[
    Each,
    Between(0, 1),
    PerSpecialist(),
    Doc("ρ, the probability with which an entry of a task vector is kept; 0: none"),
]
Normalize = Annotated[bool, Doc("divide the weights by their sum")]
ElectSign = Annotated[
    Literal["weighted_mass", "mass", "count"],
    Doc("how the sign of an entry is elected: by sign(Σ w·d), sign(Σ d) or the number of signs"),
]
Average = Annotated[
    Literal["weight", "count", "none"],
    Doc("the divisor of the agreeing entries' weighted sum: the sum of their weights, their number, or none"),
]
Rescale = Annotated[
    Literal["inverse_density", "l1", "none"],
    Doc("the factor of the kept entries: 1/ρ, the one that restores the task vector's sum of magnitudes, or none"),
]
Trim = Annotated[
    Literal["tensor", "model"],
    Doc("keep the largest entries of each tensor, or of the complete model (as the paper's own code does)"),
]
Outliers = Annotated[
    Each,
    Between(0, 1, open="high"),
    PerSpecialist(),
    Doc("γ, the share of the largest entries, which is dropped first"),
]
Epsilon = Annotated[
    Each,
    Between(0, 1),
    PerSpecialist(),
    Doc("ε, the difference of the smallest and the largest entry's probability from ρ"),
]
RescaleByOwn = Annotated[
    Literal["own_probability", "l1", "none"],
    Doc(
        "the factor of a kept entry: one over its own probability, the one that restores the task vector's "
        "sum of magnitudes (as mergekit does), or none"
    ),
]
