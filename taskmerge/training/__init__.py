"""Three stages, one trainer: specialize, recover, rehearse.

Importing this package imports no torch; its names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskmerge.words.extras import part

if TYPE_CHECKING:
    from taskmerge.training.settings import LoraSettings, TrainingSettings
    from taskmerge.training.stages import StageReport, recover, rehearse, specialize

__all__ = ["LoraSettings", "StageReport", "TrainingSettings", "recover", "rehearse", "specialize"]

_HOMES = {
    "LoraSettings": "taskmerge.training.settings",
    "TrainingSettings": "taskmerge.training.settings",
    "StageReport": "taskmerge.training.stages",
    "recover": "taskmerge.training.stages",
    "rehearse": "taskmerge.training.stages",
    "specialize": "taskmerge.training.stages",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(part(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
