"""Tensors of a model put into a live one, each by its name in the file, bit for bit where the formats are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from taskmerge.checkpoints.state_dict import StateDict, entries
from taskmerge.errors import CheckpointError, few
from taskmerge.numbers.dtypes import BY_TORCH_NAME

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = 1 << 22
"""Entries of a tensor that are converted at once."""


def put(live: Mapping[str, Tensor], weights: StateDict, names: Iterable[str] | None = None) -> None:
    """Write tensors into a live model.

    Args:
        live: its tensors by their names in the file (`Embedder.state_dict.values`), written in place.
        weights: what is written; a merge that is computed on demand is merged into place.
        names: which tensors; left out: all that both have and that hold real numbers.
    """
    import torch

    wanted = [name for name in live if name in weights.tensors and weights.tensors[name].format.mergeable]
    with torch.no_grad():
        for name in wanted if names is None else names:
            _put(live[name].data, weights, name)


def _put(tensor: Tensor, weights: StateDict, name: str) -> None:
    import torch

    info = weights.tensors[name]
    same = getattr(BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch.")), "name", None) == info.dtype
    if same and tensor.device.type == "cpu" and tensor.is_contiguous():
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        storage = info.format.storage
        assert storage is not None, "a live tensor has bytes"
        weights.read_into(name, 0, info.count, tensor.view(-1).view(bits).numpy().view(storage))
        return
    if not tensor.is_contiguous():
        values = entries(weights, name, 0, info.count)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(tensor.shape))
        return
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), ENTRIES):
        stop = min(start + ENTRIES, flat.numel())
        flat[start:stop] = torch.from_numpy(entries(weights, name, start, stop)).to(flat.device)


def check_covers(live: Mapping[str, Tensor], weights: StateDict) -> None:
    """Raise CheckpointError when a model that is run has parameters that `weights` does not give it."""
    import torch

    known = {tensor.data_ptr() for name, tensor in live.items() if name in weights.tensors}
    lost = [
        name
        for name, tensor in live.items()
        if isinstance(tensor, torch.nn.Parameter) and name not in weights.tensors and tensor.data_ptr() not in known
    ]
    if lost:
        raise CheckpointError(
            f"lacks {few(lost, 3)}, which the model that it should run has",
            weights.label,
            "give weights with all tensors of the model",
        )
