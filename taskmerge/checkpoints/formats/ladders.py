"""The nearest of the few numbers that a format of few bits has."""

from __future__ import annotations

import numpy as np


def nearest_on(sizes: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Return the place of the nearest size for each magnitude: uint8.

    Args:
        sizes: finite magnitudes of the format, float64, rising in the order of their bits, 256 at most.
        magnitudes: float64, none negative. Midway between two sizes the even place is taken, beyond the last the last.
    """
    middles = (sizes[1:] + sizes[:-1]) / 2
    step = np.searchsorted(middles, magnitudes, side="left")
    tied = (step < len(middles)) & (magnitudes == middles[np.minimum(step, len(middles) - 1)])
    step = np.where(tied & (step % 2 == 1), step + 1, step)
    return np.minimum(step, len(sizes) - 1).astype(np.uint8)
