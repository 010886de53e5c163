"""The spectral merge methods once more, in float64 NumPy from their formulas; polar factors by eigendecomposition.

Each takes deltas (specialists, *shape) and weights (specialists,), and returns the scaled merged delta (*shape).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import method_oracles
import numpy as np

Array = np.ndarray


def for_matrices(formula: Callable[..., Array]) -> Callable[..., Array]:
    """Tensors that are no matrices take Σ w d / T."""

    @wraps(formula)
    def method(d: Array, w: Array, scale: float = 1.0, **options: object) -> Array:
        if d.ndim != 3 or d.size == 0:
            return scale * np.einsum("i,i...->...", w, d) / len(w)
        return scale * formula(d, w, **options)

    return method


def inverse_root(gram: Array) -> Array:
    """gram^(-1/2) on its range."""
    values, vectors = np.linalg.eigh(gram)
    powers = np.where(values > 1e-12 * values.max(), np.abs(values) + 1e-300, np.inf) ** -0.5
    return (vectors * powers) @ vectors.T


def polar(matrix: Array) -> Array:
    return matrix @ inverse_root(matrix.T @ matrix)


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    rank = np.linalg.matrix_rank(matrix)
    return u[:, :rank], s[:rank], v[:rank]


@for_matrices
def tsv(d: Array, w: Array) -> Array:
    k = max(1, min(d.shape[1:]) // len(w))
    parts = [svd(x) for x in d]  # of weight 0 too: their directions take their room
    a = np.hstack([u[:, :k] for u, _, _ in parts])
    b = np.hstack([v[:k].T for _, _, v in parts])
    values = np.concatenate([w[i] * s[:k] for i, (_, s, _) in enumerate(parts)])
    return polar(a) @ np.diag(values) @ polar(b).T


@for_matrices
def iso_c(d: Array, w: Array) -> Array:
    total = sum(w[i] * d[i] for i in range(len(w)))
    u, s, v = svd(total)
    return s.mean() * u @ v


@for_matrices
def iso_cts(d: Array, w: Array, common: float = 0.8) -> Array:
    r, count = min(d.shape[1:]), len(w)
    each = round((r - int(common * r)) / count)
    u, s, v = svd(sum(w[i] * d[i] for i in range(count)))
    kept = max(r - each * count, 0)
    us, ss, vs = [u[:, :kept]], [s[:kept]], [v[:kept]]
    for i in range(count):
        rest = w[i] * (np.eye(d.shape[1]) - us[0] @ us[0].T) @ d[i]
        if np.linalg.norm(rest) > 1e-10 * np.linalg.norm(d[i]):
            ui, si, vi = svd(rest)
            us.append(ui[:, :each])
            ss.append(si[:each])
            vs.append(vi[:each])
    return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vs).T).T


def equations(d: Array, w: Array) -> tuple[Array, Array]:
    shares = [w[i] / (d[i] ** 2).sum() if d[i].any() else 0.0 for i in range(len(w))]
    moved = sum(c * x @ x.T @ x for c, x in zip(shares, d, strict=True))
    return moved, sum(c * x.T @ x for c, x in zip(shares, d, strict=True))


@for_matrices
def wudi(d: Array, w: Array, ridge: float = 0.1) -> Array:
    """Solve for the stationary point of Σ w ‖(W - d_i) d_iᵀ‖² / ‖d_i‖² by least squares, row by row; the ridge is more
    inputs, of all directions alike."""
    width = d.shape[2]
    if (w < 0).any():  # no least squares: the stationary point itself
        grams = [(x.T @ x + ridge * (x**2).sum() / width * np.eye(width)) / max((x**2).sum(), 1e-300) for x in d]
        total = sum(w[i] * grams[i] for i in range(len(w)))
        return np.linalg.solve(total, sum(w[i] * d[i] @ grams[i] for i in range(len(w))).T).T
    blocks = []
    for i in range(len(w)):
        length = np.linalg.norm(d[i])
        seen = (
            np.hstack([d[i].T / length, math.sqrt(ridge / width) * np.eye(width)]) if length else np.zeros((width, 1))
        )
        blocks.append(math.sqrt(w[i]) * seen)
    inputs = np.hstack(blocks)
    outputs = np.hstack([d[i] @ blocks[i] for i in range(len(w))])
    return np.linalg.lstsq(inputs.T, outputs.T, rcond=None)[0].T


@for_matrices
def swudi(d: Array, w: Array, time: float = 300.0, density: float = 0.65, init: str = "sum") -> Array:
    moved, total = equations(d, w)
    start = sum(w[i] * d[i] for i in range(len(w))) / (len(w) if init == "mean" else 1)
    values, vectors = np.linalg.eigh(total)
    result = start.copy()
    for index in np.argsort(values)[::-1][: math.ceil(density * len(values))]:
        value, q = values[index], vectors[:, index]
        if value > 1e-12 * values.max():
            result = result + (1 - math.exp(-value * time)) / value * np.outer((moved - start @ total) @ q, q)
    return result


@for_matrices
def cart(d: Array, w: Array, rank_share: float = 0.08, spread: float = 1.0) -> Array:
    scaled = [w[i] * d[i] for i in range(len(w))]
    mean = sum(scaled) / len(w)
    k = max(1, int(rank_share * min(d.shape[1:])))
    leaving = [svd(delta - mean) if np.any(delta != mean) else None for delta in scaled]
    return mean + spread * sum(u[:, :k] * s[:k] @ v[:k] for u, s, v in filter(None, leaving))


@for_matrices
def star(d: Array, w: Array, energy: float = 0.4) -> Array:
    total = np.zeros(d.shape[1:])
    for i in range(len(w)):
        if not (w[i] * d[i]).any():
            continue
        u, s, v = svd(w[i] * d[i])
        k = next(k for k in range(1, len(s) + 1) if s[:k].sum() >= energy * s.sum() * (1 - 1e-12))
        total += u[:, :k] * (s[:k] * s.sum() / s[:k].sum()) @ v[:k]
    return total / len(w)


@for_matrices
def svc(d: Array, w: Array, floor: float = 0.1) -> Array:
    scaled = [w[i] * d[i] for i in range(len(w))]
    merged = sum(scaled)
    u, s, v = svd(merged)
    result = np.zeros(merged.shape)
    for r in range(len(s)):
        counted = 0.0
        for delta in d:
            share = u[:, r] @ delta
            counted += max(floor, (u[:, r] @ merged) @ share / (share @ share) if np.any(share) else 1.0)
        result += s[r] * len(w) / counted * np.outer(u[:, r], v[r])
    return result


def inside_of(aligned: Array, w: Array, inside: str, density: float) -> Array:
    if inside == "task_arithmetic":
        return method_oracles.task_arithmetic(aligned, w)
    return method_oracles.ties(aligned, w, density)


@for_matrices
def knots(d: Array, w: Array, inside: str = "ties", density: float = 0.2) -> Array:
    u, _, _ = svd(np.hstack(list(d)))
    return u @ inside_of(np.stack([u.T @ x for x in d]), w, inside, density)  # S V_i = Uᵀ d_i


@for_matrices
def core(d: Array, w: Array, inside: str = "ties", density: float = 0.2) -> Array:
    u, _, _ = svd(np.hstack(list(d)))
    _, _, v = svd(np.vstack(list(d)))
    return u @ inside_of(np.stack([u.T @ delta @ v.T for delta in d]), w, inside, density) @ v
