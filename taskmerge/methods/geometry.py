"""Methods that need only the angles and lengths of the task vectors: each computes weights from their Gram matrix.

gram: (specialists, specialists) float64, <d_i, d_j> over one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np

from taskmerge.declarations import Between, Doc
from taskmerge.errors import MergeError
from taskmerge.kernels.program import Program
from taskmerge.methods.options import MergeWeights
from taskmerge.methods.pieces import shares
from taskmerge.methods.registry import merge_method

Space = Annotated[
    Literal["delta", "model"], Doc("the tensors to interpolate: the task vectors, or the specialists' own weights")
]
LerpAbove = Annotated[float, Between(0, 1), Doc("interpolate linearly where the absolute cosine is above this")]


def _between(weights: MergeWeights, space: str, find: Callable[[np.ndarray], np.ndarray]) -> Program:
    """Σ c_i d_i, or Σ c_i x_i - b, with the coefficients that `find` makes of the Gram matrix."""
    if space == "delta":
        return Program(weights, from_gram=find)
    return Program(weights, base="weighted", from_gram=find, gram_of="models")


def cosines(gram: np.ndarray) -> np.ndarray:
    """Pairwise cosines; those with a vector of length zero are zero."""
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    lengths = np.outer(norms, norms)
    return np.where(lengths > 0, gram / np.where(lengths > 0, lengths, 1.0), 0.0).clip(-1.0, 1.0)


def model_stock_weights(gram: np.ndarray, weights: MergeWeights) -> np.ndarray:
    """Compute t·w_i/Σw with t = N·c / (1 + (N-1)·c), c the mean pairwise cosine."""
    count = len(weights)
    parts = np.asarray(shares(weights), np.float64)
    if count == 1:
        return parts
    cosine = cosines(gram)[np.triu_indices(count, k=1)].mean()
    below = 1.0 + (count - 1) * cosine
    # c = -1/(N-1) means that the task vectors sum to zero: there is nothing to step along.
    return parts * (count * cosine / below if abs(below) > 1e-12 else 0.0)


@merge_method(source="Model Stock, arXiv 2403.19522")
def model_stock(weights: MergeWeights) -> Program:
    """Average the task vectors, and shorten the mean according to their disagreement: b + t·mean(d), per tensor.

    t = N·c / (1 + (N-1)·c) with c the mean pairwise cosine, including specialists of weight 0. Different weights give a
    weighted mean. Dot products in float64.
    """
    return Program(shares(weights), from_gram=partial(model_stock_weights, weights=weights))


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


def _scaled_slerp(gram: np.ndarray, weights: MergeWeights, fraction: float, lerp_above: float) -> np.ndarray:
    factors = np.asarray(weights, np.float64)
    signs = np.where(factors < 0, -1.0, 1.0)  # the angle does not depend on lengths: it stays as a weight goes to 0
    return slerp_weights(gram * np.outer(signs, signs), fraction, lerp_above) * factors


@merge_method(source="Shoemake 1985")
def slerp(
    weights: MergeWeights,
    *,
    fraction: Annotated[float, Between(0, 1), Doc("0 is the first specialist, 1 the second")] = 0.5,
    space: Space = "delta",
    lerp_above: LerpAbove = 0.9995,
) -> Program:
    """Interpolate spherically between two specialists: sin((1-t)Ω)/sin Ω · v_1 + sin(tΩ)/sin Ω · v_2.

    Ω is the angle between the two. If they are parallel, opposed or of length zero, the interpolation is linear.
    Weights multiply the deltas (space "delta" only); where one is 0 the angle is that of small weights. Needs exactly
    two specialists. mergekit's slerp is space "model" with its base model as the first of the two, and has no weights.
    """
    _two(len(weights), "slerp")
    if space == "delta":
        return _between(weights, space, partial(_scaled_slerp, weights=weights, fraction=fraction,
                                                lerp_above=lerp_above))  # fmt: skip
    return _between(weights, space, partial(slerp_weights, fraction=fraction, lerp_above=lerp_above))


@merge_method(source="mergekit's NuSLERP")
def nuslerp(weights: MergeWeights, *, space: Space = "delta", lerp_above: LerpAbove = 0.9995) -> Program:
    """Interpolate spherically between two specialists by weight: w_2 / (w_1 + w_2) of the way from the first.

    Needs exactly two specialists.
    """
    _two(len(weights), "nuslerp")
    fraction = float(shares(weights)[1])
    return _between(shares(weights), space, partial(slerp_weights, fraction=fraction, lerp_above=lerp_above))


def multislerp_weights(gram: np.ndarray, weights: MergeWeights) -> np.ndarray:
    """Coefficients of one step on the sphere from the vectors' mean direction, times the weighted sum of their lengths.

    With u_i the directions and m = Σ w u / ‖Σ w u‖ the step is t = Σ w (u - <u, m> m), and the result
    (cos ‖t‖ m + sin ‖t‖ t / ‖t‖) · Σ w ‖x‖. Vectors of length zero have no direction and only shorten the result.
    """
    parts = np.asarray(weights, np.float64)
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    live = norms > 0
    if not live.any():
        return np.zeros(len(parts))
    unit = cosines(gram)[np.ix_(live, live)]
    mean = _unit(parts[live], unit)
    step = parts[live] - float(parts[live] @ unit @ mean) * mean
    size = float(np.sqrt(max(step @ unit @ step, 0.0)))
    coefficients = np.zeros(len(parts))
    there = np.cos(size) * mean + np.sinc(size / np.pi) * step
    coefficients[live] = float(parts @ norms) * there / norms[live]
    return coefficients


@merge_method(source="Goddard 2025 (Multi-SLERP); mergekit's multislerp")
def multislerp(
    weights: MergeWeights,
    *,
    space: Space = "delta",
    normalize: Annotated[bool, Doc("divide the weights by their sum")] = True,
) -> Program:
    """Average any number of specialists on the sphere by weight: one step from their mean direction.

    The step is taken in the plane that touches the sphere at the weighted mean of the directions; lengths are summed
    by the weights. With normalize false the weights are used as they are, so their sum scales the result.
    If the directions cancel, the first one is used. `karcher` iterates to the exact mean. Dot products in float64.
    """
    used = shares(weights, normalize)
    return _between(used, space, partial(multislerp_weights, weights=used))


def karcher_weights(
    gram: np.ndarray, weights: MergeWeights, iterations: int = 100, tolerance: float = 1e-10
) -> np.ndarray:
    """Coefficients of the Karcher mean of the vectors' directions, times the weighted mean of their lengths.

    Vectors of length zero have no direction and only shorten the mean. Every step stays in the span of the vectors,
    so the Gram matrix is all that is needed.
    """
    parts = np.asarray(shares(weights), np.float64)
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    live = (norms > 0) & (parts != 0)
    if not live.any():
        return np.zeros(len(weights))
    length = float(parts @ norms)
    unit = cosines(gram)[np.ix_(live, live)]
    pull = parts[live] / parts[live].sum()
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


@merge_method(source="Karcher 1977; mergekit's karcher")
def karcher(
    weights: MergeWeights,
    *,
    space: Space = "delta",
    iterations: Annotated[int, Between(1, 1_000_000), Doc("maximum number of steps towards the mean")] = 100,
    tolerance: Annotated[float, Between(0, 1), Doc("stop when a step is shorter than this, in radians")] = 1e-10,
) -> Program:
    """Take the mean direction of any number of specialists on the sphere, with their mean length.

    Directions are averaged by the Riemannian (Karcher) mean, lengths arithmetically, both by the weights. Dot products
    in float64. Rejects negative weights, for which a mean direction is not defined.
    """
    normalized = shares(weights)
    if any(weight < 0 for weight in weights):
        shown = ", ".join(f"{float(weight):g}" for weight in weights)
        raise MergeError(f"karcher with the weights {shown}", next_move="give weights of at least 0")
    find = partial(karcher_weights, weights=weights, iterations=iterations, tolerance=tolerance)
    return _between(normalized, space, find)
