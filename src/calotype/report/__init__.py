"""Run folders -> HTML pages that hold all they show: no network, no scripts, below 5 MB."""

from calotype.report.brief import Brief, all_briefs
from calotype.report.page import write_report
from calotype.report.several import write_several

__all__ = ["Brief", "all_briefs", "write_report", "write_several"]
