"""Fusing models: recipe -> plan -> files."""

from taskmerge.fusion.execute import Written, execute
from taskmerge.fusion.fused import FusedWeights
from taskmerge.fusion.plan import plan
from taskmerge.fusion.steps import Plan, TensorStep

__all__ = ["FusedWeights", "Plan", "TensorStep", "Written", "execute", "plan"]
