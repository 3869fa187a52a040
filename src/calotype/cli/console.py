"""How the command line talks: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from calotype.planning import Plan

LINE_SECONDS = 10.0
"""Between the plain lines of one step."""


class Terminal:
    """Says everything on standard output; no bar is shown for what takes less than a moment."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int, str], None]]:
        if not self.console.is_terminal:
            yield self._lines(what)
            return
        columns = (
            TextColumn("{task.description:<12}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=None, note="")
            yield lambda done, total, note: progress.update(task, completed=done, total=total, note=escape(note))

    def _lines(self, what: str) -> Callable[[int, int, str], None]:
        start, last = time.monotonic(), 0.0

        def progress(done: int, total: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < LINE_SECONDS and done < total:
                return
            last, spent = now, now - start
            left = spent * (total - done) / done if done else 0.0
            rest = f"; {note}" if note else ""
            self.console.print(
                escape(f"{what}: {done:,} of {total:,}, {duration(spent)} gone, {duration(left)} left{rest}")
            )

        return progress

    def plan(self, plan: Plan) -> None:
        for note in plan.notes:
            self.say(f"- {note}")
        table = Table(title="The plan", title_justify="left", show_edge=False, pad_edge=False)
        for heading in ("what", "choice", "why"):
            table.add_column(heading, overflow="fold")
        for choice in plan.choices:
            table.add_row(escape(choice.what), escape(choice.value), escape(choice.why))
        self.console.print(table)
        for line in cost(plan):
            self.say(line)


def cost(plan: Plan) -> list[str]:
    """What the plan predicts, in lines."""
    predicted, seconds = plan.predicted, plan.predicted["seconds"]
    lines = [f"device       {plan.device}, {plan.recipe.precision}"]
    for leg in plan.recipe.legs:
        lines.append(
            f"{leg:<12} {plan.parameters(leg) / 1e6:.1f} M parameters, {predicted['steps'][leg]:,} steps of "
            f"{predicted['seconds_a_step'][leg]:.2f} s, {duration(seconds[leg])}"
        )
    beside = sum(spent for what, spent in seconds.items() if what not in plan.recipe.legs)
    rest = f"{duration(beside)} of it for what is not training; {plan.final_count} samples"
    memory, disk = predicted["peak_memory_bytes"] / 2**30, predicted["disk_bytes"] / 1e6
    lines.append(f"in all       {duration(sum(seconds.values()))} from here on ({rest})")
    lines.append(f"needs        {memory:.1f} GB of memory, {disk:,.0f} MB of disk")
    return lines


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
