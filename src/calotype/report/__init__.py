"""A run folder -> one HTML page that holds all it shows: no network, no scripts, below 5 MB."""

from calotype.report.page import write_report

__all__ = ["write_report"]
