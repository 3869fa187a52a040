"""Training as processes of their own, which outlive the server: start, cancel, stop, resume; why one has stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import category

import psutil

from calotype.escaping import JOINERS
from calotype.files import make_folder, read_bytes, remove, write_json, write_whole
from calotype.report.format import duration
from calotype.run import Run, read_mapping
from calotype.serve.answers import RefusedRequest, sentence_of
from calotype.serve.library import id_of
from calotype.training.process import holder_of, owner_of
from calotype.types import UserError

HIDDEN = ".calotype"
"""In the folder of runs: what processes have printed, and pictures that were dropped onto the page."""
LONGEST_NAME = 80
MAX_RUNNING = 8
"""Trainings that the page has started and that still run."""
ENDING_SECONDS = 10.0
"""A process is given these to end after its run is no longer locked."""
STOP_SECONDS = 60.0
"""For which a run that was asked to stop is not asked again: a second signal would end it before it has saved."""
LAST_LINES, LAST_BYTES = 40, 2**15
OUT_OF_MEMORY = (
    "the operating system has killed it (exit code 137), most likely because memory ran out: close other programs, or "
    "start again with a smaller size; what was saved is sound"
)
CANCELLED = "It was cancelled before training began; the pictures are kept, and New run starts again"


@dataclass(frozen=True)
class StartedRun:
    """A run that was started here and has no `run.json` yet, or never got one."""

    id: str
    name: str
    state: str
    """`planning`, `cancelled` or `failed`."""


@dataclass(frozen=True)
class Launcher:
    """Starts commands on the runs in a folder, and keeps what they print."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By run, those that this server has started and that still run."""
    stopping: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By run, the number of the process that was asked to stop, and when."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a process is started or stopped: requests are answered by several threads."""

    def printed(self, run: str) -> Path:
        return self.folder / HIDDEN / f"{run}.txt"

    def noted(self, run: str) -> Path:
        return self.folder / HIDDEN / f"{run}.json"

    def train(self, name: str, command: Sequence[str]) -> str:
        """Starts a new run of this name by `train` or `demo`, and returns its id. Raises `RefusedRequest`."""
        if not is_run_name(name):
            raise RefusedRequest(400, "name must be 1 to 80 letters, digits, spaces, or any of - _ . ( )", "name")
        out = self.folder / name
        if os.path.lexists(out) and any(out.iterdir() if out.is_dir() else [out]):
            raise RefusedRequest(409, f"there is a run {name!r} already; choose another name", "name")
        make_folder(self.folder)
        run = id_of(name)
        self.start(run, name, [*command, "--out", str(out)])
        return run

    def resume(self, run: str, folder: Path, options: Sequence[str]) -> None:
        if owner_of(folder) is not None:
            raise RefusedRequest(409, "the run is being worked on already")
        self.start(run, folder.name, ["resume", str(folder), *options])

    def start(self, run: str, name: str, arguments: Sequence[str]) -> None:
        """In a session of its own, so that neither the server's end nor a closed terminal stops it."""
        self.await_end(run)
        with self.lock:
            self._start(run, name, arguments)

    def _start(self, run: str, name: str, arguments: Sequence[str]) -> None:
        running = [file for file in (self.folder / HIDDEN).glob("*.json") if is_running(read_mapping(file))]
        if len(running) >= MAX_RUNNING:
            raise RefusedRequest(429, f"{MAX_RUNNING} trainings are running already; stop one first", retry_after=60)
        if self.noted(run) in running:
            raise RefusedRequest(409, "the run is being worked on already")
        write_whole(self.printed(run), "")
        with self.printed(run).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "calotype", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=os.name != "nt",
            )  # fmt: skip
        began = arguments[0] == "resume"
        before = self.about(run).get("command") if began else command_line(arguments)
        about = {"name": name, **({"command": before} if before else {}), "process": process.pid, "began": began}
        write_json(self.noted(run), about)
        self.processes[run] = process
        threading.Thread(target=self._await, args=(process, run), daemon=True).start()

    def cancel(self, started: StartedRun) -> None:
        """Ends the process that plans a run. Raises `RefusedRequest` where there is none.

        Of one that an earlier server has started, the number in the note is not trusted: its lock tells which it is.
        """
        if started.state != "planning":
            raise RefusedRequest(409, f"only a run that is being planned can be cancelled; this one is {started.state}")
        process = self.processes.get(started.id) or holder_of(self.folder / started.name)
        if process is None:
            raise RefusedRequest(409, "its process has only just begun, or has just ended; try again in a moment")
        write_json(self.noted(started.id), {**self.about(started.id), "cancelled": True})
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()  # not SIGINT, which a server in the background of a shell ignores, and so would it

    def forget(self, started: StartedRun) -> None:
        """Takes a run that never began off the list. Raises `RefusedRequest` while it is being planned."""
        if started.state == "planning":
            raise RefusedRequest(409, "its plan is being made; cancel it first")
        for file in (self.noted(started.id), self.printed(started.id)):
            remove(file)

    def stop(self, run: str, folder: Path) -> None:
        """Asks the process that holds the lock of a run to save and end. Raises `RefusedRequest` without one."""
        with self.lock:
            holder = holder_of(folder)
            if holder is None:
                raise RefusedRequest(409, "nothing works on this run, so there is nothing to stop")
            if self.is_stopping(run, holder.pid):
                return
            self.stopping[run] = holder.pid, time.monotonic()
            try:
                holder.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
            except psutil.NoSuchProcess:
                raise RefusedRequest(409, "its process has just ended") from None

    def is_stopping(self, run: str, owner: int | None) -> bool:
        """Whether the process that works on a run was asked to stop a moment ago."""
        process, asked = self.stopping.get(run, (None, 0.0))
        return owner is not None and process == owner and time.monotonic() < asked + STOP_SECONDS

    def await_end(self, run: str) -> None:
        """Of a process that has saved all and is about to end; a few seconds at most."""
        end = time.monotonic() + ENDING_SECONDS
        while is_running(self.about(run)) and time.monotonic() < end:
            time.sleep(0.1)

    def _await(self, process: subprocess.Popen[bytes], run: str) -> None:
        code = process.wait()
        if self.processes.get(run) is process:
            del self.processes[run]
        if (about := self.about(run)).get("process") == process.pid:
            began = about.get("began") or (self.folder / str(about.get("name")) / "run.json").exists()
            write_json(self.noted(run), {**about, "code": code, "began": began})

    def last_lines(self, run: str) -> list[str]:
        try:
            text = read_bytes(self.printed(run)).decode("utf-8", "replace")
        except UserError:
            return []
        return text[-LAST_BYTES:].splitlines()[-LAST_LINES:]

    def about(self, run: str) -> dict[str, Any]:
        """Name, command, process and, once it has ended, exit code; empty for a run that was not started here."""
        return read_mapping(self.noted(run))

    def started(self) -> list[StartedRun]:
        """Runs that have no `run.json` yet, or never got one; one that has lost it was moved or removed."""
        abouts = [(file.stem, read_mapping(file)) for file in sorted((self.folder / HIDDEN).glob("*.json"))]
        return [
            StartedRun(run, name, state_of_start(about))
            for run, about in abouts
            if isinstance(name := about.get("name"), str)
            and id_of(name) == run
            and not about.get("began")
            and not (self.folder / name / "run.json").exists()
        ]

    def started_run(self, run: str) -> StartedRun | None:
        return next((started for started in self.started() if started.id == run), None)


