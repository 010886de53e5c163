"""Orthogonal Procrustes: the rotation that carries one embedding space onto another."""

from __future__ import annotations

import numpy as np


def orthogonal_procrustes(cross: np.ndarray, *, toward_identity: float = 0.0) -> np.ndarray:
    """R = polar(XᵀY), the orthogonal matrix that minimises ‖X R - Y‖_F (Schönemann 1966).

    cross: XᵀY (d, d), so that it can be summed over batches. toward_identity: adds this multiple of the mean singular
    value times I before the polar factor is taken. Fewer pairs than dimensions leave R free on the rest of the space;
    a small value (1e-3) makes it turn as little as it can there, instead of arbitrarily. Returns (d, d) float64.
    """
    cross = np.asarray(cross, dtype=np.float64)
    if toward_identity:
        level = np.linalg.norm(cross, ord="nuc") / len(cross)
        cross = cross + toward_identity * level * np.eye(len(cross))
    left, _, right = np.linalg.svd(cross)
    return left @ right
