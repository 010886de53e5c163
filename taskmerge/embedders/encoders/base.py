"""The interface of every encoder, and the small transformer that the built-in ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A module that turns media items into sequences of vectors.

    kind: its registered name.  modalities: what `prepare` accepts.  output_size: width of its vectors.
    options: keyword arguments that rebuild it, JSON-serialisable.
    """

    kind: ClassVar[str]
    modalities: tuple[str, ...]
    output_size: int
    options: dict[str, Any]

    @abstractmethod
    def prepare(self, item: Any, modality: str) -> Tensor:
        """Return one item as a float32 tensor (length, ...), on the CPU, without weights or gradients.

        Raises UsageError for an item that cannot be used.
        """

    @abstractmethod
    def token_count(self, length: int) -> int:
        """Return the number of vectors that `forward` computes for a prepared item of this length."""

    @abstractmethod
    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Encode (items, longest, ...), zero-padded, with lengths (items,) to (items, tokens, output_size).

        Item i's vectors are its first ``token_count(lengths[i])`` rows; the rows behind them are padding.
        """


class PatchTransformer(nn.Module):
    """Linear embedding, learned positions, pre-norm transformer layers (none when layers=0).

    patch_size: entries of one patch.  width: of the vectors; 0 hands the patches through unchanged, without weights.
    positions: most patches an item has.
    """

    def __init__(self, patch_size: int, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.output_size = width or patch_size
        self.layers = None
        if not width:
            return
        self.embed = nn.Linear(patch_size, width)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        if layers:
            layer = nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, patches: Tensor, lengths: Tensor) -> Tensor:
        """Encode patches (items, longest, patch_size), with lengths (items,), to (items, longest, output_size)."""
        if not hasattr(self, "embed"):
            return patches
        longest = patches.shape[1]
        padding = torch.arange(longest, device=patches.device)[None, :] >= lengths[:, None]
        hidden = self.embed(patches) + self.position[:longest]
        return hidden if self.layers is None else self.layers(hidden, src_key_padding_mask=padding)
