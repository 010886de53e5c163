"""Task-vector algebra, lazy, over any two sets of weights."""

from taskmerge.task_vectors.algebra import Checkpoint, TaskVector, difference

__all__ = ["Checkpoint", "TaskVector", "difference"]
