"""Tensors that already live in memory: a dict of arrays or torch tensors, or a live module."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from taskmerge.checkpoints.state_dict import Beside, StateDict
from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.errors import CheckpointError, clipped
from taskmerge.numbers.dtypes import BY_TORCH_NAME, DTYPES

if TYPE_CHECKING:
    import torch
    from torch import nn

_BY_NUMPY = {row.storage: row.name for row in DTYPES.values() if row.storage is not None and row.kind != "small_float"}
_BY_NUMPY[np.dtype("u1")], _BY_NUMPY[np.dtype("<u2")] = "U8", "U16"


class MemoryStateDict(StateDict):
    """`StateDict` over a mapping from name to NumPy array or torch tensor; nothing is copied until it is read."""

    def __init__(
        self, tensors: Mapping[str, Any], label: str = "in memory", config: Mapping[str, Any] | None = None
    ) -> None:
        self.label = label
        self.beside = Beside(config=dict(config or {}))
        self._values = dict(tensors)
        self.tensors = {name: _describe(name, value, label) for name, value in self._values.items()}

    @property
    def values(self) -> Mapping[str, Any]:
        """The arrays or tensors themselves, by name."""
        return self._values

    @classmethod
    def of_module(cls, module: torch.nn.Module, label: str | None = None) -> MemoryStateDict:
        """Return the state dict of a live module, with its transformers config if it has one."""
        config = getattr(module, "config", None)
        table = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        return cls(module.state_dict(), label or type(module).__name__, table)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        value, storage = self._values[name], self.tensors[name].format.storage
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value.reshape(-1)[start:stop], storage)
        if value.is_meta:
            raise CheckpointError(
                f"{name!r} has no values, because it is on the meta device", self.label, "load the weights"
            )
        flat = value.detach().reshape(-1)[start:stop].cpu().contiguous()
        return flat.view(_same_size_integer(flat)).numpy().view(storage)


def is_live(source: object) -> TypeGuard[nn.Module]:
    """Return whether the source is a torch module; torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def bytes_of(tensors: Iterable[Any]) -> int:
    """Sum the bytes of arrays or tensors, each counted once: tied ones are stored once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _describe(name: str, value: Any, label: str) -> TensorInfo:
    if not isinstance(name, str):
        raise CheckpointError(
            f"a tensor's name must be text, not {clipped(repr(name), 80)}",
            label,
            "use the names of the model's parameters as keys",
        )
    if (layout := str(getattr(value, "layout", "torch.strided"))) != "torch.strided":
        raise CheckpointError(f"{name!r} is not a dense tensor ({layout})", label, "give it as tensor.to_dense()")
    if isinstance(value, np.ndarray):
        dtype = _BY_NUMPY.get(value.dtype.newbyteorder("<"))
    else:
        dtype = getattr(BY_TORCH_NAME.get(str(getattr(value, "dtype", "")).removeprefix("torch.")), "name", None)
    if dtype is None or DTYPES[dtype].storage is None:
        found = getattr(value, "dtype", type(value).__name__)
        raise CheckpointError(
            f"{name!r} is not a tensor of a known format: {found}",
            label,
            "give torch tensors or NumPy arrays of numbers",
        )
    return TensorInfo(name, dtype, tuple(int(size) for size in value.shape))


def _same_size_integer(tensor: torch.Tensor) -> torch.dtype:
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
