"""Projector recovery from the weights alone: what the fused backbone reads first is what the specialist's would.

The backbone's first layer reads a projected vector x through a few matrices, M x (queries, keys, values, behind a norm
whose gains are part of M). After fusing it reads M' x. The map A with M' A x ~ M x for all x is a least-squares problem
of the weights, and goes into the projector's last layer. It needs no data, moves nothing else, and mends no more than
the first layer's share of the drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskmerge.embedders.interface import Embedder

RIDGE = 0.1
"""Pull towards leaving x as it is, in units of the mean eigenvalue of M'ᵀM': the rest of the layer sees x itself."""


def first_layer_fit(
    model: Embedder, specialist: Embedder, names: Sequence[str], modality: str, ridge: float = RIDGE
) -> tuple[dict[str, Tensor], str]:
    """Values for tensors of the projector that undo what fusing did to the first layer's reading.

    Args:
        model, specialist: fused and specialist, of one architecture.
        names: tensors that may change, by their names in the file.
        modality: whose projector.
        ridge: see `RIDGE`.

    Returns:
        ({name: value}, what was done); {} where the parts are not found, with the reason.
    """
    last = _last_layer(model, modality)
    own = {id(value): name for name, value in model.state_dict.values.items()}
    weight = own.get(id(last.weight)) if last is not None else None
    if last is None or weight is None or weight not in names:
        return {}, f"the projector of {modality} does not end in a trained linear layer"
    reads, read = _reading(model), _reading(specialist)
    if reads is None or read is None or reads.shape != read.shape or reads.shape[1] != last.out_features:
        return {}, "there is no first layer that reads the projected vectors in both models"
    change = _map(reads, read, ridge)
    found = {weight: (change @ last.weight.detach().double()).to(last.weight)}
    if last.bias is not None and own.get(id(last.bias)) in names:
        found[own[id(last.bias)]] = (change @ last.bias.detach().double()).to(last.bias)
    moved = float((change - torch.eye(len(change), dtype=change.dtype)).norm() / len(change) ** 0.5)
    return found, f"from the weights alone: the projected vectors change by {moved:.3f}"


def _map(reads: Tensor, read: Tensor, ridge: float) -> Tensor:
    """A (d, d) that minimises ‖reads A - read‖² + λ ‖A - 1‖², float64. reads, read: (rows, d)."""
    gram = reads.mT @ reads
    pull = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + pull, reads.mT @ read + pull)


def _last_layer(model: Embedder, modality: str) -> nn.Linear | None:
    modules = model.anatomy().projectors.get(modality, ())
    linear = [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]
    return linear[-1] if linear else None


def _reading(model: Embedder) -> Tensor | None:
    """M (rows, d) float64: the linear layers that share the input of the first one that runs in the first layer, times
    the gains of the norm whose output that is."""
    layer = model.anatomy().layers[0]
    inputs: list[tuple[nn.Linear, Tensor]] = []
    gains: list[tuple[Tensor, Tensor]] = []

    def reader(module: nn.Linear, arguments: tuple[Any, ...]) -> None:
        inputs.append((module, arguments[0]))

    def norm(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            gains.append((output, module.weight))

    handles = [part.register_forward_pre_hook(reader) for part in layer.modules() if isinstance(part, nn.Linear)]
    for part in model.module.modules():
        if isinstance(getattr(part, "weight", None), Tensor) and part.weight.ndim == 1:
            handles.append(part.register_forward_hook(norm))
    try:
        with model.inference():
            model.embed(model.prepare(["a"], "text"))
    finally:
        for handle in handles:
            handle.remove()
    if not inputs:
        return None
    first = inputs[0][1]
    stacked = torch.cat([module.weight.detach().double().cpu() for module, value in inputs if value is first])
    gain = next((weight.detach().double().cpu() for output, weight in gains if output is first), None)
    return stacked if gain is None else stacked * gain
