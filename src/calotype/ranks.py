"""Ranks: processes that train together, each on its share of every batch. Torch's process group is what joins them.

The first rank alone plans, measures, writes and shows. What only it knows reaches the others through the store of the
group, as JSON, and for as long as it takes; what all do at once (sums of losses, of gradients) must be done within
`PATIENCE` seconds. Every rank gives a sign each second while it gets on (`heartbeat`), so whoever waits knows who is
dead or stuck.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from calotype import heartbeat
from calotype.heartbeat import Store, Watch, give_signs
from calotype.types import UserError

PATIENCE = 20.0
"""Seconds without a sign after which a rank is lost, and without any work after which it gives none."""
LOOK_SECONDS, JOINING = 0.02, 300.0
FAREWELL = 5.0
"""Seconds for which the first rank, which may hold the store, waits for the others to have read its last word."""
SENT_BYTES = 2**24
"""Of the rows that a rank sends at once: half a second on a network of 0.3 Gbit/s."""
ENDED, DEPARTED = "ended", "left"
NOT_RESUMED = ("sample", "evaluate")
"""Commands that begin anew where they were interrupted."""
REASON_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun looks for the reason why a rank has failed."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all that train one run; by default it is alone."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where tensors must be for the group to exchange them."""
    store: Store | None = None
    signs: Store | None = None
    """A second way to the same words, since one may have to wait."""
    command: str = "train"
    """That they work on."""
    _turns: Iterator[int] = field(default_factory=itertools.count)
    """All ranks say and meet as often, so equal numbers mean the same moment."""

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    # -- All at once ---------------------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def norm(self, norms: Tensor) -> Tensor:
        """Norms of vectors whose parts on each rank have these norms."""
        return norms if self.alone else self.sum(norms.square()).sqrt()

    def max(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all ranks."""
        return self._reduced(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.MAX).tolist()

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.alone:
            return values
        together = values.detach().to(self.device, copy=True)
        dist.all_reduce(together, operation)
        return together.to(values.device)

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first rank, on all; of the others none is needed."""
        if self.alone:
            return dict(tensors)
        about = self.say(lambda: {name: [str(value.dtype)[6:], *value.shape] for name, value in tensors.items()})
        received = {}
        for name, (dtype, *shape) in about.items():
            value = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            if self.first:
                value.copy_(tensors[name])
            dist.broadcast(value, 0)
            received[name] = value
        return received

    def share(self, count: int, index: int | None = None) -> slice:
        """Which of `count` rows are those of this rank, or of that with this `index`: in order, as equal as can be."""
        index = self.index if index is None else index
        return slice(*(-(-count * place // self.count) for place in (index, index + 1)))  # the first has at least one

    def collect(self, rows: Tensor, count: int) -> Tensor:
        """All `count` rows, in order, on the first rank; `rows` are those of this rank's `share`, all that others get.

        A rank that makes its rows sooner waits for the others. Rows are sent a few at a time, each time when the first
        rank has asked for them, so that however many there are, none of it takes as long as `PATIENCE`.
        """
        if self.alone:
            return rows
        self.meet()
        turn = next(self._turns)
        if not self.first:
            for place, part in enumerate(rows.split(rows_at_once(rows)) if len(rows) else ()):
                self._await(f"take-{turn}-{self.index}-{place}")
                dist.send(part.to(self.device).contiguous(), 0)
            return rows
        everyone = rows.new_empty(count, *rows.shape[1:])
        everyone[: len(rows)] = rows
        for index in range(1, self.count):
            for place, part in enumerate(everyone[self.share(count, index)].split(rows_at_once(rows))):
                if len(part):
                    assert self.store is not None
                    self.store.set(f"take-{turn}-{index}-{place}", "")
                    received = torch.empty_like(part, device=self.device)
                    dist.recv(received, index)
                    part.copy_(received)
        return everyone

    # -- One after the other -------------------------------------------------------------------------------------------

    def say(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on the first rank, JSON, on all ranks; the others wait for as long as it takes."""
        if self.store is None:
            return work()
        key = f"word-{next(self._turns)}"
        if self.first:
            word = work()
            self.store.set(key, json.dumps(word))
            return word
        self._await(key)
        return json.loads(self.store.get(key))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes first, the others after it, all at once: they find what it has cached."""
        if not self.first:
            self.say(lambda: None)
        yield
        if self.first:
            self.say(lambda: None)

    def meet(self) -> None:
        """Waits for all ranks, for as long as they need."""
        if self.store is None:
            return
        turn = next(self._turns)
        for index in range(self.count):
            key = f"met-{turn}-{index}"
            self.store.set(key, "") if index == self.index else self._await(key)

    def end_with_first(self) -> None:
        """Where all ranks fail or stop, the first says why; the others wait for its end, and raise `SystemExit`."""
        if not self.first:
            self._await("nothing")

    def _await(self, key: str) -> None:
        """Raises `SystemExit` where the first rank has ended, and `LostRanks` where one gives no sign any more."""
        assert self.store is not None
        watch = Watch(self.store, self.count)
        while not self.store.check([key]):
            if self.store.check([ENDED]):
                raise SystemExit(int(self.store.get(ENDED)))
            watch.look()
            if silent := watch.silent(PATIENCE):
                raise LostRanks(silent, self)
            time.sleep(LOOK_SECONDS)


ALONE = Ranks()


def rows_at_once(rows: Tensor) -> int:
    return max(1, SENT_BYTES // max(1, math.prod(rows.shape[1:]) * rows.element_size()))


class LostRanks(UserError):  # noqa: N818
    """The ranks that are `silent`, of all `ranks`."""

    def __init__(self, silent: Sequence[int], ranks: Ranks) -> None:
        self.silent = silent
        names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
        super().__init__(
            f"{names} of {ranks.count} gave no sign any more: ended, or stuck; look at what was printed above; "
            f"{advice_after_loss(ranks.command)}"
        )


def advice_after_loss(command: str) -> str:
    """What to do after a rank is lost, by the command that it worked on."""
    if command in NOT_RESUMED:
        return f"what is written is sound: start calotype {command} again, on as many ranks as there are"
    return "the last checkpoint is sound: go on with calotype resume, on as many ranks as there are"


# -- Joining -----------------------------------------------------------------------------------------------------------


@contextmanager
def joined_ranks(device: str = "auto", command: str = "train") -> Iterator[Ranks]:
    """The ranks that `torchrun` has started for a command, by the variables that it sets; without it, this process
    alone.

    Where the first rank ends, the others end with it, in silence. An error of another names its rank; one that is due
    to a lost rank becomes a `UserError` that names that.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = replace(join(device), command=command)
    ending = threading.Event()
    about = {"process": os.getpid(), "host": platform.node(), "errors": os.environ.get(REASON_FILE)}
    arguments = ranks.signs, ranks.index, about, PATIENCE, ending
    signs = threading.Thread(target=give_signs, args=arguments, daemon=True)
    signs.start()
    code = 1
    try:
        with explained(ranks):
            yield ranks
            with suppress(SystemExit, RuntimeError):  # the first has ended, and with it perhaps the store
                ranks.end_with_first()
        code = 0
    finally:
        leave(ranks, code)
        ending.set()
        signs.join()
        dist.destroy_process_group()


def restarted(job: str | None = None) -> bool:
    """Whether torchrun has started the ranks again after one was lost (`--max-restarts`); in this `current_job`."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return again and job in (None, current_job())


def current_job() -> str:
    """A name of the job of torchrun, the same for ranks that are started again; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name} of process {os.getppid()} on {platform.node()}" if name else ""


def join(device: str) -> Ranks:
    """Raises `UserError` for a device that ranks cannot share."""
    from torch.distributed.rendezvous import rendezvous

    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {device!r}, but several ranks take cpu, or cuda with a GPU for each; leave it out")
    if cuda and (gpus := torch.cuda.device_count()) < (here := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        raise UserError(f"{here} ranks need a GPU each, but this machine has {gpus}; take fewer ranks, or --device cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own)
    prefixed = dist.PrefixStore  # type: ignore[attr-defined]
    store, index, count = next(rendezvous("env://", timeout=timedelta(seconds=JOINING)))
    start = agreed_start(store, index, count)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=prefixed(f"group-{start}", store), rank=index, world_size=count,
        timeout=timedelta(seconds=PATIENCE), device_id=own if cuda else None,
    )  # fmt: skip
    words, signs = (prefixed(f"calotype-{start}", store.clone()) for _ in range(2))
    return Ranks(index, count, own, words, signs)


def agreed_start(store: Store, index: int, count: int) -> str:
    """A name that all ranks have for this start of theirs, once all are there.

    Where torchrun starts the ranks again, the store still has all words of those before. So the first rank answers the
    names that it sees until each of the others has found its own in an answer. Raises `UserError` where one does not
    come.
    """
    name, end = secrets.token_hex(8), time.monotonic() + JOINING
    store.set(f"start-{index}", name)
    while time.monotonic() < end:
        if index and store.check(["answer"]):
            first, *others = json.loads(store.get("answer"))
            if name in others:
                store.set(f"{first}-{index}", "")
                return str(first)
        elif not index:
            there = [key for place in range(1, count) if store.check([key := f"start-{place}"])]
            store.set("answer", json.dumps([name, *(store.get(key).decode() for key in there)]))
            if all(store.check([f"{name}-{place}"]) for place in range(1, count)):
                return name
        time.sleep(LOOK_SECONDS)
    raise UserError(f"rank {index} of {count} found no others within {JOINING:.0f} s; look at what was printed above")


@contextmanager
def explained(ranks: Ranks) -> Iterator[None]:
    """Names ranks that are lost where an error is due to that, and this rank where it is not the first."""
    try:
        yield
    except RuntimeError as error:
        with without_sigterm():  # which torchrun sends to those that are left
            silent = silent_ranks(ranks, PATIENCE if is_of_group(error) else 0.0)
        if not silent:
            raise
        lost = LostRanks(silent, ranks)
        end_stuck(ranks, lost)
        raise lost from error
    except LostRanks as lost:
        end_stuck(ranks, lost)
        raise
    except UserError as error:
        raise error if ranks.first else UserError(f"rank {ranks.index}: {error}") from error


@contextmanager
def without_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_of_group(error: RuntimeError) -> bool:
    """Whether it is raised where ranks exchange something: one of them has ended, or has not come for `PATIENCE`."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def silent_ranks(ranks: Ranks, patience: float) -> list[int]:
    """Those without a sign for longer than between two, within so many seconds more: one that is stuck since a moment
    ago still gives signs."""
    assert ranks.store is not None
    watch, end = Watch(ranks.store, ranks.count), time.monotonic() + patience + 4 * heartbeat.SIGN_SECONDS
    with suppress(RuntimeError):  # the store has gone, and with it the first rank
        while time.monotonic() < end:
            watch.look()
            if silent := watch.silent(2.5 * heartbeat.SIGN_SECONDS):
                return silent
            time.sleep(heartbeat.SIGN_SECONDS / 4)
        return []
    return [0]


def end_stuck(ranks: Ranks, lost: LostRanks) -> None:
    """Kills those of this machine, after leaving the reason for torchrun in their name: a process that is stopped
    ignores torchrun, which would wait 30 seconds for it. SIGTERM, its answer, is ignored from now on."""
    assert ranks.signs is not None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for index in lost.silent:
        with suppress(RuntimeError, ValueError, psutil.Error):  # the store or the process has gone
            if not ranks.signs.check([f"sign-{index}"]):  # it ended before its first, for which `get` would wait
                continue
            sign = json.loads(ranks.signs.get(f"sign-{index}"))
            process = psutil.Process(sign["process"])
            if sign["host"] == platform.node() and process.ppid() == os.getppid():
                pass_on(f"calotype: {lost}", sign["errors"])
                process.kill()


def pass_on(line: str, file: str | None = os.environ.get(REASON_FILE)) -> None:
    """Gives torchrun the reason why a rank ends, which it shows at the end of its own message."""
    if file:
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))


def leave(ranks: Ranks, code: int) -> None:
    """The first rank says that it ends, and stays until the others know."""
    assert ranks.store is not None
    end = time.monotonic() + FAREWELL
    with suppress(RuntimeError):  # the store has gone
        if not ranks.first:
            ranks.store.set(f"{DEPARTED}-{ranks.index}", "")
            return
        ranks.store.set(ENDED, str(code))
        left = [f"{DEPARTED}-{index}" for index in range(1, ranks.count)]
        while not all(ranks.store.check([key]) for key in left) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
