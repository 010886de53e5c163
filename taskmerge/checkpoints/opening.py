"""Any way of naming a set of tensors, opened as `StateDict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import HasTensors, StateDict, adopted
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    Tensors: TypeAlias = Mapping[str, torch.Tensor] | Mapping[str, np.ndarray] | Mapping[str, torch.Tensor | np.ndarray]
    Stored: TypeAlias = str | Path | Tensors | StateDict | HasTensors
    """A model that is not live: a path, a hub id, tensors by name."""
    Openable: TypeAlias = Stored | nn.Module


def open_state_dict(source: Openable, label: str | None = None) -> StateDict:
    """Open a path, hub id[@revision], hf:// uri, dict of tensors, live module or anything with `StateDict`' methods.

    Reads headers only.

    Args:
        source: what holds the tensors.
        label: what messages call it; default: the path, "in memory", or the module's class.

    Raises:
        CheckpointError: when there is no checkpoint there.
        UsageError: for what holds no tensors.
    """
    if isinstance(source, str | Path):
        return open_stored(source, label=label)
    if isinstance(source, Mapping):
        return MemoryStateDict(source, label or "in memory")
    if hasattr(source, "state_dict"):
        return MemoryStateDict.of_module(cast("nn.Module", source), label)
    if isinstance(source, StateDict | HasTensors):
        return adopted(source)
    raise UsageError(
        f"cannot open a {type(source).__name__} as a checkpoint",
        next_move="give a path, a hub id, a dict of tensors or a module",
    )
