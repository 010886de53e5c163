"""Noise of a stored tensor: the effect of rounding its values to its number format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.numbers.rounding import decode, on_grid, step

CHUNK = 1 << 20
"""Entries that are looked at together, about."""
GRIDS = {"F64": ("F64", "F32", "F16", "BF16"), "F32": ("F32", "F16", "BF16"), "F16": ("F16",), "BF16": ("BF16",)}
"""The formats that entries of each may have been rounded to before they were stored."""


def storage_noise(stored: Iterable[np.ndarray], dtype: str) -> float:
    """Estimate the standard deviation of the rounding in a tensor's entries: root mean square of their steps / √12.

    Entries that equal the base's count as all others do. A change of less than half a step is rounded away whole, and
    an entry that moved by nothing may have been meant to move by anything up to that: as uncertain as those that moved.
    (LoRA merged into bf16 at a hundredth of its base's length leaves a fifth of the entries where they were; the noise
    found over all of them is right within 1 %.) An entry that was never trained at all makes the noise too large, never
    too small.

    A tensor whose every entry is a number of a coarser format was rounded to that one before it was stored.

    Args:
        stored: the entries' values, float64, in chunks of any shape; read once.
        dtype: how they are stored: F64, F32, F16 or BF16.
    """
    squares, count = dict.fromkeys(GRIDS[dtype], 0.0), 0
    for values in stored:
        count += values.size
        for grid in list(squares):
            if on_grid(values, grid):
                squares[grid] += float(np.square(step(values, grid)).sum())
            else:
                del squares[grid]
    return math.sqrt(max(squares.values()) / (12 * count)) if count else 0.0


def noise_of(state_dict: StateDict, name: str) -> float:
    """Return the noise of one stored tensor, as white noise of the same strength.

    For a tensor that is not a matrix: its `storage_noise`. The noise of a matrix grows with its entries, so that rows
    or columns of large entries have more; what decides is the largest singular value that it can make. The result is
    the standard deviation of the white noise that makes as large a one, which is the root mean square where all rows
    and all columns are alike, and more where they are not.

    Args:
        state_dict: of the tensor.
        name: its name there; F64, F32, F16 or BF16, of any shape.
    """
    info = state_dict.tensors[name]
    if len(info.shape) != 2 or not info.count:
        return storage_noise(_chunks(state_dict, name, CHUNK), info.dtype)
    rows, columns = info.shape
    together = max(1, CHUNK // columns)
    found = {grid: (np.zeros(rows), np.zeros(columns)) for grid in GRIDS[info.dtype]}
    for index, values in enumerate(_chunks(state_dict, name, together * columns)):
        block = values.reshape(-1, columns)
        for grid in list(found):
            if on_grid(block, grid):
                squares = np.square(step(block, grid)) / 12
                found[grid][0][index * together :][: len(block)] = squares.sum(axis=1)
                found[grid][1][:] += squares.sum(axis=0)
            else:
                del found[grid]
    return max(white_equivalent(by_row, by_column) for by_row, by_column in found.values())


def white_equivalent(by_row: np.ndarray, by_column: np.ndarray) -> float:
    """Return the standard deviation of white noise with the same largest singular value as noise with a profile.

    The entries' variances are taken to be a product, a_i b_j. Of such noise the largest singular value is, by Lehner's
    formula (2108.06312, section 3), the square root of the least h / (p q) over h > 0 with
    h = Σ p a_i / (1 - p a_i) = Σ q b_j / (1 - q b_j); where all a and b are 1, that is √rows + √columns.

    Args:
        by_row: sum of the variances of each row's entries, (rows,).
        by_column: of each column's, (columns,).
    """
    total = float(by_row.sum())
    if total <= 0:
        return 0.0
    rows, columns = len(by_row), len(by_column)
    near = 1 / (1 + np.exp(-np.linspace(-12, 12, 385)))
    curves = []
    for sums in (by_row, by_column):
        profile = sums / sums.mean()
        share = near / profile.max()
        grown = np.array([float(np.sum(s * profile / (1 - s * profile))) for s in share])
        curves.append((np.log(grown), np.log(share)))
    low, high = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    heights = np.linspace(low, high, 2001)
    squared = heights - sum(np.interp(heights, *curve) for curve in curves)
    edge = math.sqrt(total / (rows * columns)) * math.exp(float(squared.min()) / 2)
    return edge / (math.sqrt(rows) + math.sqrt(columns))


def _chunks(state_dict: StateDict, name: str, size: int) -> Iterator[np.ndarray]:
    info = state_dict.tensors[name]
    for start in range(0, info.count, size):
        yield decode(state_dict.read(name, start, min(start + size, info.count)), info.dtype)
