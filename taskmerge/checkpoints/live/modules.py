"""Live modules as they may be merged: out of the wrappers around them, whole, and in plain numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskmerge.errors import Problem, UsageError, few

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 3
_QUANTIZERS = ("bitsandbytes", "torchao", "optimum")


def bare(module: nn.Module, label: str) -> nn.Module:
    """Return the model inside `DataParallel`, `DistributedDataParallel` and the result of `torch.compile`.

    Args:
        module: a live model.
        label: what messages call it.

    Raises:
        UsageError: for a model of which each process holds a part (FSDP).
    """
    from torch import nn

    while True:
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            raise UsageError(
                f"{label} is wrapped in FullyShardedDataParallel: this process holds a part of it",
                next_move="gather its state dict, or save it and give the folder",
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif kind == "OptimizedModule" and isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, also those that are never saved; one with two names comes twice."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def check_mergeable(module: nn.Module, label: str) -> None:
    """Raise UsageError for a model whose tensors are missing, or are not plain numbers.

    Args:
        module: a live model, out of its wrappers.
        label: what messages call it.
    """
    problems = []
    meta = [name for name, tensor in tensors_of(module) if tensor.is_meta]
    if meta:
        problems.append(
            Problem(
                f"{label} has no values on the meta device for {few(meta, _SHOWN)}",
                next_move="load the complete model, without device_map and offloading; or give its folder",
            )
        )
    if packed := _packed(module):
        problems.append(
            Problem(
                f"{label} is quantized: {packed}",
                next_move="load it without quantization; or give its folder, whose packed weights fuse reads",
            )
        )
    sharded = [name for name, tensor in tensors_of(module) if type(tensor).__name__ == "DTensor"]
    sharded += [
        name for name, tensor in tensors_of(module) if type(getattr(tensor, "data", None)).__name__ == "DTensor"
    ]
    if sharded:
        problems.append(
            Problem(
                f"{label} is sharded over processes: {few(dict.fromkeys(sharded), _SHOWN)}",
                next_move="gather its state dict, or save it and give the folder",
            )
        )
    if problems:
        raise UsageError(problems)


def _packed(module: nn.Module) -> str:
    """What shows that weights are held in few bits, for a message; "" where none are."""
    import torch

    for name, part in module.named_modules():
        if getattr(part, "hf_quantizer", None) is not None:
            return f"{type(part).__name__} was loaded with {type(part.hf_quantizer).__name__}"
        origin = type(part).__module__
        if origin.startswith(("torch.ao.nn.quantized", "torch.ao.nn.quantizable", "bitsandbytes.", "torchao.")):
            return f"{name or 'it'} is a {origin.partition('.')[0]} {type(part).__name__}"
    plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    for name, tensor in tensors_of(module):
        kind = type(tensor.data) if type(tensor) is torch.nn.Parameter else type(tensor)
        if tensor.is_quantized or (
            kind not in plain and kind.__module__.startswith(("bitsandbytes", "torchao", "optimum"))
        ):
            return f"{name} is a {kind.__name__} of {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def same_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of a model's structure that shares the model's tensors.

    It may be taken apart and saved, and no tensor is copied.
    """
    held: dict[int, Any] = {id(tensor): tensor for _, tensor in tensors_of(module)}
    return copy.deepcopy(module, held)
