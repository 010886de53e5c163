"""Reports: one HTML page without assets, its JSON twin, and tables for the terminal.

Importing this package imports no torch.
"""

from __future__ import annotations

from taskmerge.reporting.comparisons import comparison_sections
from taskmerge.reporting.conclusions import evaluation_page
from taskmerge.reporting.content import Section, Table
from taskmerge.reporting.drifting import drift_page
from taskmerge.reporting.evaluations import evaluated_sections, evaluation_section, mteb_section
from taskmerge.reporting.files import check_page, write_report
from taskmerge.reporting.fusions import fusion_sections, fusion_table
from taskmerge.reporting.sections import drift_sections, recovery_section, training_section
from taskmerge.reporting.stages import StageResults, recovery_page, run_page, training_page
from taskmerge.reporting.terminal import show

__all__ = [
    "Section",
    "StageResults",
    "Table",
    "check_page",
    "comparison_sections",
    "drift_page",
    "drift_sections",
    "evaluated_sections",
    "evaluation_page",
    "evaluation_section",
    "fusion_sections",
    "fusion_table",
    "mteb_section",
    "recovery_page",
    "recovery_section",
    "run_page",
    "show",
    "training_page",
    "training_section",
    "write_report",
]
