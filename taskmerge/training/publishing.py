"""A trained model's folder: there whole, with its card and the record of what made it, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.memory import bytes_of
from taskmerge.checkpoints.output.library_saves import publish_saved
from taskmerge.checkpoints.output.record import Kind, Source, described, new_record
from taskmerge.checkpoints.output.replacing import absolute, site
from taskmerge.embedders.interface import Embedder
from taskmerge.embedders.opening import quiet
from taskmerge.embedders.sources import ModelSource
from taskmerge.words.processes import is_first


@dataclass(frozen=True)
class Destination:
    """The destination of a trained model.

    fresh: a model made here may be replaced; it remains until the new one is complete. keep: it is kept as
    `NAME-previous`. inputs: folders that are read. made_from: inputs of the model that training starts from, if it has
    no file of its own.
    """

    path: Path
    fresh: bool = False
    keep: bool = False
    inputs: tuple[Path, ...] = ()
    made_from: Mapping[str, Path] | None = None

    @classmethod
    def of(cls, out: str | Path | Destination) -> Destination:
        """Return the destination for a plain path, where nothing is replaced."""
        return out if isinstance(out, Destination) else cls(absolute(out))

    def check(self, read: Iterable[Any] = ()) -> None:
        """Refuse conflicts before anything is computed. read: the models. Raises OutputError."""
        folders = [Path(str(one)) for one in read if isinstance(one, str | Path | ModelSource)]
        site(self.path, self.fresh, [*self.inputs, *(path for path in folders if path.exists())], keep=self.keep)


def publish(
    embedder: Embedder,
    out: Destination,
    kind: Kind,
    stage: str,
    models: Mapping[str, Any],
    trained: Iterable[str],
    report: Mapping[str, Any],
) -> None:
    """Save a model to its folder in one rename; of several processes, the first does.

    Args:
        embedder: what to save.
        out: where.
        kind, stage: what its record says it is, and what made it.
        models: label -> what it was made from: a path, a `ModelSource`, or a model in memory.
        trained: names of the tensors that may differ from those of the first of them.
        report: plain data: what the stage did.

    Raises:
        OutputError: if other data is in the way.
    """
    if not is_first():
        return
    sources = _sources({**models, **(out.made_from or {})}, out.path)
    record = new_record(kind, stage, sources, trained=sorted(trained), report=dict(report))
    needed = bytes_of(embedder.state_dict.values.values())
    with quiet():
        publish_saved(
            embedder.save, out.path, record, needed=needed, fresh=out.fresh, inputs=out.inputs, keep=out.keep,
            base=_folder_of({**models, **(out.made_from or {})}),
        )  # fmt: skip


def _folder_of(models: Mapping[str, Any]) -> Path | None:
    """Where the first of these models that has files has its card."""
    stored = (model for model in models.values() if isinstance(model, str | Path | ModelSource))
    first = next(stored, None)
    return None if first is None else open_stored(str(first)).beside.folder


def _sources(models: Mapping[str, Any], out: Path) -> dict[str, Source]:
    """What a model was made from, for its record: a folder as seen from `out`, one in memory by its name alone."""
    found: dict[str, Source] = {}
    for label, model in models.items():
        if isinstance(model, str | Path | ModelSource):
            stored = open_stored(str(model))
            found[label] = described({label: stored})[label]
            if not stored.beside.commit:
                found[label]["source"] = os.path.relpath(Path(str(model)).resolve(), out.resolve())
        elif model is not None:
            found[label] = {"source": str(getattr(model, "label", type(model).__name__)) + " (in memory)"}
    return found
