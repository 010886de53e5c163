"""Settings that are in force while transformers or sentence-transformers load a model for us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskmerge.embedders.processors import without_torchvision
from taskmerge.embedders.whole import whole
from taskmerge.errors import CheckpointError, TaskmergeError, clipped, first_line

_WHOLE = (
    "use a model of transformers or sentence-transformers, in a folder with its config and its tokenizer or processor"
)


@contextmanager
def opening(source: str | Path, what: str) -> Iterator[None]:
    """Load a model inside the block: whole in its file, with or without torchvision, silently.

    Args:
        source: what messages call it.
        what: what it is to become, for messages.

    Raises:
        CheckpointError: for what libraries raise inside the block.
    """
    try:
        with whole(source), without_torchvision(), quiet():
            yield
    except TaskmergeError:
        raise
    except Exception as error:  # what libraries raise for a folder that makes no sense has no bounds
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        said = f"the {what} cannot be loaded: {kind}{clipped(first_line(error), 500)}"
        move = "install the library that the message mentions" if isinstance(error, ImportError) else _WHOLE
        raise CheckpointError(said, str(source), move) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its remarks on what is done on purpose."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    logs = [logging.getLogger(f"transformers.{name}") for name in _REMARKING]
    transformers_logging.disable_progress_bar()
    for log in logs:
        log.addFilter(_is_no_remark)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(_is_no_remark)
        if shown:
            transformers_logging.enable_progress_bar()


_REMARKING = ("configuration_utils", "modeling_utils", "trainer_utils")
_REMARKS = (
    "model of type `taskmerge_omni`",  # a grafted embedder's tokenizer is read next to a config.json that is ours
    "new embeddings will be initialized",  # new tokens get rows near the mean
    "mtime may not be reliable",  # checkpoints are told apart by their numbers then, as they should be
)


def _is_no_remark(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return not any(remark in said for remark in _REMARKS)
