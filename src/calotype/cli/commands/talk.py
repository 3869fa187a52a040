"""How a command is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from calotype.training.run import Interrupted


def unless(stop: threading.Event, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """As `progress`, but raises `Interrupted` once `stop` is set."""

    def checked(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted
        progress(done, total)

    return checked
