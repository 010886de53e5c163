"""taskmerge: merge models by task-vector arithmetic, find what the fusion broke, and repair it."""

__version__ = "0.1.0"
