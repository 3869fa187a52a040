"""What training needs of whoever shows it: lines, and bars for what takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from calotype.training.signals import Interrupted

Progress = Callable[[int, int, str], None]
"""(done, total, note)."""


@runtime_checkable
class Reporter(Protocol):
    """A terminal, or a stand-in for one."""

    def say(self, text: str) -> None: ...

    def bar(self, step: str) -> AbstractContextManager[Progress]: ...


def counting(progress: Progress) -> Callable[[int, int], None]:
    """The bar for work that has no note."""
    return lambda done, total: progress(done, total, "")


def until_stopped(stop: threading.Event, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """As `progress`, but raises `Interrupted` once `stop` is set."""

    def report(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted
        progress(done, total)

    return report
