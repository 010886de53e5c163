"""`open_embedder`: the one way in which a model becomes runnable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from taskmerge.checkpoints.cards.kinds import loader_of
from taskmerge.checkpoints.formats.json_files import read_json
from taskmerge.checkpoints.formats.links import check_links
from taskmerge.checkpoints.formats.modules import module_folders
from taskmerge.checkpoints.formats.reading import local_folder, open_stored
from taskmerge.declarations import Instance, checked_arguments, read_arguments
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.opening import opening
from taskmerge.embedders.sentence import GraftedEmbedder, SentenceEmbedder
from taskmerge.embedders.sources import COMPONENTS, Loader, ModelSource
from taskmerge.embedders.users import (
    check_against_file,
    class_address,
    is_module_class,
    loaded,
    named_embedder,
)
from taskmerge.errors import CheckpointError, UsageError
from taskmerge.opened import opened
from taskmerge.words.devices import device_or_default
from taskmerge.words.extras import TRAINING, require
from taskmerge.words.precisions import parse_precision

if TYPE_CHECKING:
    import torch

    from taskmerge.embedders.takes import Model

_OTHERS = {
    "CrossEncoder": "scores pairs of texts",
    "SparseEncoder": "gives sparse embeddings",
    "MultiVectorEncoder": "gives one embedding per token",
}
"""Classes of sentence-transformers; SentenceTransformer would convert their folders, and choose a pooling itself."""

FORMER_ADDRESSES = ("taskmerge.embedders.embedder.OmniEmbedder", "taskmerge.omni.embedder.OmniEmbedder")
"""Under which folders saved before name the grafted embedder's class."""


class _Module(TypedDict):
    """An entry of modules.json, as far as it is looked at."""

    type: str


@checked_arguments(components=COMPONENTS)
def open_embedder(
    source: Model,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    embedder: Loader | type | str | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
) -> Embedder:
    """Open a model to run it.

    sentence-transformers asks for `trust_remote_code=True` before it imports a class from outside its own package,
    even one that is installed. This function passes our class instead, so no code from the folder can run.

    Args:
        source: folder, hub id[@revision] or hf:// uri (models on the hub are downloaded first); a loaded
            SentenceTransformer, which is used in place; an `Embedder`, which is returned unchanged; or a `ModelSource`.
        device: device that the model runs on; default: the CPU for a path, else the model's own device.
        dtype: precision that the model runs in; default: its own.
        embedder: the code that runs a model of a class of your own; see `ModelSource.embedder`. A relative file name is
            relative to the working directory.
        components: component -> patterns of names, if the names and the config do not decide it.

    Returns:
        The embedder, in evaluation mode if it was loaded here.

    Raises:
        CheckpointError: if there is no such model, if it cannot be loaded, or if its file lacks some of its tensors.
        UsageError: for a source that is not a model, and for a device that is not available.
    """
    if dtype is not None:
        import torch

        read_arguments("open_embedder", {"dtype": dtype}, {"dtype": Instance(torch.dtype)})
    device = device_or_default(device)
    if isinstance(source, str | Path):
        source = ModelSource(source, embedder, components or {})
    if isinstance(source, ModelSource):
        return _from_source(source, device or "cpu", dtype)
    found = source if isinstance(source, Embedder) else _around(source)
    if components:
        found.components = components
    return found if device is None and dtype is None else found.to(device, dtype)


def open_to_measure(
    source: Any,
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
) -> Embedder:
    """Open a model to measure it. precision: what it is run in; default: its own. See `open_embedder` for the rest.

    A model that was loaded by the user keeps its precision: a copy is measured where another is wanted.
    """
    dtype = parse_precision(precision)
    if dtype is None:
        return open_embedder(source, device=device, components=components)
    if isinstance(source, str | Path | ModelSource):
        found = open_embedder(source, device=device, dtype=dtype, components=components)
    else:
        found = open_embedder(source, device=device, components=components)
        found = found if found.dtype == dtype else found.copied()
    return found.to(dtype=dtype)


