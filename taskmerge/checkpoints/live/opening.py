"""A live model opened as a state dict, out of its wrappers, an adapter inside laid over the rest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskmerge.checkpoints.lineage.adapters import adapted
from taskmerge.checkpoints.live.adapters import adapted_network, save_adapter, take_out
from taskmerge.checkpoints.live.modules import bare, check_mergeable, same_tensors
from taskmerge.checkpoints.live.saved import as_folder, kept_with, temporary_folder
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.state_dict import StateDict

if TYPE_CHECKING:
    from torch import nn


def open_live(source: nn.Module, label: str) -> StateDict:
    """Open a live model as the folder that it would be saved as.

    Args:
        source: stays as it is; its tensors are read when they are asked for.
        label: what messages call it.

    Raises:
        UsageError: for a model that is sharded, quantized or not loaded, or whose adapter is not as it is saved.
        CheckpointError: for one that its library cannot save.
    """
    module = bare(source, label)
    check_mergeable(module, label)
    plain = saved_without_adapter(module, label)
    return plain if adapted_network(module, label) is None else with_adapter(module, plain, label)


def saved_without_adapter(module: nn.Module, label: str) -> WithLiveValues:
    """Return a live model as its folder; for one with an adapter inside, the model without the adapter."""
    copy = same_tensors(module)
    with _quietly():
        return as_folder(copy if adapted_network(copy, label) is None else take_out(copy), label)


def with_adapter(module: nn.Module, plain: StateDict, label: str) -> StateDict:
    """Return a model with the adapter that is inside a live one.

    Args:
        module: the live one.
        plain: what the adapter is added to.
        label: what messages call it.
    """
    network = adapted_network(same_tensors(module), label)
    assert network is not None, "its copy has the same adapters"
    folder, remove = temporary_folder()
    with _quietly():
        found = adapted(plain, save_adapter(network, folder))
    found.label = label
    return kept_with(found, remove)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bar that transformers draws for every file that it saves."""
    if "transformers" not in sys.modules:
        yield
        return
    from transformers.utils import logging

    undo: Callable[[], None] = logging.enable_progress_bar if logging.is_progress_bar_enabled() else lambda: None
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        undo()
