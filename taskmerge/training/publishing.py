"""A trained model's folder: there whole, with the record of what made it, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from taskmerge.embedders.interface import Embedder
from taskmerge.errors import OutputError

_MARK = "taskmerge-saving"


def publish(embedder: Embedder, out: Path, records: Mapping[str, str]) -> None:
    """Save a model to a new folder in one rename.

    Args:
        embedder: what to save.
        out: where; nothing, or an empty folder, may be there.
        records: file name -> text, written beside it.

    Raises:
        OutputError: when something of somebody else's is in the way.
    """
    scratch = out.with_name(f".{out.name}.saving")
    if scratch.exists() and not (scratch / _MARK).is_file():
        raise OutputError("stands where the model is put together, and was not made here", str(scratch), "move it away")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / _MARK).touch()
    embedder.save(scratch / "model")
    for name, text in records.items():
        (scratch / "model" / name).write_text(text, encoding="utf-8")
    try:
        (scratch / "model").rename(out)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", str(out), "choose another folder") from error
    shutil.rmtree(scratch, ignore_errors=True)
