"""Runs as they are: a list of them, and their pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from calotype.cli.commands.talk import Console
from calotype.data.images import shown
from calotype.report import Brief, all_briefs, write_report, write_several
from calotype.report.words import duration, moment
from calotype.types import UserError


def runs(folder: Path, as_json: bool, console: Console) -> list[Brief]:
    """Tells all runs in a folder, newest first: a line each, or a JSON object."""
    found = all_briefs(folder)
    rows = [[json.dumps(asdict(one), default=str)] if as_json else cells(one) for one in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        console.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return found


def cells(one: Brief) -> list[str]:
    """Name, state, what it is and its main figures; what is not known is left out."""
    measures = (
        (one.psnr, "PSNR {:.1f} dB"),
        (one.held_out_loss, "held-out loss {:.3f}"),
        (one.fd_lite0, f"FD-Lite0 {{:.0f}} (n = {one.fd_n})"),
    )
    figures = ", ".join(text.format(value) for value, text in measures if value is not None)
    made = f"{one.kind} {one.chain} px" if one.chain else one.kind
    spent, created = duration(one.seconds) if one.seconds else "", one.problem or moment(one.created)
    return [shown(cell) for cell in (one.folder.name, one.state, made, one.data, spent, figures, created)]


def report(folders: Sequence[Path], out: Path | None) -> Path:
    """The page of a run, or one page of several. Raises `UserError` for a folder that is no run."""
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise UserError(f"{folder} is not a run: it has no run.json; expected a folder that `calotype train` wrote")
    if len(folders) == 1:
        return write_report(folders[0], out)
    return write_several(folders, out or folders[0].parent / "report.html")
