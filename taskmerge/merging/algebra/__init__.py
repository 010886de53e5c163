"""Task-vector algebra, lazy, over any two state dicts."""

from taskmerge.merging.algebra.checkpoint import Checkpoint, difference
from taskmerge.merging.algebra.task_vector import TaskVector

__all__ = ["Checkpoint", "TaskVector", "difference"]
