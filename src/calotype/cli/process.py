"""The command line as a process: its threads and memory, output to a closed pipe, signals that unwind the stack."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from calotype.escaping import plain
from calotype.heap import keep_freed
from calotype.places import cache_home

READER_IS_GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, *([errno.EINVAL] if os.name == "nt" else [])}
"""Errors of a closed pipe (on Windows EINVAL), terminal and socket."""
UNWINDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


SPINS = "10000"
"""How often a waiting thread of OpenMP looks for work before it sleeps: for about 50 microseconds.

Where threads sleep at once, a step of the autoencoder is as slow on two cores as on one; those that never sleep slow
down a busy machine."""

COMPILER = {"FX_GRAPH_CACHE": "0", "AUTOGRAD_CACHE": "0", "COMPILE_THREADS": "1"}
"""Of torch.compile, beside its `compiled_folder`: nothing that is kept is a pickle, and it starts no processes that
have torch in memory once more."""


def tune_process() -> None:
    """How threads wait, that freed memory is kept, and that sums repeat; to be called before torch is imported.

    Without `MKL_CBWR` a small product on several threads comes out otherwise each time on Intel's processors, and a run
    that is stopped and resumed is not the same to the bit; it costs no time that can be measured. By default glibc
    gives large blocks back to the kernel at once, and each training step pays for new pages: 15% of its time
    (dev/LOG.md, 2026-11-28). What the user has set in the environment stays.
    """
    if is_rank():  # DistributedDataParallel warns of weights that are all used
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # of the OpenMP of LLVM and Intel, which counts in milliseconds
    os.environ.setdefault("MKL_CBWR", "AUTO")
    for name, value in COMPILER.items():
        os.environ.setdefault(f"TORCHINDUCTOR_{name}", value)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled_folder())
    keep_freed()


def freeze_imported() -> None:
    """Collections of garbage no longer visit what is imported: each part of a run makes one, which took 0.2 s of it.

    It imports torch.
    """
    importlib.import_module("torch._dynamo")  # the first optimizer would, after this
    gc.collect()
    gc.freeze()


def compiled_folder() -> Path:
    """For the code of torch.compile, where no other user can write: in the user's cache, or, where that cannot be
    written to, in a folder of this process, if there can be any. Torch makes it also for what compiles nothing, and
    would end there."""
    folder = cache_home() / "compiled"
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.access(f"{there}/.", os.W_OK | os.X_OK):  # also where it is a file
        with suppress(OSError):  # commands that only read need none
            folder = Path(tempfile.mkdtemp(prefix="calotype-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_rank() -> bool:
    """Whether torchrun, or a scheduler in its place, has started this process as one of several."""
    return "RANK" in os.environ


def start_ranks(count: int) -> NoReturn:
    """The same command on so many processes of this machine: torchrun takes the place of this one.

    Raises `UserError` for more than there are cores: each takes hundreds of megabytes before it can say so.
    """
    if count > (cores := os.cpu_count() or count):
        from calotype.types import UserError

        raise UserError(f"--ranks is {count}, but this machine has {cores} cores; take at most one rank for each")
    os.environ["PYTHONSAFEPATH"] = "1"  # of the ranks, too: nothing of the current folder is imported
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # not --standalone, where the launcher unpickles what it finds behind its port
    meeting = ["--rdzv-backend=static", "--master-addr=127.0.0.1", f"--master-port={port}"]
    launcher = [sys.executable, "-m", "calotype.cli.launching", *meeting, f"--nproc-per-node={count}"]
    os.execv(sys.executable, [*launcher, "-m", "calotype", *sys.argv[1:]])


class LastingStream:
    """A text stream that drops what is written once its reader is gone. All other errors are raised.

    What is written goes through `edited` first. Bytes raise a `TypeError`, by which click knows a text stream.
    """

    def __init__(self, stream: Any, edited: Callable[[str], str] = lambda text: text) -> None:
        self.stream, self.edited = stream, edited

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(self.edited(text)))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            if error.errno not in READER_IS_GONE:
                raise
            discard(self.stream)


def discard(stream: Any) -> None:
    """Redirects a stream and its buffer to the null device, or Python would report at its end that it cannot flush."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with suppress(OSError):  # a stream in memory has no descriptor
            os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error as `LastingStream`s: `calotype train | head` must train to the end.

    Letters that their encoding has not are escaped. On standard error no program steers the terminal, so all that could
    is escaped, too: of warnings and errors of any package.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, before[0] and LastingStream(before[0]))
    sys.stderr = cast(TextIO, before[1] and LastingStream(before[1], partial(plain, kept="\n\t")))
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):  # Python tries once more when it ends, and reports it
                stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit(128 + number)`, so that `finally` blocks run; a second SIGTERM ends at once.

    Signals that were ignored before, as under `nohup`, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        again = signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN  # one hangup is often two signals
        signal.signal(number, again)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in UNWINDING}
    usual = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in usual:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)
