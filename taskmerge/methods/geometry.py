"""Methods that need only the angles and lengths of the task vectors: each finds weights from their Gram matrix.

gram: (specialists, specialists) float64, <d_i, d_j> over one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from taskmerge.declarations import Between, Doc
from taskmerge.errors import MergeError
from taskmerge.kernels.program import Program
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import normalized_values, weighted_sum
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Space = Annotated[
    Literal["delta", "model"], Doc("what is interpolated: the task vectors, or the specialists' own weights")
]
LerpAbove = Annotated[
    float, Between(0, 1), Doc("interpolate in a straight line where the cosine is beyond this, either sign")
]


def gram_matrix(vectors: Tensor) -> np.ndarray:
    """<v_i, v_j> in float64: (specialists, *shape) -> (specialists, specialists)."""
    flat = vectors.double().reshape(vectors.shape[0], -1)
    return np.asarray((flat @ flat.T).cpu().numpy())


def _combine(deltas: Tensor, coefficients: np.ndarray) -> Tensor:
    return weighted_sum(deltas, deltas.new_tensor(coefficients))


def _in_space(deltas: Tensor, base: Tensor, space: str, find: Any) -> Tensor:
    """Σ c_i d_i, or Σ c_i x_i - b, with the coefficients that `find` makes of the Gram matrix."""
    if space == "delta":
        return _combine(deltas, find(gram_matrix(deltas)))
    models = deltas + base
    return _combine(models, find(gram_matrix(models))) - base


def cosines(gram: np.ndarray) -> np.ndarray:
    """Pairwise cosines; those with a vector of length zero are zero."""
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    lengths = np.outer(norms, norms)
    return np.where(lengths > 0, gram / np.where(lengths > 0, lengths, 1.0), 0.0).clip(-1.0, 1.0)


def model_stock_weights(gram: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """t·w_i/Σw with t = N·c / (1 + (N-1)·c), c the mean pairwise cosine."""
    count = len(weights)
    shares = np.asarray(normalized_values(weights), np.float64)
    if count == 1:
        return shares
    cosine = cosines(gram)[np.triu_indices(count, k=1)].mean()
    below = 1.0 + (count - 1) * cosine
    # c = -1/(N-1) means that the task vectors sum to zero: there is nothing to step along.
    return shares * (count * cosine / below if abs(below) > 1e-12 else 0.0)


def _stream_stock(weights: Sequence[float], options: Mapping[str, Any]) -> Program:
    return Program(
        normalized_values(weights), options["scale"], from_gram=partial(model_stock_weights, weights=tuple(weights))
    )


@merge_method(source="Model Stock, arXiv 2403.19522", stream=_stream_stock)
def model_stock(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """The average of the task vectors, shortened by how far they disagree: b + t·mean(d), per tensor.

    t = N·c / (1 + (N-1)·c) with c the mean pairwise cosine. Weights, if they differ, make the mean a weighted one.

    deltas (specialists, *shape), weights (specialists,) -> (*shape). Dot products in float64.
    """
    return scale * _combine(deltas, model_stock_weights(gram_matrix(deltas), weights.tolist()))


def slerp_weights(gram: np.ndarray, fraction: float, lerp_above: float) -> np.ndarray:
    """Coefficients of spherical interpolation between two vectors, `fraction` of the way from the first."""
    cosine = cosines(gram)[0, 1]
    if abs(cosine) > lerp_above or min(np.diag(gram)) <= 0.0:
        return np.array([1.0 - fraction, fraction])
    angle = np.arccos(cosine)
    return np.array([np.sin((1.0 - fraction) * angle), np.sin(fraction * angle)]) / np.sin(angle)


def _two(count: int, name: str) -> None:
    if count != 2:
        raise MergeError(
            f"{name} interpolates two specialists, not {count}",
            next_move="use karcher for the spherical mean of any number",
        )


def _scaled_slerp(gram: np.ndarray, weights: Sequence[float], fraction: float, lerp_above: float) -> np.ndarray:
    return slerp_weights(gram * np.outer(weights, weights), fraction, lerp_above) * weights


def _stream_slerp(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
    _two(len(weights), "slerp")
    if options["space"] == "model":
        return None
    find = partial(
        _scaled_slerp, weights=tuple(weights), fraction=options["fraction"], lerp_above=options["lerp_above"]
    )
    return Program(tuple(weights), options["scale"], from_gram=find)


@merge_method(source="Shoemake 1985", stream=_stream_slerp)
def slerp(
    deltas: Tensor,
    weights: Tensor,
    base: Tensor,
    *,
    fraction: Annotated[float, Between(0, 1), Doc("0 is the first specialist, 1 the second")] = 0.5,
    space: Space = "delta",
    lerp_above: LerpAbove = 0.9995,
    scale: Scale = 1.0,
) -> Tensor:
    """Spherical interpolation of two specialists: sin((1-t)Ω)/sin Ω · v_1 + sin(tΩ)/sin Ω · v_2.

    Ω is the angle between the two. Where they are parallel, opposed or of length zero the line is straight.

    deltas (2, *shape), weights (2,), which multiply the deltas (space "delta" only), base (*shape) -> (*shape). Raises
    MergeError unless there are two specialists. mergekit's slerp is space "model".
    """
    _two(deltas.shape[0], "slerp")
    if space == "delta":
        find = partial(_scaled_slerp, weights=weights.tolist(), fraction=fraction, lerp_above=lerp_above)
    else:
        find = partial(slerp_weights, fraction=fraction, lerp_above=lerp_above)
    return scale * _in_space(deltas, base, space, find)


def _second_share(weights: Sequence[float]) -> float:
    return float(normalized_values(weights)[1])


def _stream_nuslerp(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
    _two(len(weights), "nuslerp")
    if options["space"] == "model":
        return None
    find = partial(slerp_weights, fraction=_second_share(weights), lerp_above=options["lerp_above"])
    return Program(normalized_values(weights), options["scale"], from_gram=find)


@merge_method(source="mergekit's NuSLERP", stream=_stream_nuslerp)
def nuslerp(
    deltas: Tensor,
    weights: Tensor,
    base: Tensor,
    *,
    space: Space = "delta",
    lerp_above: LerpAbove = 0.9995,
    scale: Scale = 1.0,
) -> Tensor:
    """Spherical interpolation of two specialists by their weights: w_2 / (w_1 + w_2) of the way from the first.

    deltas (2, *shape), weights (2,), base (*shape) -> (*shape). Raises MergeError unless there are two specialists.
    """
    _two(deltas.shape[0], "nuslerp")
    find = partial(slerp_weights, fraction=_second_share(weights.tolist()), lerp_above=lerp_above)
    return scale * _in_space(deltas, base, space, find)


def karcher_weights(
    gram: np.ndarray, weights: Sequence[float], iterations: int = 100, tolerance: float = 1e-10
) -> np.ndarray:
    """Coefficients of the Karcher mean of the vectors' directions, times the weighted mean of their lengths.

    Vectors of length zero have no direction and only shorten the mean. Every step stays in the span of the vectors,
    so the Gram matrix is all that is needed.
    """
    shares = np.asarray(normalized_values(weights), np.float64)
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    live = (norms > 0) & (shares != 0)
    if not live.any():
        return np.zeros(len(weights))
    length = float(shares @ norms)
    unit = cosines(gram)[np.ix_(live, live)]
    pull = shares[live] / shares[live].sum()
    mean = _unit(pull, unit)
    for _ in range(iterations):
        cosine = (unit @ mean).clip(-1.0, 1.0)
        angle = np.arccos(cosine)
        stretch = np.where(angle > 1e-9, angle / np.where(angle > 1e-9, np.sin(angle), 1.0), 1.0)
        step = pull * stretch - float(pull @ (stretch * cosine)) * mean
        size = float(np.sqrt(max(step @ unit @ step, 0.0)))
        if size < tolerance:
            break
        mean = _unit(np.cos(size) * mean + np.sin(size) / size * step, unit)
    coefficients = np.zeros(len(weights))
    coefficients[live] = length * mean / norms[live]
    return coefficients


def _unit(coefficients: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Coefficients scaled so that the vector has length one; the first direction where they cancel."""
    size = float(np.sqrt(max(coefficients @ unit @ coefficients, 0.0)))
    return coefficients / size if size > 1e-12 else np.eye(len(coefficients))[0]


