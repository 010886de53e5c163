"""`open_embedder`: the one way in which a model becomes runnable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.checkpoints.formats.reading import local_folder, open_stored
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.opening import opening
from taskmerge.embedders.sentence import GraftedEmbedder, SentenceEmbedder
from taskmerge.errors import UsageError
from taskmerge.words.devices import device_or_default
from taskmerge.words.extras import TRAINING, require

if TYPE_CHECKING:
    import torch

FORMER_ADDRESSES = ("taskmerge.embedders.embedder.OmniEmbedder", "taskmerge.omni.embedder.OmniEmbedder")
"""Under which folders saved before name the grafted embedder's class."""


def open_embedder(
    source: Any, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Embedder:
    """Open a model to run it.

    sentence-transformers asks for `trust_remote_code=True` before it imports a class from outside its own package,
    even one that is installed. This function hands it our class instead, so no code from the folder can run.

    Args:
        source: folder, hub id[@revision] or hf:// uri (what is on the hub is downloaded first); a loaded
            SentenceTransformer, which is used in place; or an `Embedder`, which comes back as it is.
        device: where it shall compute; default: the CPU for a path, else where it is.
        dtype: the precision it shall compute in; default: its own.

    Returns:
        The embedder, in evaluation mode when it was loaded here.

    Raises:
        CheckpointError: when there is no such model, it cannot be loaded, or some of its tensors are not in the file.
        UsageError: for what is no model, and a device that is not there.
    """
    device = device_or_default(device)
    if isinstance(source, str | Path):
        return _from_folder(source, device or "cpu", dtype)
    embedder = source if isinstance(source, Embedder) else _around(source)
    return embedder if device is None and dtype is None else embedder.to(device, dtype)


def open_on_meta(source: str | Path) -> Embedder:
    """Open a model without its values: names, shapes, modalities. Arguments and errors as for `open_embedder`."""
    return _from_folder(source, "meta", None)


def _from_folder(source: str | Path, device: str | torch.device, dtype: torch.dtype | None) -> Embedder:
    require(*TRAINING)
    from sentence_transformers import SentenceTransformer

    folder = local_folder(source)
    options: dict[str, Any] = {} if dtype is None else {"model_kwargs": {"dtype": dtype}}
    if str(device) == "meta":
        options["model_kwargs"] = {"device_map": "meta"}
    else:
        options["device"] = str(device)
    with opening(source, "embedder"):
        model = SentenceTransformer._load_with_module_classes(str(folder), _module_classes(), **options)
    return _around(model.eval(), str(source), open_stored(folder))


def _around(model: Any, label: str | None = None, stored: Any = None) -> Embedder:
    require(*TRAINING)
    from sentence_transformers import SentenceTransformer

    from taskmerge.embedders.embedder import OmniEmbedder

    if not isinstance(model, SentenceTransformer):
        raise UsageError(
            f"a {type(model).__name__} is not an embedder",
            next_move="give a folder, a hub id, a SentenceTransformer or a taskmerge.Embedder",
        )
    kind = GraftedEmbedder if isinstance(model[0], OmniEmbedder) else SentenceEmbedder
    return kind(model, label, stored)


def _module_classes() -> dict[str, type]:
    from taskmerge.embedders.embedder import OmniEmbedder

    own = f"{OmniEmbedder.__module__}.{OmniEmbedder.__name__}"
    return dict.fromkeys((own, *FORMER_ADDRESSES), OmniEmbedder)
