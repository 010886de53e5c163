"""Identity of items and parts of a model by their content: keys that change if, and only if, values could."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskmerge import __version__
from taskmerge.checkpoints.hashing import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

_LIBRARIES = ("taskmerge", "torch", "transformers", "sentence_transformers", "peft")
"""Whose code is known by their versions."""
REVISION_LENGTH = 40
"""Of the hexadecimal digits of a sha256, as many as a git commit has."""


def identity_of(tensors: Mapping[str, Tensor], code: Iterable[object], settings: Any) -> str | None:
    """Hash everything that decides the values of a part of a model: tensors, settings, precision, device, libraries.

    Args:
        tensors: of the part.
        code: objects whose classes compute, children too.
        settings: plain values.

    Returns:
        The first 40 hexadecimal digits of a sha256; None if a user's own code runs, which may change unnoticed.
    """
    import torch
    import transformers

    if any(type(one).__module__.partition(".")[0] not in _LIBRARIES for one in code):
        return None
    versions = [torch.__version__, transformers.__version__, __version__]
    digest = hashlib.sha256(json.dumps([versions, plain(settings)], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:{tensor.device.type}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:REVISION_LENGTH]


def item_digest(item: Any) -> str:
    """Return the sha256 of an item in its original form: a file's bytes, an array, a picture's pixels, a text."""
    digest = hashlib.sha256()
    _add(digest, item, sha256_of)
    return digest.hexdigest()


def item_key(item: Any, modality: str) -> bytes:
    """Return 16 bytes that identify an item: a file by its path, size and time of change, all others by content."""
    digest = hashlib.blake2b(modality.encode(), digest_size=16)
    _add(digest, item, _stat)
    return digest.digest()


def _stat(path: Path) -> str:
    found = path.stat()
    return f"{path.absolute()}:{found.st_size}:{found.st_mtime_ns}"


def _add(digest: Any, item: Any, of_file: Callable[[Path], str]) -> None:
    if isinstance(item, Path):
        for file in sorted(item.iterdir()) if item.is_dir() else [item]:
            digest.update(of_file(file).encode())
    elif isinstance(item, Mapping):
        for key in sorted(item, key=str):
            if key != "path" or item.get("bytes") is None:
                digest.update(f"{key}:".encode())
                _add(digest, item[key], of_file)
    elif isinstance(item, bytes):
        digest.update(item)
    elif hasattr(item, "tobytes"):
        shape = getattr(item, "shape", getattr(item, "size", ""))
        digest.update(f"{getattr(item, 'dtype', getattr(item, 'mode', ''))}:{shape}".encode())
        digest.update(np.ascontiguousarray(item).tobytes() if isinstance(item, np.ndarray) else item.tobytes())
    elif hasattr(item, "numpy"):
        _add(digest, item.detach().cpu().numpy(), of_file)
    elif isinstance(item, list | tuple):
        for part in item:
            _add(digest, part, of_file)
    else:
        digest.update(f"{type(item).__name__}:{item}".encode())


def tensor_bytes(tensor: Tensor) -> Any:
    """Return a tensor's bytes, as a buffer."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def plain(value: Any) -> Any:
    """Return the parts of a value that JSON can represent; other objects become the names of their types."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__
