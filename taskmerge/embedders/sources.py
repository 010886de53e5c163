"""A model together with what its user says about running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.declarations import TEXTS, Mapped, Place, optional, read_arguments

Loader = Callable[[str], Any]
"""What makes a runnable model of a folder's path: an `Embedder`, a SentenceTransformer, or None for "not mine"."""


COMPONENTS = optional(Mapped(TEXTS))
"""Component -> patterns of tensor names."""


@dataclass(frozen=True)
class ModelSource:
    """A model's folder and the settings to run it; every function that opens a model takes one.

    Attributes:
        path: folder, hub id[@revision] or hf:// uri.
        embedder: the code that runs the model, if neither sentence-transformers nor transformers knows its class: a
            `Loader`, a module class that its modules.json names, or the name of either (``my_model.py:load``,
            ``package.module:name``, an entry point of the group `taskmerge.embedders`). None: as its files state.
        components: component -> patterns of tensor names, if the names and the config do not decide it.
        folder: the folder that a relative file name in `embedder` is relative to.

    >>> str(ModelSource("models/mine", embedder="my_model.py:load"))
    'models/mine'
    """

    path: str | Path
    embedder: Loader | type | str | None = None
    components: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self) -> None:
        kinds = {"path": Place(), "folder": Place(), "components": Mapped(TEXTS)}
        read_arguments("ModelSource", vars(self), kinds)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)
