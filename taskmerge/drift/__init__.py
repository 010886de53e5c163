"""Did fusing break what a specialist could do? Measured on probes, judged against a null band.

Importing this package imports no torch.
"""

from __future__ import annotations

from taskmerge.drift.diagnose import diagnose_drift
from taskmerge.drift.forecast import Forecast, forecast_drift
from taskmerge.drift.report import DriftReport, ModalityDrift
from taskmerge.drift.verdict import Verdict

__all__ = ["DriftReport", "Forecast", "ModalityDrift", "Verdict", "diagnose_drift", "forecast_drift"]
