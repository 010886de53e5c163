"""Tensors in memory under the names, and with the config and side files, of a folder that holds the same model."""

from __future__ import annotations

import numpy as np

from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict


class WithLiveValues(StateDict):
    """A model's file with the values of a live model in the place of those that it has; the rest as it is."""

    def __init__(self, stored: StateDict, live: MemoryStateDict) -> None:
        self.stored, self.live = stored, live
        self.label, self.beside = stored.label, stored.beside
        self.tensors = {name: live.tensors.get(name, info) for name, info in stored.tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        return (self.live if name in self.live.tensors else self.stored).read(name, start, stop)
