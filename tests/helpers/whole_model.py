"""One float64 oracle of a whole merge: every tensor of a small model by its formula, measured over the whole model
where the method says so. Of the package it uses definitions alone: random bits, and the matrix methods' own functions
where inputs of 16 bits bring noise.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import method_oracles
import numpy as np
import spectral_oracles
import torch

from taskmerge.methods import find_method
from taskmerge.numbers.randomness import stream_key, uniform_bits

Array = np.ndarray
TOKEN_TABLES = {"model.embed_tokens.weight", "lm_head.weight"}
MATRICES = {"actmat", "tact", "tsv", "iso_c", "iso_cts", "wudi", "swudi", "cart", "star", "svc", "knots", "core"}


@dataclass
class Case:
    """A merge. base, deltas: tensor -> float64. weights, scale, density, …: per tensor, resolved. protect: label ->
    tensor -> covariance. noise: label -> tensor -> standard deviation of what storage rounded away."""

    method: str
    base: Mapping[str, Array]
    deltas: Mapping[str, Mapping[str, Array]]
    weights: Mapping[str, Mapping[str, float]]
    options: Mapping[str, Mapping[str, Any]]
    scale: Mapping[str, float]
    metagpt: bool = False
    protect: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    noise: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 0

    @property
    def labels(self) -> list[str]:
        return list(self.deltas)


def merged(case: Case) -> dict[str, Array]:
    """Tensor -> b + λ · merged(d), float64, not rounded."""
    shielded = {name: _shielded(case, name) for name in case.base}
    bars = _bars(case, shielded) if any(o.get("trim") == "model" for o in case.options.values()) else {}
    return {
        name: base + case.scale[name] * _delta(case, name, shielded[name], bars) for name, base in case.base.items()
    }


def _shielded(case: Case, name: str) -> Array:
    """The deltas of one tensor, without the protected directions."""
    deltas = np.stack([case.deltas[label][name] for label in case.labels])
    if deltas.ndim != 3:
        return deltas
    for owner, label in enumerate(case.labels):
        covariance = case.protect.get(label, {}).get(name)
        if covariance is None:
            continue
        values, vectors = np.linalg.eigh(covariance)
        order = np.argsort(values)[::-1]
        share = np.cumsum(values[order].clip(min=0)) / values.clip(min=0).sum()
        taken = vectors[:, order[: int((share < 0.9).sum()) + 1]]
        for other in range(len(deltas)):
            if other != owner:
                deltas[other] = deltas[other] - deltas[other] @ taken @ taken.T
    return deltas


def _bars(case: Case, shielded: Mapping[str, Array]) -> dict[tuple[int, float], float]:
    """(specialist, density) -> the least magnitude kept, over all entries of the model."""
    found: dict[tuple[int, float], float] = {}
    for i in range(len(case.labels)):
        sizes = np.sort(np.concatenate([np.abs(d[i]).astype(np.float32).ravel() for d in shielded.values()]))[::-1]
        for options in case.options.values():
            density = method_oracles.every(options["density"], len(case.labels))[i]
            found[i, density] = float(sizes[max(1, math.floor(density * sizes.size)) - 1])
    return found


def _delta(case: Case, name: str, d: Array, bars: Mapping[tuple[int, float], float]) -> Array:
    options = dict(case.options[name])
    w = method_oracles.metagpt(d) if case.metagpt else np.array([case.weights[label][name] for label in case.labels])
    if not case.metagpt and not w.any():
        return np.zeros(d.shape[1:])
    if options.pop("trim", "tensor") == "model":
        density = method_oracles.every(options.pop("density"), len(d))
        kept = [np.where(np.abs(x).astype(np.float32) >= bars[i, density[i]], x, 0.0) for i, x in enumerate(d)]
        return method_oracles.elected(
            np.stack(kept), w, options.get("elect", "weighted_mass"), options.get("average", "weight")
        )
    formula = getattr(spectral_oracles, case.method, None) or getattr(method_oracles, case.method)
    if case.method in MATRICES and (d.ndim != 3 or name in TOKEN_TABLES):
        return np.einsum("i,i...->...", w, d) / len(w)
    if case.method in MATRICES and max(case.noise[label][name] for label in case.labels) > 1e-7:
        return _by_method(case, name, d, w, options)
    extra: dict[str, Any] = {"base": case.base[name], "bits": _bits(case, name)}
    asked = inspect.signature(formula).parameters
    given = {key: value for key, value in extra.items() if key in asked}
    return np.asarray(formula(d, w, **given, **options))


def _by_method(case: Case, name: str, d: Array, w: Array, options: Mapping[str, Any]) -> Array:
    """What a method of matrices makes of deltas that 16 bits have rounded: its formula there includes a rule for noise,
    which tests/methods/spectral holds against the float64 merge. Here it is given the oracle's own deltas and noise."""
    method = find_method(case.method)
    noise = torch.tensor([case.noise[label][name] for label in case.labels], dtype=torch.float64)
    return method.merge(torch.from_numpy(d), torch.from_numpy(w), method.options(options), noise=noise).numpy()


def _bits(case: Case, name: str) -> Array:
    shape = case.base[name].shape
    rows = [uniform_bits(stream_key(case.seed, label, name), 0, math.prod(shape)) for label in case.labels]
    return np.stack(rows).astype(np.int64).reshape(len(rows), *shape)
