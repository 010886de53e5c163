"""The interface of every set of named tensors: on disk, in memory, or computed on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.numbers.rounding import decode

if TYPE_CHECKING:
    from taskmerge.checkpoints.formats.files import WeightFile

BASE = "base"
"""The label of the model that all others were fine-tuned from."""


@dataclass(frozen=True)
class Beside:
    """The data next to the tensors of a model, which is passed on through every `StateDict` that wraps another.

    config: config.json as a dict ({} without one). folder: folder of config, tokenizer, processor and the other side
    files. module_folders: module of a sentence-transformers model ("" for the transformer itself, "2_Dense") ->
    its place relative to `folder`; a tensor of a module is named ``2_Dense/linear.weight``. own_tokenizer: folder of
    the tokenizer, if it is not the transformer's (an adapter's). prompts: the settings in
    config_sentence_transformers.json (prompts, default_prompt_name, truncate_dim, …). commit: of a hub repository.
    files: every file behind the numbers, name -> file; {} if they are in memory or computed, so that it is unknown
    whether they are the same next time. output_dtype: torch name of the format to write by default.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    module_folders: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    own_tokenizer: Path | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    files: Mapping[str, WeightFile] = field(default_factory=dict)
    output_dtype: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer's files: its own, else the transformer's; None for a model in memory."""
        if self.own_tokenizer is not None or self.folder is None:
            return self.own_tokenizer
        return self.folder / self.module_folders.get("", "")

    @property
    def folders(self) -> list[Path]:
        """The folders of this disk that it is read from."""
        parents = (file.path.parent for file in self.files.values() if file.local)
        return list(dict.fromkeys([*([self.folder] if self.folder is not None else []), *parents]))


class Output(Protocol):
    """An output folder, as far as a state dict must know it."""

    def add_text(self, name: str, text: str) -> None:
        """Write a text file into the output."""

    def add_copy(self, name: str, source: Path) -> None:
        """Copy a file into the output."""


class StateDict:
    """A lazy, read-only set of named tensors. A subclass sets `label`, `tensors` and `beside`, and has `read`.

    label: what messages call it (a path, a specialist's name).  tensors: headers by name, in file order; making
    them reads no tensor.  beside: config, folder, tokenizer and the rest. Weights that wrap others forward it whole, or
    with `dataclasses.replace` of the fields that they change.
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    beside: Beside = Beside()

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json."""
        return self.beside.config

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return entries [start, stop) of the flattened tensor, little-endian, as a 1-D array of its storage dtype.

        BF16 and 8-bit floats come as bit patterns (uint16, uint8). A view of mapped pages where possible, never
        to be written to. Raises CheckpointError when the bytes cannot be had.
        """
        raise NotImplementedError

    def read_into(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        """Write the entries of `read` into `out`, 1-D, of the tensor's storage dtype."""
        out[:] = self.read(name, start, stop)

    def view(self, name: str) -> np.ndarray | None:
        """Return the result of ``read(name)`` if it is a view of mapped pages, which costs nothing; else None."""
        return None

    def release(self, name: str, start: int, stop: int) -> None:
        """Allow mapped pages of these entries to be freed, because they will hardly be read again."""

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """Return a reader of an adapter's own product, float64, before it is added to the base and rounded.

        The reader takes [start, stop). None if the product is not known separately.
        """
        return None

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """Return a reader of a computed tensor in float64, before it is rounded to the format of its header.

        The reader takes [start, stop). None if `read` returns the exact values.
        """
        return None

    def in_dtype(self, dtype: str) -> StateDict:
        """Return the same tensors for another format (torch name): computed tensors are rounded only once."""
        return self

    def stored_name(self, name: str) -> str | None:
        """Return the name of a tensor in the stored files; None if it is made of several."""
        return name

    def sources(self) -> Mapping[str, StateDict]:
        """Return the state dicts that it is made of, by label: itself, or the sources of a computed one."""
        return {self.label: self}

    def write_side_files(self, output: Output, dtype: str | None) -> bool:
        """Write the side files into an output folder; return False if a copy of them and of the config will do.

        dtype: torch name of the format that all tensors now have, None when each kept its own.
        """
        return False


def entries(state_dict: StateDict, name: str, start: int, stop: int) -> np.ndarray:
    """Return entries [start, stop) of a tensor in float64, without rounding if they are computed."""
    exact = state_dict.unrounded(name)
    return (
        decode(state_dict.read(name, start, stop), state_dict.tensors[name].dtype)
        if exact is None
        else exact(start, stop)
    )


@runtime_checkable
class HasTensors(Protocol):
    """The least that an object of another library must offer to be taken as one; see `StateDict` for the meaning."""

    @property
    def label(self) -> str:
        """The name in messages."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The headers by tensor name."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of the model's config.json."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the entries [start, stop) of a flattened tensor, in its storage dtype."""


class Adopted(StateDict):
    """An object of another library as `StateDict`: it has no files, and what else it lacks has its default."""

    def __init__(self, source: HasTensors) -> None:
        self._source = source
        self.label = source.label
        self.tensors = source.tensors
        self.beside = Beside(config=source.config)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`."""
        return self._source.read(name, start, stop)


def adopted(state_dict: StateDict | HasTensors) -> StateDict:
    """Return `state_dict` itself, or wrap an object with label, tensors, config and read."""
    return state_dict if isinstance(state_dict, StateDict) else Adopted(state_dict)
