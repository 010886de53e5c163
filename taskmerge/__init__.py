"""taskmerge: merge models by task-vector arithmetic, find what the fusion broke, and repair it.

The names below are imported when first used, so that `import taskmerge` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from taskmerge.merging.algebra import Checkpoint as Checkpoint
    from taskmerge.merging.algebra import TaskVector as TaskVector
    from taskmerge.merging.api import fuse as fuse
    from taskmerge.methods import merge_method as merge_method

_HOMES = {
    "Checkpoint": "taskmerge.merging.algebra",
    "TaskVector": "taskmerge.merging.algebra",
    "fuse": "taskmerge.merging.api",
    "merge_method": "taskmerge.methods",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'taskmerge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
