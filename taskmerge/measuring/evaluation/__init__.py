"""Retrieval scores of a model: on local sets, and through mteb.

Importing this package imports neither torch nor mteb.
"""

from __future__ import annotations

from taskmerge.measuring.evaluation.local import evaluate_retrieval
from taskmerge.measuring.evaluation.table import Difference, Evaluated, EvaluationTable, MtebScores, RetrievalResult

__all__ = ["Difference", "Evaluated", "EvaluationTable", "MtebScores", "RetrievalResult", "evaluate_retrieval"]
