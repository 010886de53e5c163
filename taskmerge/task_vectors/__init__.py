"""Task-vector algebra, lazy, over any two sets of weights."""

from taskmerge.task_vectors.algebra import VECTOR_FILE, Checkpoint, TaskVector, difference

__all__ = ["VECTOR_FILE", "Checkpoint", "TaskVector", "difference"]
