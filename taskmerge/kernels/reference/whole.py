"""A Program on whole tensors in memory: measured and interpreted by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from taskmerge.errors import MergeError
from taskmerge.kernels.measuring import exact_sum, factors_of
from taskmerge.kernels.operands import Measurement
from taskmerge.kernels.program import DropByRank, DropRandom, KeepLargest, Program, by_mass, given_factor
from taskmerge.kernels.reference.consensus import agree
from taskmerge.kernels.reference.folding import masses, products
from taskmerge.kernels.reference.survivors import drop_by_rank, drop_random, keep_between, magnitudes


def interpret(
    program: Program,
    deltas: Tensor,
    random_bits: Tensor | None,
    thresholds: Measurement | None,
    weights: Sequence[float | Fraction] | None,
    base: Tensor | None,
) -> Tensor:
    """See `kernels.interpret`."""
    _check(program, deltas, random_bits)
    if not program.weights or not deltas.numel():
        return deltas.new_zeros(deltas.shape[1:])
    if weights is None and program.from_gram is not None:
        weights = _found_weights(program, deltas, base)
    holding = program.weights if weights is None else weights
    if len(holding) != len(program.weights):
        raise MergeError(f"{len(holding)} weights for {len(program.weights)} specialists")
    left = [_survivors(program, i, delta, random_bits, thresholds) for i, delta in enumerate(deltas)]
    agreed = agree(left, [float(weight) for weight in holding], program.consensus, deltas[0])
    move = torch.as_tensor(program.scale * agreed)
    surplus = float(program.base_factor(holding) - 1) if program.base in ("weighted", "summed") else 0.0
    if not surplus:
        return move
    if base is None:
        raise MergeError("a weighted sum of models needs the base")
    return move + surplus * base.to(move)


def _check(program: Program, deltas: Tensor, random_bits: Tensor | None) -> None:
    if deltas.dim() == 0 or deltas.shape[0] != len(program.weights) or len(program.ways) != len(program.weights):
        raise MergeError(f"deltas of shape {tuple(deltas.shape)} for a program of {len(program.weights)} specialists")
    if deltas.dtype != torch.float64:
        raise MergeError(f"deltas of dtype {deltas.dtype}, not torch.float64")
    if program.random and (random_bits is None or random_bits.shape != deltas.shape):
        shape = "none" if random_bits is None else f"of shape {tuple(random_bits.shape)}"
        raise MergeError(f"the program drops entries at random: random bits must have the deltas' shape, not {shape}")


def _found_weights(program: Program, deltas: Tensor, base: Tensor | None) -> tuple[float, ...]:
    assert program.from_gram is not None
    vectors = [delta.flatten() for delta in deltas]
    if program.gram_of == "models":
        if base is None:
            raise MergeError("weights from the models' Gram matrix need the base")
        vectors = [vector + base.to(vector).flatten() for vector in vectors]
    gram = exact_sum([products(vectors).cpu().numpy()], (len(vectors), len(vectors)))
    return tuple(float(weight) for weight in program.from_gram(gram))


def _survivors(
    program: Program, i: int, delta: Tensor, random_bits: Tensor | None, thresholds: Measurement | None
) -> Tensor:
    way = program.ways[i]
    if isinstance(way, KeepLargest):
        return keep_between(delta, *_bounds(way, i, delta, thresholds))
    if way is None:
        return delta
    assert random_bits is not None
    left = _dropped(delta, random_bits[i], way, given_factor(way))
    if not by_mass(way):
        return left
    whole, kept = exact_sum([masses([delta.flatten(), left.flatten()]).cpu().numpy()], (2,))
    return _dropped(delta, random_bits[i], way, factors_of([whole], [kept])[0])


def _dropped(delta: Tensor, bits: Tensor, way: DropRandom | DropByRank, factor: float) -> Tensor:
    if isinstance(way, DropRandom):
        return drop_random(delta, bits, way.density, factor)
    return drop_by_rank(delta, bits, way, factor)


def _bounds(way: KeepLargest, i: int, delta: Tensor, thresholds: Measurement | None) -> tuple[float, float]:
    """The magnitudes between which a specialist keeps."""
    if way.across == "model" and thresholds is not None:
        if thresholds.lowest is None or thresholds.highest is None:
            raise MergeError("thresholds of the complete model without lowest and highest magnitudes")
        return thresholds.lowest[i], thresholds.highest[i]
    if way.nothing:
        return math.inf, math.inf
    first, last = way.ranks(delta.numel())
    falling = magnitudes(delta).flatten().sort(descending=True).values
    return float(falling[last - 1]), float(falling[first - 1]) if first > 1 else math.inf
