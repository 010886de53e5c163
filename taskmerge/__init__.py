"""taskmerge: merge models by task-vector arithmetic, find what the fusion broke, and repair it.

The names below are imported when first used, so that `import taskmerge` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from taskmerge.embedders.embedder import OmniEmbedder as OmniEmbedder
    from taskmerge.embedders.grafting import graft as graft
    from taskmerge.embedders.interface import Embedder as Embedder
    from taskmerge.embedders.loading import open_embedder as open_embedder
    from taskmerge.embedders.sources import ModelSource as ModelSource
    from taskmerge.measuring.covariances import collect_covariances as collect_covariances
    from taskmerge.measuring.drift.diagnose import diagnose_drift as diagnose_drift
    from taskmerge.measuring.drift.report import DriftReport as DriftReport
    from taskmerge.measuring.evaluation.local import evaluate_retrieval as evaluate_retrieval
    from taskmerge.measuring.evaluation.table import EvaluationTable as EvaluationTable
    from taskmerge.merging.algebra import Checkpoint as Checkpoint
    from taskmerge.merging.algebra import TaskVector as TaskVector
    from taskmerge.merging.algebra.comparison import Comparison as Comparison
    from taskmerge.merging.algebra.comparison import compare_task_vectors as compare_task_vectors
    from taskmerge.merging.api import fuse as fuse
    from taskmerge.merging.fused_model import FusedModel as FusedModel
    from taskmerge.merging.steps import Plan as Plan
    from taskmerge.methods import merge_method as merge_method
    from taskmerge.searching.api import search as search
    from taskmerge.searching.outcome import Outcome as Outcome
    from taskmerge.training.arms import recover_by_choice as recover_by_choice
    from taskmerge.training.settings import LoraSettings as LoraSettings
    from taskmerge.training.settings import TrainingSettings as TrainingSettings
    from taskmerge.training.stages import recover as recover
    from taskmerge.training.stages import rehearse as rehearse
    from taskmerge.training.stages import specialize as specialize

_HOMES = {
    "Checkpoint": "taskmerge.merging.algebra",
    "Comparison": "taskmerge.merging.algebra.comparison",
    "DriftReport": "taskmerge.measuring.drift.report",
    "Embedder": "taskmerge.embedders.interface",
    "EvaluationTable": "taskmerge.measuring.evaluation.table",
    "FusedModel": "taskmerge.merging.fused_model",
    "LoraSettings": "taskmerge.training.settings",
    "ModelSource": "taskmerge.embedders.sources",
    "OmniEmbedder": "taskmerge.embedders.embedder",
    "Outcome": "taskmerge.searching.outcome",
    "Plan": "taskmerge.merging.steps",
    "TaskVector": "taskmerge.merging.algebra",
    "TrainingSettings": "taskmerge.training.settings",
    "collect_covariances": "taskmerge.measuring.covariances",
    "compare_task_vectors": "taskmerge.merging.algebra.comparison",
    "diagnose_drift": "taskmerge.measuring.drift.diagnose",
    "evaluate_retrieval": "taskmerge.measuring.evaluation.local",
    "fuse": "taskmerge.merging.api",
    "graft": "taskmerge.embedders.grafting",
    "merge_method": "taskmerge.methods",
    "open_embedder": "taskmerge.embedders.loading",
    "recover": "taskmerge.training.stages",
    "recover_by_choice": "taskmerge.training.arms",
    "rehearse": "taskmerge.training.stages",
    "search": "taskmerge.searching.api",
    "specialize": "taskmerge.training.stages",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'taskmerge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
