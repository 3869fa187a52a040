"""Signals that ask a run to stop; it saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, `kill`, and a terminal or connection that closes. Windows has no SIGHUP."""


class Interrupted(Exception):  # noqa: N818
    """The user asked to stop; everything is saved. `signal_number` is that of the signal that asked."""

    def __init__(self, folder: str = "", signal_number: int = signal.SIGINT) -> None:
        super().__init__(folder)
        self.signal_number = int(signal_number)


class Stop(threading.Event):
    """Is set when the user asks to stop; `signal_number` is that of the first signal that did."""

    signal_number: int = signal.SIGINT


@contextmanager
def stoppable() -> Iterator[Stop]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets; the same signal once more stops at once.

    Except a second SIGHUP: the kernel and the shell both send one when a terminal closes, within a millisecond.
    Under `nohup` SIGHUP is ignored from the start, and stays so.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPPING if not ignored_hangup(number)}

    def ask(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.signal_number = number
        stop.set()
        signal.signal(number, signal.SIG_IGN if is_hangup(number) else before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def ignored_hangup(number: int) -> bool:
    return is_hangup(number) and signal.getsignal(number) is signal.SIG_IGN
