"""Parameters in pieces on several processes: whole for a checkpoint, in pieces again, a plain model at last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskmerge.embedders.interface import Embedder
from taskmerge.errors import UsageError

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip


def whole(tensor: Tensor) -> Tensor:
    """Return a complete tensor on the CPU. Every process must call this, in the same order."""
    found = tensor.detach()
    if hasattr(found, "full_tensor"):
        found = found.full_tensor()
        found = found.wait() if hasattr(found, "wait") else found  # on its way still
    return found.cpu().contiguous()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a complete tensor in a parameter's form: on its device, and sharded as it is."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor") or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process holds the same value: each takes its own piece, nothing is sent
    placed: Tensor = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return placed


def in_pieces(module: nn.Module) -> None:
    """Let go of what a forward pass has put together: the pieces are what optimizers and checkpoints know."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def layer_classes(embedder: Embedder) -> list[str]:
    """Return the names of the classes that parameters are sharded by: the backbone's layers, and those of encoders.

    Raises UsageError where there are none.
    """
    names = {type(layer).__name__ for layer in embedder.anatomy().layers}
    if not names:
        raise UsageError(f"{embedder.label}: no layers to shard by", next_move="train it without `fsdp`")
    return sorted(names)


@contextmanager
def plain_again(module: nn.Module) -> Iterator[None]:
    """Whatever shards the module inside the block, after it each process has a whole plain one, as before.

    torch has no way back from `fully_shard`: classes and hooks are put back as they were, parameters are gathered.
    """
    before = [(part, part.__class__, {name: dict(getattr(part, name)) for name in _HOOKS}) for part in module.modules()]
    formats = {name: parameter.dtype for name, parameter in module.named_parameters()}
    try:
        yield
    finally:
        in_pieces(module)
        if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
            _gather(module, formats)
            for part, kind, hooks in before:
                part.__class__ = kind
                for name, held in hooks.items():
                    found = getattr(part, name)
                    found.clear()
                    found.update(held)


def _gather(module: nn.Module, formats: Mapping[str, torch.dtype]) -> None:
    """Whole parameters, in the number formats that they had: under autocast, what is trained is float32 meanwhile."""
    known: dict[int, nn.Parameter] = {}
    for inside, part in module.named_modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in known:
                full = f"{inside}.{name}" if inside else name
                value = whole(parameter).to(parameter.device, formats.get(full, parameter.dtype))
                known[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            part._parameters[name] = known[id(parameter)]


def optimizer_state(optimizer: Any, names: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """Return an optimizer's state of each parameter, by the parameter's name, complete, on the CPU."""
    return {
        name: {
            key: whole(value) if isinstance(value, Tensor) else value
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in names.items()
        if parameter in optimizer.state
    }


def load_optimizer_state(optimizer: Any, state: Mapping[str, Mapping[str, Any]], names: Mapping[str, Any]) -> None:
    """Take up what `optimizer_state` gave, of however many processes it was."""
    for name, values in state.items():
        parameter = names[name]
        optimizer.state[parameter] = {
            key: (like(value, parameter) if value.ndim else value.clone()) if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
