"""One grafted modality family: its encoder's options, its projector, its placeholder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskmerge.errors import UsageError, did_you_mean

PROJECTORS = ("linear", "mlp")


@dataclass(frozen=True)
class TowerConfig:
    """The description of one added encoder in a saved folder.

    name: prefix of its tensors, ``{name}_encoder.*`` and ``{name}_projector.*``.  encoder: kind and options.
    projector: kind ("linear" or "mlp"), hidden (of the mlp, default: the backbone's width).
    placeholder: the token that its vectors replace.  start, end: tokens around them, or None.
    """

    name: str
    encoder: dict[str, Any]
    projector: dict[str, Any] = field(default_factory=lambda: {"kind": "mlp"})
    placeholder: str = ""
    start: str | None = None
    end: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TowerConfig:
        """Make a config from the data that `to_dict` returned."""
        return cls(**options)


class Projector(nn.Module):
    """Encoder width to backbone width: LayerNorm, then a linear layer or a 2-layer MLP with GELU between."""

    def __init__(self, input_size: int, output_size: int, kind: str = "mlp", hidden: int | None = None) -> None:
        super().__init__()
        if kind not in PROJECTORS:
            raise UsageError(f"unknown projector kind {kind!r}", next_move=did_you_mean(kind, PROJECTORS))
        self.norm = nn.LayerNorm(input_size)
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(input_size, output_size))
        else:
            hidden = hidden or output_size
            self.layers = nn.Sequential(nn.Linear(input_size, hidden), nn.GELU(), nn.Linear(hidden, output_size))

    def match_scale(self, embeddings: Tensor) -> None:
        """Scale the fresh last layer so that its outputs are about as long as the backbone's token embeddings.

        embeddings: (vocabulary, width). A LayerNorm-ed input has unit variance, so a linear layer needs entries of
        standard deviation `spread / sqrt(fan in)`; GELU passes on about 0.6 of the spread.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        spread = float(embeddings.detach().float().std())
        gain = 1.0 if len(self.layers) == 1 else 0.6
        with torch.no_grad():
            nn.init.normal_(last.weight, std=spread / (gain * last.in_features**0.5))
            nn.init.zeros_(last.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Project vectors (..., input_size) to (..., output_size)."""
        return self.layers(self.norm(vectors))
