"""Weights seen through other names: a tensor as runs of entries of stored tensors, nothing copied ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge.checkpoints.weights import TensorInfo, Weights


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
    """All of one stored tensor, under another name."""
    return View(replace(info, name=name), (Piece(info.name, 0, info.count),))


class ViewedWeights:
    """`Weights` made of views of another; folder, module folders and commit are the other's."""

    def __init__(self, source: Weights, views: Mapping[str, View]) -> None:
        self.source = source
        self.label = source.label
        self.config: Mapping[str, Any] = source.config
        self.folder: Path | None = getattr(source, "folder", None)
        self.tokenizer_folder: Path | None = getattr(source, "tokenizer_folder", None)
        self.parts: dict[str, str] = dict(getattr(source, "parts", None) or {"": ""})
        self.commit: str | None = getattr(source, "commit", None)
        self.views = dict(views)
        self.tensors: Mapping[str, TensorInfo] = {name: view.info for name, view in self.views.items()}

    def view(self, name: str) -> np.ndarray | None:
        """See `Weights.read`: of one whole stored tensor, the source's."""
        pieces, source = self.views[name].pieces, self.source
        if len(pieces) != 1 or pieces[0].start or not hasattr(source, "view"):
            return None
        found = source.view(pieces[0].name)
        return None if found is None or found.size != pieces[0].count else found

    def release(self, name: str, start: int, stop: int) -> None:
        """See `Weights.read`: of one whole stored tensor, the source's."""
        if self.view(name) is not None:
            self.source.release(self.views[name].pieces[0].name, start, stop)  # type: ignore[attr-defined]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Weights.read`; one piece is a view of the source, several are copied together."""
        view = self.views[name]
        stop = view.info.count if stop is None else min(stop, view.info.count)
        parts, position = [], 0
        for piece in view.pieces:
            first, last = max(start - position, 0), min(stop - position, piece.count)
            if first < last:
                parts.append(self.source.read(piece.name, piece.start + first, piece.start + last))
            position += piece.count
        if not parts:
            return np.empty(0, view.info.format.storage)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
