"""A live model as the folder that its own library would save it as: names, config, tokenizer and settings from there,
values from memory.

So a live model is merged as its saved folder is, bit for bit, whatever its library does on the way to the disk (tied
tensors left out, experts split, modules in folders of their own). The weights are not written: a file that only its
header fills stands for them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from taskmerge.checkpoints.formats.header import build_header
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.formats.table import SAFETENSORS
from taskmerge.checkpoints.live.values import WithLiveValues
from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.state_dict import StateDict
from taskmerge.errors import CheckpointError, UsageError, clipped, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

Kept = TypeVar("Kept", bound=StateDict)
Caught = dict[Path, Mapping[str, "Tensor"]]
_one_at_a_time = threading.Lock()
_ADAPTER = "adapter_"


class _Rooms:
    """An object of the process's lifetime, to which its temporary folders are tied."""


_rooms = _Rooms()


def as_folder(module: nn.Module, label: str) -> WithLiveValues:
    """Have a live model save itself into a folder of its own, and open it with the values that it has in memory.

    Args:
        module: with `save_pretrained` (transformers, sentence-transformers), or any other. What saving changes in
            settings changes here: give a copy of its structure.
        label: what messages call it.

    Returns:
        The model; its folder goes when it does.

    Raises:
        CheckpointError: for what its library cannot save.
    """
    folder, room = temporary_folder()
    try:
        with weights_caught(folder) as caught:
            _save(module, folder)
    except Exception as error:  # what libraries raise for a model that they cannot save has no bounds
        said = f"this {type(module).__name__} cannot be saved: {clipped(first_line(error), 300)}"
        raise CheckpointError(said, label, "merge its state dict: model.state_dict()") from error
    if not any(folder.rglob("*.safetensors")) and not any(folder.rglob("*.bin")):
        raise UsageError(f"{label} contains no tensors", next_move="give a model with weights")
    stored = open_stored(folder, label=label)
    values = {}
    for name in stored.tensors:
        own = caught.get(stored.file_of(name).path)
        if own is not None:
            values[name] = own[str(stored.stored_name(name))]
    found = WithLiveValues(stored, MemoryStateDict(values, label))
    found.beside = replace(stored.beside, files={}, notes=())  # live tensors may be different next time
    return kept_with(found, room)


def temporary_folder() -> tuple[Path, Callable[[], object]]:
    """Return a folder and a function that removes it; it is removed when the process ends at the latest."""
    folder = Path(tempfile.mkdtemp(prefix="taskmerge-live-")).resolve()
    return folder, weakref.finalize(_rooms, shutil.rmtree, folder, ignore_errors=True)


def kept_with(state_dict: Kept, remove: Callable[[], object]) -> Kept:
    """Return the same state dict; its folder is removed when nothing refers to the state dict any more."""
    weakref.finalize(state_dict, remove).atexit = False
    return state_dict


def _save(module: nn.Module, folder: Path) -> None:
    save = getattr(module, "save_pretrained", None)
    if save is None:
        _save_tensors(module, folder)
    elif hasattr(module, "model_card_data"):  # sentence-transformers; a card is of no use here
        save(str(folder), create_model_card=False)
    else:
        save(str(folder))


def _save_tensors(module: nn.Module, folder: Path) -> None:
    """A module of no library: its state dict, what several names share once."""
    import safetensors.torch

    safetensors.torch.save_model(module, str(folder / SAFETENSORS.single))
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "save_pretrained"):
        config.save_pretrained(str(folder))


@contextmanager
def weights_caught(folder: Path) -> Iterator[Caught]:
    """Keep the tensors that libraries save into `folder` as safetensors, inside the block, and write headers alone.

    What is saved elsewhere, or by another way, is written as ever; so are adapters, which are small.
    """
    import safetensors.torch

    caught: Caught = {}
    inside = folder.resolve()
    places = [(safetensors.torch, "save_file")]
    if "transformers" in sys.modules:
        import transformers.modeling_utils

        places.append((transformers.modeling_utils, "safe_save_file"))

    def catching(own: Callable[..., Any]) -> Callable[..., Any]:
        def save(tensors: Mapping[str, Tensor], filename: Any, metadata: dict[str, str] | None = None) -> Any:
            path = Path(filename).resolve()
            if not path.is_relative_to(inside) or path.name.startswith(_ADAPTER):
                return own(tensors, filename, metadata)
            caught[path] = dict(tensors)
            return _write_header(path, caught[path], metadata or {})

        return save

    with _one_at_a_time:
        before = [(module, name, getattr(module, name)) for module, name in places if hasattr(module, name)]
        for module, name, own in before:
            setattr(module, name, catching(own))
        try:
            yield caught
        finally:
            for module, name, own in before:
                setattr(module, name, own)


def _write_header(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file as long as it would be, of which the disk holds the header alone."""
    header, entries = build_header(MemoryStateDict(tensors).tensors.values(), metadata)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(max([len(header), *(entry.stop for entry in entries)]))
