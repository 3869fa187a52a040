"""The list of all runs: the first page, and the rows that it asks for again while it is open."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from calotype.report.format import UNKNOWN, count, digits, duration
from calotype.report.html import Content, Html, aside, masthead, tag
from calotype.report.runs import RunSummary
from calotype.serve.answers import document
from calotype.serve.launching import StartedRun
from calotype.serve.pages import link

COLUMNS = {
    "": "",
    "name": "Run",
    "state": "State",
    "model": "Model",
    "data": "Pictures",
    "seconds": "Time",
    "psnr": "PSNR",
    "held_out_loss": "Held-out loss",
    "fd_lite0": "FD-Lite0",
    "created": "Started",
}
"""Columns of the list, by the key by which they are sorted."""
EMPTY = aside(
    "The next page takes a folder of your own pictures, and how long training may take; after that time there is a "
    "model that makes new ones. Without pictures at hand, leave the folder empty: it trains on the embedded portraits."
)
MOST_ROWS_KEPT = 2000


@dataclass(frozen=True)
class ListRow:
    """The row of a run. `stamp` is a hash of its content, by which an open page knows what has changed."""

    run: str
    stamp: str
    markup: Html


@dataclass(frozen=True)
class RunList:
    """All rows in order, and the sentence above them. `version` is a hash of both."""

    lede: str
    rows: Sequence[ListRow]

    @property
    def version(self) -> str:
        return hashed(self.lede, *(f"{row.run} {row.stamp}" for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        rows = [{"run": row.run, "stamp": row.stamp, "markup": row.markup.code} for row in self.rows]
        return {"lede": self.lede, "rows": rows}


def hashed(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def list_of_runs(runs: Sequence[tuple[str, RunSummary]], started: Sequence[StartedRun]) -> RunList:
    """Runs that are being planned, or never got further, come first."""
    going = sum(run.state == "training" for _, run in runs) + sum(run.state == "planning" for run in started)
    total = len(runs) + len(started)
    lede = f"{count(total)} run{'s' * (total != 1)}" + (f", {going} in training." if going else ".")
    if not runs and not started:
        lede = "There are none yet."
    return RunList(lede, [*map(started_row, started), *(run_row(run, summary) for run, summary in runs)])


def index_page(runs: RunList) -> str:
    new = tag("p", link("/new", "Train on a folder of pictures", "button"), class_="actions")
    hint = "Higher PSNR is better; lower held-out loss and FD-Lite0 are better. Compare FD-Lite0 only at equal n."
    parts = (filters(), aside(hint), runs_table(runs)) if runs.rows else (EMPTY,)
    about = {"page": "index", "version": runs.version}
    return document("Runs", masthead([], "Runs", runs.lede), new, *parts, about=about)


def filters() -> Html:
    search = tag("input", type="search", id="filter", placeholder="Name, state, pictures …", autocomplete="off")
    words = tag("label", "Filter ", search)
    compare = tag("button", "Compare the marked", type="submit", form="runs", disabled="")
    files = tag("span", link("/api/runs.csv", "CSV"), " ", link("/api/runs", "JSON"), class_="files")
    return tag("div", words, compare, tag("output", id="found", role="status"), files, class_="tools")


def runs_table(runs: RunList) -> Html:
    head = tag(
        "tr",
        tag("th", tag("span", "Mark", class_="unseen"), scope="col", role="columnheader"),
        *(
            tag("th", tag("button", words, type="button"), scope="col", role="columnheader")
            for key, words in COLUMNS.items()
            if key
        ),
        role="row",
    )
    rows = tag("tbody", *(row.markup for row in runs.rows), role="rowgroup")
    body = tag("table", tag("thead", head, role="rowgroup"), rows, class_="runs figures", id="list", role="table")
    return tag("form", tag("div", body, class_="wide"), action="/compare", method="get", id="runs")


# -- Rows --------------------------------------------------------------------------------------------------------------


@lru_cache(MOST_ROWS_KEPT)
def run_row(run: str, summary: RunSummary) -> ListRow:
    """A cell whose text does not sort has the value that does in `data-value`."""
    mark = tag("input", type="checkbox", name="runs", value=run, aria_label=f"Mark {summary.name}")
    n = f" (n = {summary.fd_n})" if summary.fd_n else ""
    cells = [
        list_cell(mark),
        list_cell(tag("a", tag("img", alt=""), tag("span", summary.folder.name), href=f"/runs/{run}", class_="run")),
        state_cell(summary.state),
        list_cell(f"{summary.kind} {summary.chain} px" if summary.chain else summary.kind),
        list_cell(summary.problem or summary.data),
        sorted_cell(summary.seconds, duration),
        sorted_cell(summary.psnr, digits),
        sorted_cell(summary.held_out_loss, digits),
        sorted_cell(summary.fd_lite0, lambda value: digits(value) + n),
        list_cell(day(summary.created), summary.created),
    ]
    return list_row(run, cells)


@lru_cache(MOST_ROWS_KEPT)
def started_row(started: StartedRun) -> ListRow:
    """Of a run whose plan is being made, or that never got so far."""
    name = tag("a", tag("span", started.name), href=f"/runs/{started.id}", class_="run")
    cells = [list_cell(), list_cell(name), state_cell(started.state), *[list_cell()] * (len(COLUMNS) - 3)]
    return list_row(started.id, cells, "started")


def list_row(run: str, cells: Sequence[Html], kind: str | None = None) -> ListRow:
    stamp = hashed(*(cell.code for cell in cells))
    return ListRow(run, stamp, tag("tr", *cells, role="row", data_run=run, data_stamp=stamp, class_=kind))


def list_cell(content: Content = None, value: object = None) -> Html:
    """Rows are grids, of which browsers tell screen readers no more than the roles that are given. `value` sorts."""
    return tag("td", content, role="cell", data_value=value)


def state_cell(state: str) -> Html:
    return list_cell(tag("span", state, class_=f"state {state}" if state.isalpha() else "state"))


def sorted_cell(value: float | None, text: Callable[[float | None], Content]) -> Html:
    return list_cell(UNKNOWN if value is None else text(value), "" if value is None else value)


def day(created: str) -> str:
    """`28 Nov 2026, 13:31`, in the time zone of the run."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%b %Y, %H:%M}"
