"""The report as JSON, and the table, the page, the model card and the comparison drawn from it."""

from bplightning.reporting.comparison import Comparison, compare
from bplightning.reporting.page import report_run
from bplightning.reporting.report import build_report, load_report, save_report
from bplightning.reporting.schema import Report, validate_report
from bplightning.reporting.score_history import ScoreHistory, read_scores

__all__ = [
    "Comparison",
    "Report",
    "ScoreHistory",
    "build_report",
    "compare",
    "load_report",
    "read_scores",
    "report_run",
    "save_report",
    "validate_report",
]
