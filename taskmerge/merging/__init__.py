"""Fusing models: recipe -> plan -> files."""

from taskmerge.merging.execute import Written, execute
from taskmerge.merging.fused import FusedWeights
from taskmerge.merging.plan import plan
from taskmerge.merging.steps import Plan, TensorStep

__all__ = ["FusedWeights", "Plan", "TensorStep", "Written", "execute", "plan"]