def _stream_karcher(weights: Sequence[float], options: Mapping[str, Any]) -> Program | None:
    if options["space"] == "model":
        return None
    find = partial(
        karcher_weights,
        weights=tuple(weights),
        iterations=options["iterations"],
        tolerance=options["tolerance"],
    )
    return Program(normalized_values(weights), options["scale"], from_gram=find)


@merge_method(source="Karcher 1977; mergekit's karcher", stream=_stream_karcher)
def karcher(
    deltas: Tensor,
    weights: Tensor,
    base: Tensor,
    *,
    space: Space = "delta",
    iterations: Annotated[int, Between(1, 10_000), Doc("most steps towards the mean")] = 100,
    tolerance: Annotated[float, Between(0, 1), Doc("stop when a step is shorter than this, in radians")] = 1e-10,
    scale: Scale = 1.0,
) -> Tensor:
    """The mean direction of any number of specialists on the sphere, with their mean length.

    Directions are averaged by the Riemannian (Karcher) mean, lengths arithmetically, both by the weights.

    deltas (specialists, *shape), weights (specialists,), base (*shape) -> (*shape). Dot products in float64.
    """
    find = partial(karcher_weights, weights=weights.tolist(), iterations=iterations, tolerance=tolerance)
    return scale * _in_space(deltas, base, space, find)
