"""How well a model retrieves: on local sets, and through mteb.

Importing this package imports neither torch nor mteb.
"""

from __future__ import annotations

from taskmerge.measuring.evaluation.local import Evaluated, EvaluationTable, RetrievalResult, evaluate_retrieval

__all__ = ["Evaluated", "EvaluationTable", "RetrievalResult", "evaluate_retrieval"]
