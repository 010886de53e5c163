"""What a model and an item are, by their content: hashes that change when, and only when, results could."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge.checkpoints.hashing import sha256_of
from taskmerge.embedders.interface import Embedder

if TYPE_CHECKING:
    from torch import Tensor

REVISION_LENGTH = 40
"""Of the hexadecimal digits of a sha256, as many as a git commit has."""


def revision_of(embedder: Embedder) -> str:
    """The model's own hash: of every live tensor, and of the settings that decide its embeddings.

    Returns:
        The first 40 hexadecimal digits of a sha256. Prompts that the user put in place of the model's own are not in
        it.
    """
    digest = hashlib.sha256(json.dumps(_plain(embedder.settings()), sort_keys=True).encode())
    tensors = embedder.state_dict.values
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:REVISION_LENGTH]


def item_digest(item: Any) -> str:
    """sha256 of an item of pairs as it came: of a file's bytes, an array, a picture's pixels, a text."""
    digest = hashlib.sha256()
    _add(digest, item)
    return digest.hexdigest()


def _add(digest: Any, item: Any) -> None:
    if isinstance(item, Path):
        for file in sorted(item.iterdir()) if item.is_dir() else [item]:
            digest.update(sha256_of(file).encode())
    elif isinstance(item, Mapping):
        for key in sorted(item, key=str):
            if key != "path" or item.get("bytes") is None:
                digest.update(f"{key}:".encode())
                _add(digest, item[key])
    elif isinstance(item, bytes):
        digest.update(item)
    elif hasattr(item, "tobytes"):
        shape = getattr(item, "shape", getattr(item, "size", ""))
        digest.update(f"{getattr(item, 'dtype', getattr(item, 'mode', ''))}:{shape}".encode())
        digest.update(np.ascontiguousarray(item).tobytes() if isinstance(item, np.ndarray) else item.tobytes())
    elif isinstance(item, list | tuple):
        for part in item:
            _add(digest, part)
    else:
        digest.update(f"{type(item).__name__}:{item}".encode())


def _bytes(tensor: Tensor) -> Any:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _plain(value: Any) -> Any:
    """What of a value JSON can hold; the rest could be called otherwise in every run."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__
