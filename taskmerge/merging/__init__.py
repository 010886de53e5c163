"""Fusing models: recipe -> plan -> files."""

from taskmerge.merging.execute import Written, execute
from taskmerge.merging.fused import FusedStateDict
from taskmerge.merging.plan import plan
from taskmerge.merging.steps import Plan, TensorStep

__all__ = ["FusedStateDict", "Plan", "TensorStep", "Written", "execute", "plan"]
