"""Task-vector algebra, lazy, over any two sets of weights."""

from taskmerge.merging.algebra.vectors import VECTOR_FILE, Checkpoint, TaskVector, difference

__all__ = ["VECTOR_FILE", "Checkpoint", "TaskVector", "difference"]
