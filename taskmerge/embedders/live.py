"""A live model written over the file that it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.output.saving import save_state_dict
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


def save_live(live: MemoryStateDict, stored: StateDict | None, path: Path) -> None:
    """Write a live model into folder `path`, whole or not at all. stored: the file that it came from.

    What only the file has (heads that an embedder does not run) stays; so do its names, config, tokenizer and code.
    Raises OutputError when there is something at `path`.
    """
    save_state_dict(live if stored is None else WithLiveValues(stored, live), path)
