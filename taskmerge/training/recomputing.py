"""Gradient checkpointing: layers compute again in the backward pass what they would otherwise keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskmerge.embedders.interface import Embedder
from taskmerge.errors import UsageError


@contextmanager
def recomputed(embedder: Embedder) -> Iterator[None]:
    """Recompute activations of all transformers networks inside the block, if possible (Chen et al., arXiv 1604.06174).

    Raises UsageError for a model without one that can: a user's own class does it in its own forward.
    """
    from transformers import PreTrainedModel

    networks: list[Any] = [
        part
        for part in embedder.module.modules()
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing
    ]
    if not networks:
        raise UsageError(
            f"{embedder.label}: no part of the model can compute its layers again",
            next_move="train without gradient_checkpointing, or with gradient_cache",
        )
    outer = [one for one in networks if not any(one is not other and one in other.modules() for other in networks)]
    for network in outer:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        for network in outer:
            network.gradient_checkpointing_disable()
