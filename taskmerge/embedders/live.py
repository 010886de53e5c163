"""A live model written over the file that it came from."""

from __future__ import annotations

from pathlib import Path

from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.output.saving import save_state_dict
from taskmerge.checkpoints.state_dict import StateDict


def save_live(live: MemoryStateDict, stored: StateDict | None, path: Path) -> None:
    """Write a live model into folder `path`, whole or not at all. stored: the file that it came from.

    What only the file has (heads that an embedder does not run) stays; so do its names, config, tokenizer and code.
    Raises OutputError when there is something at `path`.
    """
    save_state_dict(live if stored is None else WithLiveValues(stored, live), path)
