"""Weights seen through other names: a tensor as runs of entries of stored tensors, nothing copied ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from taskmerge.checkpoints.state_dict import StateDict, entries
from taskmerge.checkpoints.tensors import TensorInfo


@dataclass(frozen=True)
class Piece:
    """Entries [start, start + count) of the flattened source tensor `name`."""

    name: str
    start: int
    count: int


@dataclass(frozen=True)
class View:
    """A tensor made of pieces laid one after another; their counts add up to the tensor's."""

    info: TensorInfo
    pieces: tuple[Piece, ...]


def whole(info: TensorInfo, name: str) -> View:
    """Return all of one stored tensor, under another name."""
    return View(replace(info, name=name), (Piece(info.name, 0, info.count),))


class ViewedStateDict(StateDict):
    """`StateDict` made of views of another."""

    def __init__(self, source: StateDict, views: Mapping[str, View]) -> None:
        self.source = source
        self.label = source.label
        self.beside = source.beside
        self.views = dict(views)
        self.tensors = {name: view.info for name, view in self.views.items()}

    def view(self, name: str) -> np.ndarray | None:
        """See `StateDict.view`: of one whole stored tensor, the source's."""
        pieces = self.views[name].pieces
        if len(pieces) != 1 or pieces[0].start:
            return None
        found = self.source.view(pieces[0].name)
        return None if found is None or found.size != pieces[0].count else found

    def release(self, name: str, start: int, stop: int) -> None:
        """See `StateDict.release`: of one whole stored tensor, the source's."""
        if self.view(name) is not None:
            self.source.release(self.views[name].pieces[0].name, start, stop)

    def delta(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.delta`: of one whole stored tensor, the source's."""
        pieces = self.views[name].pieces
        if len(pieces) != 1 or pieces[0].start or pieces[0].count != self.source.tensors[pieces[0].name].count:
            return None
        return self.source.delta(pieces[0].name)

    def unrounded(self, name: str) -> Callable[[int, int], np.ndarray] | None:
        """See `StateDict.unrounded`; of several pieces, where any of them is computed."""
        pieces = self.views[name].pieces
        if all(self.source.unrounded(piece.name) is None for piece in pieces):
            return None
        return partial(self._entries, name)

    def _entries(self, name: str, start: int, stop: int) -> np.ndarray:
        parts = [entries(self.source, *run) for run in self._runs(name, start, stop)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _runs(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """(tensor, first, last) of the source for entries [start, stop), in order."""
        position = 0
        for piece in self.views[name].pieces:
            first, last = max(start - position, 0), min(stop - position, piece.count)
            if first < last:
                yield piece.name, piece.start + first, piece.start + last
            position += piece.count

    def stored_name(self, name: str) -> str | None:
        """See `StateDict.stored_name`."""
        pieces = self.views[name].pieces
        return self.source.stored_name(pieces[0].name) if len(pieces) == 1 else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `StateDict.read`; one piece is a view of the source, several are copied together."""
        view = self.views[name]
        stop = view.info.count if stop is None else min(stop, view.info.count)
        parts = [self.source.read(*run) for run in self._runs(name, start, stop)]
        if not parts:
            return np.empty(0, view.info.format.storage)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
