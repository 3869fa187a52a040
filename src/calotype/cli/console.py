"""How commands report: a protocol, and the terminal, with progress bars, or plain lines where output is redirected."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from calotype.escaping import plain

if TYPE_CHECKING:
    from calotype.planning import Plan
    from calotype.training.process import ProgressBar

LINE_SECONDS = 10.0
"""Between two plain lines of a step."""


@runtime_checkable
class Console(Protocol):
    """A `Reporter` that shows the plan, too; written out, since `training` imports torch."""

    def say(self, text: str) -> None: ...

    def bar(self, step: str) -> AbstractContextManager[ProgressBar]: ...

    def plan(self, plan: Plan) -> None: ...


class Terminal:
    """Writes to standard output; what comes from outside reaches it through `plain`."""

    def __init__(self) -> None:
        from rich.console import Console as Rich

        self.console = Rich(highlight=False, emoji=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))

    def say(self, text: str) -> None:
        self.console.print(plain(text), markup=False, soft_wrap=True)  # a path stays one line, to be copied

    @contextmanager
    def bar(self, step: str) -> Iterator[ProgressBar]:
        if not self.console.is_terminal:
            yield self._lines(step)
            return
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<12}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(escape(plain(step)), total=None, note="")

            def update(done: int, total: int, note: str = "") -> None:
                progress.update(task, completed=done, total=total, note=escape(plain(note)))

            yield update

    def _lines(self, step: str) -> ProgressBar:
        from calotype.report.format import duration

        start, last = time.monotonic(), 0.0

        def progress(done: int, total: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < LINE_SECONDS and done < total:
                return
            last, spent = now, now - start
            known = 0 < done < total and spent >= LINE_SECONDS  # the first few are no measure of the others
            left = f", {duration(spent * (total - done) / done)} left" if known else ""
            rest = f"; {note}" if note else ""
            self.say(f"{step}: {done:,} of {total:,}, {duration(spent)} elapsed{left}{rest}")

        return progress

    def plan(self, plan: Plan) -> None:
        from rich.table import Table
        from rich.text import Text

        for note in plan.notes:
            self.say(f"- {note}")
        table = Table(title="Plan", title_justify="left", show_edge=False, pad_edge=False)
        for heading in ("setting", "choice", "reason"):
            table.add_column(heading, overflow="fold")
        for choice in plan.choices:
            table.add_row(*(Text(plain(cell)) for cell in (choice.what, choice.value, choice.why)))
        self.console.print(table)
        for line in cost_lines(plan):
            self.say(line)


def cost_lines(plan: Plan) -> Iterator[str]:
    from calotype.report.format import digits, duration

    predicted, seconds = plan.predicted, plan.predicted["seconds"]
    yield f"device       {plan.device}, {plan.recipe.precision}"
    for leg in plan.recipe.legs:
        compiled = " (compiled)" if leg in plan.compiled else ""
        yield (
            f"{leg:<12} {plan.parameters(leg) / 1e6:.1f} M parameters, {predicted['steps'][leg]:,} steps of "
            f"{digits(predicted['seconds_a_step'][leg])} s{compiled}, {duration(seconds[leg])}"
        )
    other = sum(spent for step, spent in seconds.items() if step not in plan.recipe.legs)
    rest = f"{duration(other)} of it outside training; {plan.final_count} samples"
    memory, disk = predicted["peak_memory_bytes"] / 2**30, predicted["disk_bytes"] / 1e6
    yield f"in all       {duration(sum(seconds.values()))} from here on ({rest})"
    yield f"needs        {memory:.1f} GB of memory, {disk:,.0f} MB of disk"
