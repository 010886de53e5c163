"""Half-precision weights are float32 while they are trained: the live parameters are their own masters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Masters:
    """The tensors that are float32 for a while. formats: (module, name of its own tensor) -> number format before."""

    def __init__(self) -> None:
        self.formats: dict[tuple[nn.Module, str], torch.dtype] = {}

    def __len__(self) -> int:
        return len(self.formats)

    def widen(self, module: nn.Module) -> None:
        """Widen all half-precision tensors of a module, in place, because optimizers already have the parameters."""
        for part in module.modules():
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None and _is_half(tensor):
                    self.formats[part, name] = tensor.dtype
                    tensor.data = tensor.data.float()

    def round(self) -> None:
        """Give every tensor the value that it will have afterwards, still in float32."""
        with torch.no_grad():
            for (part, name), dtype in self.formats.items():
                tensor = _held(part, name)
                tensor.copy_(tensor.to(dtype))

    def narrow(self) -> None:
        """Restore the original number formats."""
        for (part, name), dtype in self.formats.items():
            tensor = _held(part, name)
            tensor.data = tensor.data.to(dtype)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[Masters]:
    """Hold and compute in float32, inside the block, what is trained (`requires_grad`) and stored in half precision.

    At the learning rates of fine-tuning a step is smaller than the distance between neighbouring bfloat16 numbers, and
    a gradient that is rounded before it is added to others depends on how a batch was divided. Values are rounded once,
    when the block is left. What is frozen stays as it is: inputs are converted wherever the number format changes.

    Source: mixed precision training, Micikevicius et al., arXiv 1710.03740, section 3.1.
    """
    trained = {id(one) for one in module.parameters() if one.requires_grad and _is_half(one)}
    masters = Masters()
    if not trained:
        yield masters
        return
    units, frozen = _divided(module, trained)
    hooks: list[Any] = [part.register_forward_pre_hook(_inputs_in(_format(part)), with_kwargs=True) for part in frozen]
    for unit in units:
        dtype = _format(unit)
        hooks.append(unit.register_forward_pre_hook(_inputs_in(torch.float32), with_kwargs=True))
        if _stands_beside_others(unit):
            hooks.append(unit.register_forward_hook(_output_in(dtype)))
        masters.widen(unit)
    try:
        yield masters
    finally:
        masters.narrow()
        for hook in hooks:
            hook.remove()


def _divided(module: nn.Module, trained: set[int]) -> tuple[list[nn.Module], list[nn.Module]]:
    """(the largest modules that are to be float32, the largest that remain in half precision)."""
    own = [one for one in module.parameters() if _is_half(one)]
    if not any(id(one) in trained for one in own):
        return [], _callable(module) if own else []
    direct = [one for one in module.parameters(recurse=False) if id(one) in trained]
    is_container = isinstance(module, _CONTAINERS)
    reads_children = isinstance(module, nn.MultiheadAttention)  # its out_proj is never called
    if not is_container and (direct or reads_children or all(id(one) in trained for one in own)):
        return [module], []
    units, frozen = [], []
    for child in module.children():
        inner, beside = _divided(child, trained)
        units += inner
        frozen += beside
    return units, frozen


def _callable(module: nn.Module) -> list[nn.Module]:
    """The module, or what a container holds: containers are not called themselves."""
    if not isinstance(module, _CONTAINERS):
        return [module]
    return [part for child in module.children() if any(map(_is_half, child.parameters())) for part in _callable(child)]


def _stands_beside_others(unit: nn.Module) -> bool:
    """Whether a unit is a single layer: the results of a frozen one may meet its own in one operation."""
    return isinstance(unit, nn.MultiheadAttention) or next(unit.children(), None) is None


def _inputs_in(dtype: torch.dtype) -> Any:
    def convert(_: nn.Module, arguments: Any, options: Any) -> Any:
        return _in(arguments, dtype), _in(options, dtype)

    return convert


def _output_in(dtype: torch.dtype) -> Any:
    return lambda _, __, output: _in(output, dtype)


def _in(value: Any, dtype: torch.dtype) -> Any:
    """Real numbers of float32 or less in a number format, within tuples, lists and plain dicts too."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.element_size() <= 4 else value
    if type(value) in (tuple, list):
        return type(value)(_in(one, dtype) for one in value)
    if type(value) is dict:
        return {name: _in(one, dtype) for name, one in value.items()}
    return value


def _format(module: nn.Module) -> torch.dtype:
    return next(one.dtype for one in module.parameters() if _is_half(one))


def _held(module: nn.Module, name: str) -> Tensor:
    """What now is under the name: what shards a model puts other parameters there."""
    found = module._parameters[name] if name in module._parameters else module._buffers[name]
    assert found is not None
    return found


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)
