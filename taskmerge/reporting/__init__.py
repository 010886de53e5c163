"""Reports: one HTML page without assets, its JSON twin, and tables for the terminal.

Importing this package imports no torch.
"""

from __future__ import annotations

from taskmerge.reporting.content import Section, Table
from taskmerge.reporting.evaluations import evaluated_sections, evaluation_section, mteb_section
from taskmerge.reporting.files import check_page, write_report
from taskmerge.reporting.sections import drift_sections, recovery_section, training_section
from taskmerge.reporting.terminal import show

__all__ = [
    "Section",
    "Table",
    "check_page",
    "drift_sections",
    "evaluated_sections",
    "evaluation_section",
    "mteb_section",
    "recovery_section",
    "show",
    "training_section",
    "write_report",
]