def open_on_meta(source: str | Path | ModelSource) -> Embedder:
    """Open a model without its values: names, shapes, modalities. Arguments and errors as for `open_embedder`."""
    source = source if isinstance(source, ModelSource) else ModelSource(source)
    return _from_source(source, "meta", None)


def _from_source(source: ModelSource, device: str | torch.device, dtype: torch.dtype | None) -> Embedder:
    require(*TRAINING)
    folder, label = local_folder(source.path), str(source)
    opened(folder)
    check_links(folder, module_folders(folder).values())
    named = None if source.embedder is None else named_embedder(source.embedder, source.folder)
    allowed = named if named is not None and is_module_class(named) else None
    made = loaded(named, folder, label) if named is not None and allowed is None else None
    if made is None:
        found = _from_folder(folder, label, device, dtype, allowed)
    else:
        found = made if isinstance(made, Embedder) else _around(made, label, open_stored(folder))
        found.label, found.stored = label, open_stored(folder)
    found.components = source.components
    if made is not None:
        check_against_file(found, open_stored(folder), label)
        found.to(device, dtype).module.eval()
    return found


def _from_folder(
    folder: Path, label: str, device: str | torch.device, dtype: torch.dtype | None, allowed: type | None
) -> Embedder:
    """A sentence-transformers or transformers folder. allowed: a class of another package that it may be made of."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {} if dtype is None else {"model_kwargs": {"dtype": dtype}}
    if str(device) == "meta":
        options["model_kwargs"] = {"device_map": "meta"}
    else:
        options["device"] = str(device)
    _check_embeds(folder, label)
    classes = module_classes() if allowed is None else {**module_classes(), **_addresses(allowed, folder)}
    _check_known(folder, classes, label)
    with opening(label, "embedder"):
        model = SentenceTransformer._load_with_module_classes(str(folder), classes, **options)
    return _around(model.eval(), label, open_stored(folder))


def _check_embeds(folder: Path, label: str) -> None:
    """Raise CheckpointError for a model that does something else: loaded as an embedder, it would be another one."""
    loader = loader_of(folder)
    if loader in _OTHERS:
        raise CheckpointError(
            f"is a {loader} of sentence-transformers, which {_OTHERS[loader]}: it cannot be run as an embedder",
            label,
            f"score it with sentence-transformers' own evaluators: {loader}({str(folder)!r})",
        )


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


def _addresses(allowed: type, folder: Path) -> dict[str, type]:
    """Where the folder's modules.json names a class that the user allowed. Raises UsageError when it does not."""
    named = _named_classes(folder)
    found = {address: allowed for address in named if address.rpartition(".")[2] == allowed.__name__}
    if not found:
        raise UsageError(
            f"the embedder {class_address(allowed)} is a module class, but modules.json does not list it",
            str(folder),
            f"it lists {', '.join(named) or 'none'}; for another kind of model give a function: my_model.py:load",
        )
    return found


def _named_classes(folder: Path) -> list[str]:
    """The classes of a sentence-transformers folder, as modules.json names them."""
    place = folder / "modules.json"
    rows: list[_Module] = read_json(place, list[_Module]) if place.is_file() else []
    return [row["type"] for row in rows]


def _check_known(folder: Path, classes: Mapping[str, type], label: str) -> None:
    """Raise CheckpointError for a foreign class whose code the user has not named."""
    for address in _named_classes(folder):
        if address not in classes and not address.startswith("sentence_transformers."):
            module, _, name = address.rpartition(".")
            raise CheckpointError(
                f"modules.json lists {address}, a class of the model's author: its code runs only if you name it",
                label,
                f"if you trust it, write `embedder: path/to/file.py:{name}` in a recipe, or --embedder {module}:{name}",
            )


def module_classes() -> dict[str, type]:
    """Return our module class, by its present and former addresses in modules.json."""
    from taskmerge.embedders.embedder import OmniEmbedder

    own = f"{OmniEmbedder.__module__}.{OmniEmbedder.__name__}"
    return dict.fromkeys((own, *FORMER_ADDRESSES), OmniEmbedder)
