"""Identity of a model by its content: a hash that changes if, and only if, results could."""

from __future__ import annotations

import hashlib
import json

from taskmerge.embedders.content import REVISION_LENGTH, plain, tensor_bytes
from taskmerge.embedders.interface import Embedder


def revision_of(embedder: Embedder) -> str:
    """Return the model's own hash: of every live tensor, and of the settings that decide its embeddings.

    Returns:
        The first 40 hexadecimal digits of a sha256. Prompts that the user put in place of the model's own are not in
        it.
    """
    digest = hashlib.sha256(json.dumps(plain(embedder.settings()), sort_keys=True).encode())
    tensors = embedder.state_dict.values
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:REVISION_LENGTH]
