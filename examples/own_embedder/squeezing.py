"""Your own module class inside a sentence-transformers folder, allowed by name.

In a recipe `embedder: squeezing.py:Squeezing`; on the command line `--embedder squeezing.py:Squeezing`. Of an installed
package: `package.module:Squeezing`. No other code of the folder runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Squeezing(nn.Module):
    """The last module of the model: its embeddings through a learned matrix and tanh."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dimension)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Replace the sentence embedding."""
        return {**features, "sentence_embedding": torch.tanh(self.linear(features["sentence_embedding"]))}

    def get_embedding_dimension(self) -> int:
        """Length of the embeddings."""
        return self.linear.out_features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the module's folder, as sentence-transformers asks for it."""
        sizes = {"width": self.linear.in_features, "dimension": self.linear.out_features}
        Path(output_path, "config.json").write_text(json.dumps(sizes), "utf-8")
        save_file(self.state_dict(), Path(output_path, "model.safetensors"))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Squeezing:
        """Read what `save` wrote."""
        folder = Path(model_name_or_path, subfolder)
        module = cls(**json.loads((folder / "config.json").read_text("utf-8")))
        module.load_state_dict(load_file(folder / "model.safetensors"))
        return module
