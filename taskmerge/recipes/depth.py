"""Gradients over depth: a list of numbers means a line through them, first layer to last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """The place of a tensor in its model. depth: from 0 (first layer) to 1 (last), None outside the layers."""

    depth: float | None
    embeddings: bool = False


def at_depth(value: float | Sequence[float], depth: float) -> float:
    """Return the number at `depth`, from 0 (first layer) to 1 (last): linear between evenly spaced anchors.

    >>> at_depth([0.0, 1.0, 0.5], 0.75)
    0.75
    >>> at_depth(0.3, 0.75)
    0.3
    """
    if isinstance(value, (int, float)):
        return value
    if len(value) == 1:
        return value[0]
    position = min(max(depth, 0.0), 1.0) * (len(value) - 1)
    low = min(int(position), len(value) - 2)
    share = position - low
    return value[low] * (1.0 - share) + value[low + 1] * share


def layer_depth(layer: int, layers: int) -> float:
    """Return the depth of block `layer` of `layers`, counted from 0; the depth of a single block is 0."""
    return layer / (layers - 1) if layers > 1 else 0.0
