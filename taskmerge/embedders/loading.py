"""Opening saved embedders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.reading import local_folder
from taskmerge.errors import CheckpointError, UsageError, first_line


def load_embedder(model: str | Path, device: str = "cpu", **kwargs: Any) -> Any:
    """`SentenceTransformer(folder)` of a grafted embedder or of any other sentence-transformers folder.

    model: folder, hub id[@revision] or hf:// uri; what is on the hub is downloaded first.
    sentence-transformers asks for `trust_remote_code=True` before it imports a class from outside its own package,
    even one that is installed. This function hands it our class instead, so no code from the folder can run.
    Further keyword arguments go to SentenceTransformer. Raises CheckpointError when there is no such model, or it
    cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    folder = local_folder(model)
    try:
        return SentenceTransformer._load_with_module_classes(str(folder), _module_classes(), device=device, **kwargs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no embedder can be loaded: {first_line(error)}", str(model)) from error


def _module_classes() -> dict[str, type]:
    from taskmerge.embedders.embedder import OmniEmbedder

    return {f"{OmniEmbedder.__module__}.{OmniEmbedder.__name__}": OmniEmbedder}


def embedder_of(model: Any) -> Any:
    """The OmniEmbedder inside a SentenceTransformer, or None when its towers are its own."""
    from taskmerge.embedders.embedder import OmniEmbedder

    first = model[0]
    return first if isinstance(first, OmniEmbedder) else None


def check_takes(model: Any, modality: str, source: str) -> None:
    """Raises UsageError when a SentenceTransformer does not embed items of this modality. source: what holds them."""
    known = getattr(model, "modalities", None)
    if known is not None and modality not in known:
        takes = ", ".join(name for name in known if name != "message")
        raise UsageError(
            f"{source} holds {modality}, for which the model has no encoder", next_move=f"the model takes {takes}"
        )
