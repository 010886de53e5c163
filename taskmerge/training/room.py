"""Check of the disk space for the files of a training stage, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskmerge.checkpoints.memory import bytes_of
from taskmerge.checkpoints.output.writing import check_space, standing
from taskmerge.embedders.interface import Embedder
from taskmerge.training.settings import TrainingSettings
from taskmerge.training.work import CHECKPOINTS, CHECKPOINTS_KEPT

_FILES = 8
"""Of a checkpoint: tensors, optimizer, scheduler, random state, the trainer's own."""
_FLOAT32 = 4


def check_room(
    embedder: Embedder, trained: Iterable[str], settings: TrainingSettings, work: Path | None, out: Path | None
) -> None:
    """Raise OutputError if the disk has no space for the trained model and the checkpoints of its training.

    Args:
        embedder: the model.  trained: names of the tensors that are trained.  settings: how.  work: folder of the
            checkpoints; None: there are none.  out: where the model goes; None: nowhere.
    """
    model = bytes_of(embedder.state_dict.values.values())
    if work is None:
        if out is not None:
            check_space(out, model, what="the model")
        return
    count = min(CHECKPOINTS_KEPT + 1, -(-settings.steps // settings.evaluate_every))  # one is written before one goes
    count = max(0, count - len([*work.glob(CHECKPOINTS)]))
    checkpoints, files = count * _checkpoint(embedder, trained, settings), count * _FILES
    if out is not None and standing(out).stat().st_dev == standing(work).stat().st_dev:
        check_space(out, model + checkpoints, files, "training, with its checkpoints and its model,")
        return
    check_space(work, checkpoints, files, "training, with its checkpoints,")
    if out is not None:
        check_space(out, model, what="the model")


def _checkpoint(embedder: Embedder, trained: Iterable[str], settings: TrainingSettings) -> int:
    """Bytes of one, at least: each trained entry and its two moments, in float32 or more. Of adapters nothing is
    counted: they are small."""
    if settings.lora is not None:
        return 0
    values = {id(tensor): tensor for tensor in map(embedder.state_dict.values.__getitem__, trained)}.values()
    return sum(3 * max(_FLOAT32, tensor.element_size()) * tensor.numel() for tensor in values)
