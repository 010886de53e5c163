"""Types of the sources that a merge accepts as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import nn

    from taskmerge.checkpoints.opening import Stored
    from taskmerge.merging.algebra.checkpoint import Checkpoint
    from taskmerge.merging.algebra.task_vector import TaskVector

    StoredSource: TypeAlias = Stored | Checkpoint
    """A base that is not a live model."""
    Source: TypeAlias = StoredSource | TaskVector | nn.Module
    """A specialist: a live model and a task vector too."""
