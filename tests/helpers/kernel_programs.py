"""Programs and keys that all backends are tried on."""

from __future__ import annotations

import numpy as np

from taskmerge.kernels import (
    Active,
    DropByRank,
    DropRandom,
    Elect,
    KeepLargest,
    Largest,
    Program,
    Sum,
)
from taskmerge.numbers.randomness import stream_key

W = (0.3, 0.5, 0.7)
PROGRAMS = {
    "task_arithmetic": Program(W),
    "linear": Program((0.2, 0.3, 0.9), scale=0.7, base="weighted"),
    "left_out": Program(W, scale=0.7, consensus=Elect(), base="left_out"),
    "ties": Program(W, sparsify=KeepLargest(0.2), consensus=Elect()),
    "breadcrumbs_ties": Program(W, sparsify=KeepLargest(0.3, skip=0.1), consensus=Elect("mass", "count")),
    "count_none": Program((0.3, -0.5, 0.7), sparsify=KeepLargest(0.6), consensus=Elect("count", "none")),
    "cancelling_weights": Program((0.5, -0.5, 0.0), consensus=Elect("mass", "weight")),
    "dare_ties": Program(W, sparsify=DropRandom(0.4), consensus=Elect()),
    "dare_l1": Program(W, sparsify=DropRandom(0.4, "l1")),
    "dare_none": Program(W, sparsify=DropRandom(0.4, "none"), consensus=Sum()),
    "dare_all": Program(W, sparsify=DropRandom(1.0)),
    "della": Program(W, sparsify=DropByRank(0.5, 0.2), consensus=Elect()),
    "della_clipped": Program(W, sparsify=DropByRank(0.9, 0.3)),
    "della_plain": Program(W, sparsify=DropByRank(0.1, 0.3, "none"), consensus=Largest()),
    "della_l1": Program(W, sparsify=DropByRank(0.4, 0.3, "l1")),
    "magmax": Program(W, scale=2.0, consensus=Largest()),
    "consensus": Program(W, consensus=Active(0.4, 2)),
    "model_stock": Program(W, from_gram=lambda gram: np.sqrt(np.diag(gram)) / (1e-30 + np.trace(gram))),
}
KEYS = [stream_key(7, name, "layer") for name in ("audio", "image", "video")]
