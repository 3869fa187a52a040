"""`calotype runs` and `calotype report`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from calotype.cli.console import Console
from calotype.cli.options import ReportOptions, RunsOptions
from calotype.data.images import shown
from calotype.report import RunSummary, summarize_all, write_report, write_runs
from calotype.report.format import date, duration
from calotype.report.html import is_page
from calotype.types import UserError


def list_runs(options: RunsOptions, console: Console) -> list[RunSummary]:
    """Lists the runs in a folder, newest first: a line or a JSON object each."""
    summaries = summarize_all(options.folder)
    rows = [[json.dumps(asdict(summary), default=str)] if options.as_json else cells(summary) for summary in summaries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        console.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return summaries


def cells(run: RunSummary) -> list[str]:
    """Unknown values are left out."""
    measures = {
        "PSNR {:.1f} dB": run.psnr,
        "held-out loss {:.3f}": run.held_out_loss,
        f"FD-Lite0 {{:.0f}} (n = {run.fd_n})": run.fd_lite0,
    }
    figures = ", ".join(text.format(value) for text, value in measures.items() if value is not None)
    model = f"{run.kind} {run.chain} px" if run.chain else run.kind
    spent = duration(run.seconds) if run.seconds else ""
    values = (run.folder.name, run.state, model, run.data, spent, figures, run.problem or date(run.created))
    return [shown(value) for value in values]


def report(options: ReportOptions, console: Console) -> Path:
    """The page of a run, or one page of several runs. Raises `UserError` for a folder that is not a run."""
    folders, out = options.runs, options.out
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise UserError(f"{folder} is not a run: it has no run.json; expected a folder that `calotype train` wrote")
    several = len(folders) > 1
    out = folders[0].parent / "report.html" if out is None and several else out
    if out is not None and os.path.lexists(out) and not is_page(out):
        raise UserError(f"{out} is not a page of calotype and is not overwritten; choose another name with --out")
    page = write_runs(folders, out) if several and out is not None else write_report(folders[0], out)
    console.say(f"done: look at {page}")
    return page
