"""Signs of life: each rank gives one each second while its threads get on, and the others see who gives none.

A process whose main thread is stuck, as in a deadlock, still has threads that run, so that one of them gives signs says
little. On Linux the kernel says of each thread whether it runs, waits for a disk, or waits for something else, and how
often it has begun to wait; elsewhere only a process that is stopped as a whole gives no sign.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import psutil

SIGN_SECONDS = 1.0
DISK_SECONDS = 300.0
"""For which a disk may keep a rank waiting, as when a large file is brought to it: then the rank is stuck."""
LEAST_WORK = 0.05
"""Share of a core from which other processes work; one that serves a page or waits takes less."""
STATE = re.compile(r"^(?:State|(?:non)?voluntary_ctxt_switches):\t(\w+)", re.MULTILINE)
RUNNABLE, WAITS_FOR_DISK = "R", "D"


@runtime_checkable
class Store(Protocol):
    """Words that all ranks can write and read, as torch has them (`torch.distributed.Store`)."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


@dataclass
class Activity:
    """Whether the threads of this process get on, or processes that they have started, as torch's compiler does.
    Daemon threads and threads of torch do not count."""

    states: dict[int, tuple[str, ...]] = field(default_factory=dict)
    worked: float = 0.0
    """Seconds of processor time that the processes started had taken when they were last asked, at `looked`."""
    looked: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    """When a thread was last seen to get on."""

    def stuck(self, patience: float) -> bool:
        """Whether all have waited for so long without a moment's work, or longer for a disk."""
        before, now = self.states, time.monotonic()
        ids = [thread.native_id for thread in threading.enumerate() if not thread.daemon]
        self.states = {thread: thread_state(thread) for thread in ids if thread is not None}
        letters = {state[0] for state in self.states.values() if state}
        if self.states != before or RUNNABLE in letters or not letters:
            self.moved = now
        else:
            worked = seconds_of_children()
            if worked > self.worked + LEAST_WORK * (now - self.looked):
                self.moved = now
            self.worked, self.looked = worked, now
        return now > self.moved + (max(patience, DISK_SECONDS) if WAITS_FOR_DISK in letters else patience)


def thread_state(thread: int) -> tuple[str, ...]:
    """The letter of its state, and how often it has given up a processor, or was made to; empty where it is not known:
    of another system than Linux, or of a thread that has ended."""
    with suppress(OSError):
        return tuple(STATE.findall(Path(f"/proc/self/task/{thread}/status").read_text()))
    return ()


def seconds_of_children() -> float:
    """Processor time of the processes that this one has started, and of theirs, as far as they run still."""
    total = 0.0
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                used = child.cpu_times()
                total += used.user + used.system
    return total


def give_signs(store: Store, index: int, about: Mapping[str, object], patience: float, ending: threading.Event) -> None:
    """Until `ending` is set, while this process is not stuck for longer than `patience`."""
    number, activity = 0, Activity()
    with suppress(RuntimeError):  # the store has gone, and with it the job
        while not ending.is_set():
            if not activity.stuck(patience):
                number += 1
                store.set(f"sign-{index}", json.dumps({"number": number, **about}))
            ending.wait(SIGN_SECONDS)


@dataclass
class Watch:
    """Since when each of so many ranks has given no sign, by the clock of this one."""

    store: Store
    count: int
    signs: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    looked: float = 0.0

    def look(self) -> None:
        """Asks for the signs, twice as often as they are given."""
        now = time.monotonic()
        if now < self.looked + SIGN_SECONDS / 2:
            return
        self.looked = now
        for index in range(self.count):
            sign = bytes(self.store.get(key)) if self.store.check([key := f"sign-{index}"]) else b""
            if index not in self.signs or self.signs[index][0] != sign:
                self.signs[index] = sign, now

    def silent(self, seconds: float) -> list[int]:
        """The ranks that have given no sign for so long."""
        return [index for index, (_, since) in self.signs.items() if self.looked > since + seconds]
