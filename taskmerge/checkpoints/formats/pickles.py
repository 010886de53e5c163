"""PyTorch's own files (.bin, .pt, .pth): tensors alone, mapped, never the objects a pickle can make.

`torch.load(weights_only=True, mmap=True)`: nothing but tensors is unpickled, and a tensor's bytes are read when asked
for. Files of PyTorch before 1.6 cannot be mapped and are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.formats.files import WeightFile
from taskmerge.checkpoints.formats.header import Entry
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.errors import CheckpointError

SAVE_ANEW = "convert it with transformers' save_pretrained(safe_serialization=True)"


class PickleFile(WeightFile):
    """One such file, with the interface of a safetensors file. Raises CheckpointError when it is none."""

    def __init__(self, name: str, path: Path) -> None:  # replaces WeightFile's, which reads a safetensors header
        self.name, self._path, self._snapshot = name, path, None
        self._tensors = MemoryStateDict(_load(path), str(path))
        self.entries = {own: Entry(info, 0, 0) for own, info in self._tensors.tensors.items()}

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Entries [start, stop) of one tensor, as `StateDict.read` gives them."""
        return self._tensors.read(name, start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        """Nothing: PyTorch holds the mapping."""


def _load(path: Path) -> dict[str, Any]:
    import torch

    try:
        table = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # what a broken or hostile pickle raises has no bounds
        said = str(error).strip().splitlines()
        what = f"only {path.name!r} is there: {SAVE_ANEW}"
        raise CheckpointError(
            f"{path.name!r} is no safetensors file, and PyTorch reads no tensors from it"
            f" ({type(error).__name__}{': ' + said[0][:120] if said else ''})",
            str(path),
            what,
        ) from None
    if not isinstance(table, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for name, value in table.items()
    ):
        raise CheckpointError(f"{path.name!r} holds more than a table of named tensors", str(path), SAVE_ANEW)
    return table
