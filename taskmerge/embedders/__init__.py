"""Models that embed: one interface to run any of them, and the grafted embedder, a text backbone that also hears and
sees.

Importing this package imports neither torch nor transformers; its names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskmerge.words.extras import part

if TYPE_CHECKING:
    from taskmerge.embedders.embedder import OmniEmbedder
    from taskmerge.embedders.encoders import register_encoder
    from taskmerge.embedders.grafting import graft
    from taskmerge.embedders.interface import Embedder
    from taskmerge.embedders.loading import open_embedder
    from taskmerge.embedders.sources import ModelSource

__all__ = ["Embedder", "ModelSource", "OmniEmbedder", "graft", "open_embedder", "register_encoder"]

_HOMES = {
    "Embedder": "taskmerge.embedders.interface",
    "ModelSource": "taskmerge.embedders.sources",
    "OmniEmbedder": "taskmerge.embedders.embedder",
    "graft": "taskmerge.embedders.grafting",
    "open_embedder": "taskmerge.embedders.loading",
    "register_encoder": "taskmerge.embedders.encoders",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(part(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
