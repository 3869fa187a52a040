"""Run folders -> HTML pages that contain all they show: no network, no scripts, below 5 MB."""

from calotype.report.page import write_report
from calotype.report.runs import RunSummary, summarize_all, write_runs

__all__ = ["RunSummary", "summarize_all", "write_report", "write_runs"]