def is_run_name(name: str) -> bool:
    """Whether a run may have this name; letters of any script have their marks and joiners with them."""
    letters = (letter.isalnum() or letter in f"_ .()-{JOINERS}" or category(letter)[0] == "M" for letter in name)
    return 0 < len(name) <= LONGEST_NAME and all(letters) and name[:1] not in f" .()-{JOINERS}" and name[-1] not in " ."


def state_of_start(about: dict[str, Any]) -> str:
    """Of a run without a `run.json`."""
    if is_running(about):
        return "planning"
    return "cancelled" if about.get("cancelled") else "failed"


def is_running(about: dict[str, Any]) -> bool:
    """Whether the process still runs; one of an earlier server is looked at by its number and command."""
    if "code" in about or not isinstance(about.get("process"), int):
        return False
    try:
        process = psutil.Process(about["process"])
        return process.status() != psutil.STATUS_ZOMBIE and "calotype" in process.cmdline()
    except (psutil.Error, ValueError, OverflowError):
        return False


def training_command(pictures: Sequence[str]) -> list[str]:
    """That of the command line which trains on a folder, or without one on the embedded portraits."""
    return ["train", *pictures] if pictures else ["demo"]


def command_line(arguments: Sequence[str]) -> str:
    """As it can be pasted into a terminal."""
    return shlex.join(["calotype", *arguments])


# -- Why it stopped ----------------------------------------------------------------------------------------------------


def why_stopped(run: Run, about: dict[str, Any], lines: Sequence[str]) -> str:
    """In one sentence or two, with what to do; empty where it is running, or has finished and was not to go on."""
    status, code = run.state.status, about.get("code")
    if status == "unknown" or owner_of(run.folder) is not None:
        return ""
    if code in (-9, 137):
        return sentence_of(OUT_OF_MEMORY)
    reason = last_reason(lines)
    if code not in (None, 0, 130, 143) and reason:  # it could not go on
        return sentence_of(reason)
    spent = duration(sum(run.state.seconds.values()))
    reasons = {
        "finished": "",
        "interrupted": f"It was asked to stop after {spent}, and has saved what it had learned. "
        "Resume goes on from there.",
        "failed": sentence_of(reason or "an error ended it; calotype resume shows which"),
        "training": f"Its process ended after {spent} without a word, as when it is killed, the machine is switched "
        "off, or memory runs out. Resume goes on from the newest checkpoint.",
    }
    return reasons[status]


def last_reason(lines: Sequence[str]) -> str:
    """The last line by which the command line ends with an error; empty where there is none."""
    return next((line for line in reversed(lines) if line.startswith("calotype: ")), "").removeprefix("calotype: ")


def why_not_started(about: dict[str, Any], lines: Sequence[str]) -> str:
    """Of a run that has no folder yet; empty while it is being planned."""
    if is_running(about):
        return ""
    if about.get("cancelled"):
        return sentence_of(CANCELLED)
    if about.get("code") in (-9, 137):
        return sentence_of(OUT_OF_MEMORY)
    return sentence_of(last_reason(lines) or "it ended before the plan was made; see what it has printed")
