"""How far two tools' outputs lie apart, tensor by tensor, in units of the last place of bf16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open


def compare(ours: Path, theirs: Path, inputs: Sequence[Path], density: float | None = None) -> dict[str, float]:
    """Shares of entries: equal bits; more than one unit apart; and of those, for TIES (density given), how many are
    neither at a trim threshold of some specialist nor beside a vote that float32 cannot decide."""
    total = equal = apart = unexplained = largest = 0
    files = [safe_open(path / "model.safetensors", "pt") for path in inputs]
    with safe_open(ours, "pt") as first, _opened(theirs) as second:
        for name in first.keys():  # noqa: SIM118 (safe_open is no mapping)
            a, b = _bits(first, name), _bits(second, name)
            distance = np.abs(_ordered(a) - _ordered(b))
            total += a.size
            equal += int((distance == 0).sum())
            far = distance > 1
            apart += int(far.sum())
            largest = max(largest, int(distance.max(initial=0)))
            if density is not None and far.any():
                unexplained += int((far & ~_undecided([_values(file, name) for file in files], density)).sum())
    result = {"entries": total, "equal": equal / total, "apart": apart / total, "largest_distance": largest}
    return result if density is None else {**result, "apart_and_unexplained": unexplained / total}


def _undecided(values: list[np.ndarray], density: float) -> np.ndarray:
    """Entries where some delta is tied with its threshold, or the elected sign hangs on the last bits of a sum."""
    deltas = [value - values[0] for value in values[1:]]
    undecided, total, mass = np.zeros(values[0].size, bool), 0.0, 0.0
    for delta, weight in zip(deltas, (0.3, 0.4, 0.5), strict=False):
        size = np.abs(delta).astype(np.float32)
        kept = max(1, math.floor(density * size.size))
        threshold = np.partition(size, size.size - kept)[size.size - kept]
        undecided |= size == threshold
        trimmed = np.where(size >= threshold, delta, 0.0)
        total, mass = total + weight * trimmed, mass + np.abs(weight * trimmed)
    return undecided | (np.abs(total) <= 1e-5 * mass)


def _opened(folder: Path) -> safe_open:
    """The one safetensors file of a folder, or the file itself."""
    return safe_open(folder if folder.is_file() else next(iter(sorted(folder.glob("*.safetensors")))), "pt")


def _bits(file: safe_open, name: str) -> np.ndarray:
    import torch

    return file.get_tensor(name).to(torch.bfloat16).view(torch.int16).flatten().numpy()


def _values(file: safe_open, name: str) -> np.ndarray:
    return file.get_tensor(name).double().flatten().numpy()


def _ordered(bits: np.ndarray) -> np.ndarray:
    """bf16 bit patterns as integers in the order of their values."""
    wide = bits.astype(np.int32)
    return np.where(wide < 0, -(wide & 0x7FFF), wide)
