"""How a command talks to whoever called it, and hears that it should stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from calotype.planning import Plan
from calotype.training.run import Interrupted

Progress = Callable[[int, int, str], None]


@runtime_checkable
class Console(Protocol):
    """How a command talks: lines, and bars for what takes long."""

    def say(self, text: str) -> None: ...

    def bar(self, what: str) -> AbstractContextManager[Progress]: ...

    def plan(self, plan: Plan) -> None: ...


def unless(stop: threading.Event, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """As `progress`, but raises `Interrupted` once `stop` is set."""

    def heard(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted
        progress(done, total)

    return heard


def counting(bar: Progress) -> Callable[[int, int], None]:
    return lambda done, total: bar(done, total, "")
