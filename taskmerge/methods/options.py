"""Options that several methods share, declared once."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from taskmerge.declarations import Between, Doc, PerSpecialist

Each = float | tuple[float, ...]
"""A number, or one per specialist."""
MergeWeights = tuple[float | Fraction, ...]
"""What each task vector is multiplied by, in the specialists' order."""

Scale = Annotated[float, Doc("λ, what the merged task vector is multiplied by before it is added to the base")]
Density = Annotated[
    Each, Between(0, 1), PerSpecialist(), Doc("ρ, the share of each task vector's entries that is kept; 0: none")
]
KeepProbability = Annotated[
    Each,
    Between(0, 1),
    PerSpecialist(),
    Doc("ρ, the probability with which an entry of a task vector is kept; 0: none is"),
]
Normalize = Annotated[bool, Doc("divide the weights by their sum")]
ElectSign = Annotated[
    Literal["weighted_mass", "mass", "count"],
    Doc("how the sign of an entry is elected: by sign(Σ w·d), sign(Σ d) or the number of signs"),
]
Average = Annotated[
    Literal["weight", "count", "none"],
    Doc("what the agreeing entries' weighted sum is divided by: the sum of their weights, their number, or nothing"),
]
Rescale = Annotated[
    Literal["inverse_density", "l1", "none"],
    Doc("what the survivors are multiplied by: 1/ρ, what restores the task vector's sum of magnitudes, or nothing"),
]
Trim = Annotated[
    Literal["tensor", "model"],
    Doc("keep the largest entries of each tensor, or of the whole model (as the paper's own code does)"),
]
Outliers = Annotated[
    Each,
    Between(0, 1, open="high"),
    PerSpecialist(),
    Doc("γ, the share of entries, the very largest, that is dropped first"),
]
Epsilon = Annotated[
    Each,
    Between(0, 1),
    PerSpecialist(),
    Doc("ε, by how much the smallest and the largest entry's probability differ from ρ"),
]
RescaleByOwn = Annotated[
    Literal["own_probability", "l1", "none"],
    Doc(
        "what a survivor is multiplied by: one over its own probability, what restores the task vector's sum of "
        "magnitudes (as mergekit does), or nothing"
    ),
]
