"""Covariances of layer inputs in a merge: which specialists must bring them, and the matrices for one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taskmerge.checkpoints.covariances import covariance_of, covariances_beside
from taskmerge.checkpoints.lineage.census import Census
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import Problem
from taskmerge.merging.steps import Source

if TYPE_CHECKING:
    import torch


def protected_specialists(census: Census, patterns: Sequence[str], place: str, problems: list[Problem]) -> list[str]:
    """Return the specialists with the components that `protect` names; problems are added to `problems`."""
    of = "the specialists' changes"
    problems += census.selector.check(patterns, place, "protect", among=census.own, of=of, also=census.specialists)
    owners = {owner for name in census.selector.names(patterns, census.own) for owner in census.own[name]}
    return [label for label in census.specialists if label in owners or label in patterns]


def missing(inputs: Mapping[str, StateDict], labels: Sequence[str], why: str, place: str) -> list[Problem]:
    """Return a problem for each specialist without a file of covariances."""
    return [
        Problem(
            f"{why} needs the covariances of the layer inputs of {label}, but {inputs[label].label} has none",
            place,
            f"collect them from unlabelled probes: `taskmerge stats {inputs[label].label} --probes data.jsonl`",
        )
        for label in labels
        if covariances_beside(inputs[label]) is None
    ]


def matrices(
    inputs: Mapping[str, StateDict], sources: Sequence[Source], wanted: Sequence[str] | None = None
) -> list[torch.Tensor | None]:
    """Return an (inputs, inputs) float64 matrix per source; None if the layer was not measured or is not `wanted`."""
    import torch

    found: list[torch.Tensor | None] = []
    for source in sources:
        asked = wanted is None or source.label in wanted
        matrix = covariance_of(inputs[source.label], source.name) if asked else None
        found.append(None if matrix is None else torch.from_numpy(matrix))
    return found
