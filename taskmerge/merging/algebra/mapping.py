"""Tensors by name, as Python's mappings are: what `Checkpoint` and `TaskVector` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from taskmerge.checkpoints.tensors import TensorInfo
from taskmerge.words.tables import Shown, Table, counted

if TYPE_CHECKING:
    import torch

_FORMATS = 3


class TensorMapping(Shown, Mapping[str, "torch.Tensor"]):
    """A read-only mapping from name to tensor that reads a tensor when it is asked for, and not before.

    Names, `in` and `len` come from headers. Two of them are equal when they are one object: comparing values would read
    both.
    """

    @property
    @abstractmethod
    def headers(self) -> Mapping[str, TensorInfo]:
        """Name, dtype and shape of every tensor, by name."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The name of the model or task vector in messages."""

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def in_one_line(self) -> str:
        """Return name, number of tensors and of their entries, and number formats."""
        infos = self.headers.values()
        formats = list(dict.fromkeys(str(info.format.torch_name or info.dtype) for info in infos))
        shown = " and ".join(formats) if len(formats) <= _FORMATS else f"{len(formats)} number formats"
        entries = counted(sum(info.count for info in infos), "entry").replace("entrys", "entries")
        return ", ".join(filter(None, [f"{self.label}: {counted(len(infos), 'tensor')}", entries, shown]))

    def as_table(self) -> Table:
        """Return one row per tensor."""
        infos = self.headers.values()
        rows = ((info.name, info.shape, info.format.torch_name or info.dtype, info.nbytes) for info in infos)
        return Table(("tensor", "shape", "dtype", "bytes"), rows, len(infos))
