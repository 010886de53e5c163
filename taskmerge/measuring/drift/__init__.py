"""Did fusing break what a specialist could do? Measured on probes, judged against a null band.

Importing this package imports no torch.
"""

from __future__ import annotations

from taskmerge.measuring.drift.diagnose import diagnose_drift
from taskmerge.measuring.drift.forecast import Forecast, forecast_drift
from taskmerge.measuring.drift.report import DriftReport, ModalityDrift
from taskmerge.measuring.drift.verdict import Verdict

__all__ = ["DriftReport", "Forecast", "ModalityDrift", "Verdict", "diagnose_drift", "forecast_drift"]
