"""Outputs of an embedder's projector and layers while it embeds a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.embedders.anatomy import Anatomy
from taskmerge.embedders.interface import Embedder, as_array
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Captured:
    """One batch under one model.

    embeddings: (items, d).  projected: one (tokens, width) array for each projector module, in the order they ran.
    hidden: the projected tokens' states, (tokens, width) each: what enters the first layer, then every layer's output.
    """

    embeddings: np.ndarray
    projected: list[np.ndarray] = field(default_factory=list)
    hidden: list[np.ndarray] = field(default_factory=list)

    @property
    def fed(self) -> np.ndarray | None:
        """The projected vectors that enter the backbone, (tokens, width), without padding that was projected too."""
        if not self.projected:
            return None
        last = self.projected[-1]
        return last if last.shape == self.hidden[0].shape else self.hidden[0]


def capture(embedder: Embedder, items: Sequence[Any], anatomy: Anatomy, modality: str) -> Captured:
    """Embed `items` once, as queries, and keep the projector's output and the projected tokens' state at every depth.

    items: as `Pairs.load` gives them. Layer outputs are cut down to the projected tokens as they are made, so that a
    batch never holds all layers whole. Raises UsageError when nothing was projected.
    """
    features = embedder.prepare(items, modality, "query")
    tokens = anatomy.projected_tokens(features, modality)
    if tokens is None:
        tokens = features["attention_mask"].bool()
    if not bool(tokens.any()):
        raise UsageError(
            f"no token of these items represents {modality}", next_move="check that the probes have that modality"
        )
    kept = Captured(np.empty((0, 0)))
    with embedder.inference(), _hooks(anatomy, modality, tokens, kept):
        output = as_array(embedder.embed(features))
    embedder.check_finite(output, modality)
    return Captured(output, kept.projected, kept.hidden)


@contextmanager
def _hooks(anatomy: Anatomy, modality: str, tokens: Tensor, kept: Captured) -> Iterator[None]:
    handles = []

    def on_projector(module: nn.Module, inputs: Any, output: Any) -> None:
        value = _tensor(output)
        kept.projected.append(as_array(value.reshape(-1, value.shape[-1])))

    def on_first_layer(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        value = inputs[0] if inputs else keywords["hidden_states"]
        kept.hidden.append(_at_tokens(value, tokens))

    def on_layer(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.hidden.append(_at_tokens(_tensor(output), tokens))

    try:
        handles += [part.register_forward_hook(on_projector) for part in anatomy.projectors.get(modality, ())]
        handles.append(anatomy.layers[0].register_forward_pre_hook(on_first_layer, with_kwargs=True))
        handles += [layer.register_forward_hook(on_layer) for layer in anatomy.layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    """The hidden states of a module that may return more than these."""
    return output[0] if isinstance(output, tuple | list) else getattr(output, "last_hidden_state", output)


def _at_tokens(states: Tensor, tokens: Tensor) -> np.ndarray:
    if states.shape[:-1].numel() != tokens.numel():
        raise UsageError(
            f"layer states of shape {tuple(states.shape)} do not fit a token mask of shape {tuple(tokens.shape)}",
            next_move="load the model without sequence flattening (attn_implementation='sdpa')",
        )
    return as_array(states.reshape(-1, states.shape[-1])[tokens.reshape(-1).to(states.device)])
