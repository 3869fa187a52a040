"""A run: its folder, its state (`run.json`) and its log (`log.jsonl`), as training writes and all others read them."""

from __future__ import annotations

import bisect
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from calotype.data.folder import Pictures
from calotype.files import checked, read_json, require_regular, write_json
from calotype.tables import number
from calotype.thinning import Thinning
from calotype.types import UserError

STATE_VERSION = 2
"""Version of `run.json`. Files of version 1 have no `version`, and other names for some keys: see `RENAMED_KEYS`."""
RENAMED_KEYS = {"state": "status", "looks": "validation", "space": "imported_weights"}
"""Keys of version 1 by their names now."""
EXPOSURE = re.compile(r'"mistakes-(\d+)"')
"""The leg of exposure fine-tuning in version 1: in `run.json`, `plan.json` and the log."""
PORTRAITS = "portraits"
"""`RunState.data` of a run that trains on the embedded portraits."""
BEFORE_FOLDER = "before"
"""In the folder of a run that has gone on after it was finished: its earlier parts, each by its number."""
MAX_LINE = 2**20
"""Bytes of a line of the log."""
Event = dict[str, Any]


def _rising(span: tuple[float, float]) -> tuple[float, float]:
    if not span[0] < span[1]:
        raise ValueError(f"black is {span[0]:g} and white {span[1]:g}, but black must be less")
    return span


Span = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)]
Status = Literal["unknown", "training", "interrupted", "failed", "finished"]
LegStatus = Literal["waiting", "training", "finished"]


class Stored(BaseModel):
    """Base of the parts of `run.json`. Unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)


class Losses(Stored):
    """Losses of a leg's averaged weights, on validation pictures and on as many training pictures."""

    images_seen: int
    held_out_loss: float
    train_loss: float


class Validation(Stored):
    """The losses by which early stopping decides."""

    best: Losses | None = None
    last: Losses | None = None


class Inspection(Stored):
    """The verdict on an autoencoder, before a denoiser is trained on its latents."""

    verdict: str
    score: float
    advice: str = ""
    """Empty where it is fit to diffuse on."""
    forced: bool = False
    """Whether the user continued with `--force`."""


class LevelSearch(Stored):
    """A search for the augmentation level of a stage that enlarges, or for a guidance scale."""

    best: float
    epsilon_scaling: float | None = None
    """With that guidance scale; None for augmentation levels, and where an earlier version has searched."""
    tried: list[tuple[float, float]] = []
    """Levels, each with its distance from real pictures."""
    standard_errors: list[float] = []
    """Standard errors of the differences from the smallest distance."""


class SplitRecord(Stored):
    """How the pictures were split: the version of the rule, and its fractions."""

    version: int
    validation: float
    test: float


class Origin(Stored):
    """The finished run from whose networks a run has started."""

    run: str
    """Its name."""
    folder: str
    model: str
    """Hash of the manifest of its model."""
    seconds: float = 0.0
    """Time that it has taken, with that of the runs it has started from."""
    seen: bool = True
    """Whether it is known which pictures it has seen."""
    before: Origin | None = None
    """What that run has started from."""


class RunState(Stored):
    """What a run needs to be resumed, and what it has cost: seconds, operations and parameters by leg or step."""

    version: int = STATE_VERSION
    name: str = ""
    created: str = ""
    """ISO 8601, UTC."""
    data: str = PORTRAITS
    """The folder of the pictures, or "portraits"."""
    content: str = ""
    """Hash of the pictures and how they were prepared."""
    uncaptioned: str | None = None
    """The same without captions, where none are read: they may then change."""
    labels: str | None = None
    """Hash of the pictures' labels; None where an earlier version has written the state."""
    imported_weights: str | None = None
    """Hash of the file of an imported autoencoder."""
    pictures: dict[str, int] = Field(default_factory=dict)
    """How many are in each set."""
    split: SplitRecord | None = None
    classes: list[str] = Field(default_factory=list)
    black_and_white: dict[str, Span] = Field(default_factory=dict)
    """Of grey pictures with more than 8 bits, by the kind of number: all that it is given are read with them."""
    status: Status = "unknown"
    legs: dict[str, LegStatus] = Field(default_factory=dict)
    """Status by leg, in the order of their training."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Over all sessions of the run."""
    wall_seconds: float = 0.0
    operations: dict[str, int] = Field(default_factory=dict)
    """Floating-point operations of what is fitted in closed form."""
    parameters: dict[str, int] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    threads: Annotated[int, Field(gt=0, le=4096)] | None = None
    job: str = ""
    """That of torchrun in which the part began, where `resume --budget` has begun it: see `ranks.current_job`."""
    ranks: Annotated[int, Field(gt=0, le=2**20)] = 1
    """Processes that train it together; `threads` are those of each."""
    validation: dict[str, Validation] = Field(default_factory=dict)
    overfitted: dict[str, str] = Field(default_factory=dict)
    """By leg, a sentence that says what was done about it."""
    inspection: Inspection | None = None
    guidance: LevelSearch | None = None
    levels: dict[str, LevelSearch] = Field(default_factory=dict)
    """Searches by the size of the stage."""
    settings: dict[str, Any] | None = None
    """The recipe with which the run goes on; None where an earlier version has written the state."""
    constants: dict[str, str] = Field(default_factory=dict)
    """Hash of the manifest of each leg's closed forms."""
    outdated: list[str] = Field(default_factory=list)
    """Legs whose closed forms are of other pictures than those of the run now: they have no cross-fitted ones."""
    origin: Origin | None = None
    """What it has started from; None for a run from nothing."""
    part: int = 1
    """Grows by 1 each time that it goes on after it was finished; then its origin is the part before."""

    def is_of(self, pictures: Pictures) -> bool:
        """Whether these are the pictures of the run, as far as captions are read with their captions."""
        return self.content == pictures.content or self.uncaptioned == pictures.uncaptioned != ""


def renamed_legs(text: str) -> str:
    """JSON with today's names of legs."""
    return EXPOSURE.sub(r'"exposure-\1"', text)


def read_state(file: Path) -> RunState:
    """Raises `UserError` where the file is missing, damaged, or of a later version."""
    stored = read_json(file, renamed_legs)
    if isinstance(stored, dict) and "version" not in stored:  # version 1
        stored = {RENAMED_KEYS.get(key, key): value for key, value in stored.items() if key != "format"}
    if isinstance(stored, dict) and isinstance(later := stored.get("version"), int) and later > STATE_VERSION:
        raise UserError(f"{file} is of version {later}, but at most {STATE_VERSION} is known; update calotype")
    return checked(stored, RunState, file)


@dataclass
class Run:
    """The folder of a run, with what its files say."""

    folder: Path
    state: RunState = field(default_factory=RunState)
    began: float | None = None
    """Since when, by the monotonic clock, `wall_seconds` goes on; None for who only reads: see `begin`."""
    held: Callable[[], bool] = lambda: True
    """Whether this process still has the lock of the folder."""
    writes: bool = True
    """False on ranks that are not the first: they save and log nothing."""
    listener: Callable[[Event], None] | None = None
    """Gets what is logged."""

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Raises `UserError` where the folder is not that of a run, or its `run.json` is damaged."""
        if not os.path.lexists(folder / "run.json"):
            raise UserError(
                f"{folder} is not a run: it has no run.json; expected a folder that `calotype train` has written"
            )
        return cls(folder, read_state(folder / "run.json"))

    @property
    def name(self) -> str:
        return self.state.name or self.folder.resolve().name

    # -- Writing -------------------------------------------------------------------------------------------------------

    def begin(self, started: float, held: Callable[[], bool]) -> None:
        """From now on this process works on the run, for as long as its lock is `held`; its time counts from `started`
        on."""
        self.began, self.held = started, held

    def require_lock(self) -> None:
        """Raises `UserError` where this process lost the folder; another may have begun in a new one of its name."""
        if not self.held():
            raise UserError(lost(self.folder))

    def save(self) -> None:
        """Writes `run.json`. Raises `UserError` as `require_lock`."""
        if not self.writes:
            return
        self.require_lock()
        if self.began is not None:
            began, self.began = self.began, time.monotonic()
            self.state.wall_seconds += self.began - began
        write_json(self.folder / "run.json", self.state.model_dump(exclude_none=True))

    def log(self, event: str, **fields: Any) -> None:
        """Appends a line; what a process that was killed had begun to write stays on a line of its own.

        Raises `UserError` as `require_lock` and `require_in_place`.
        """
        if not self.writes:
            return
        self.require_lock()
        require_in_place(path := self.folder / "log.jsonl")
        with path.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps({"event": event, **fields}).encode() + b"\n")
        if self.listener is not None:
            self.listener({"event": event, **fields})

    def spend(self, step: str, seconds: float) -> None:
        """Adds to the time that a step took, over all sessions."""
        self.state.seconds[step] = self.state.seconds.get(step, 0.0) + seconds
        self.save()

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(step, time.perf_counter() - start)

    # -- Reading -------------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> dict[str, Any]:
        """`plan.json`; empty where it is missing or damaged."""
        return read_mapping(self.folder / "plan.json")

    @cached_property
    def events(self) -> list[Event]:
        """The log, read once."""
        return read_events(self.folder / "log.jsonl")

    @cached_property
    def events_of_part(self) -> list[Event]:
        """Those since a finished run last went on; the log has all."""
        starts = [place for place, event in enumerate(self.events) if event.get("event") == "part"]
        return self.events[starts[-1] :] if starts else self.events

    def history(self, kind: str, leg: str) -> list[Event]:
        """Events of a leg by images seen, without those that a resumed run went back behind and did again."""
        kept: list[Event] = []
        for event in self.events_of_part:
            seen = number(event.get("images_seen"))
            if event.get("event") == kind and event.get("leg") == leg and seen is not None:
                del kept[bisect.bisect_left(kept, seen, key=lambda old: float(old["images_seen"])) :]
                kept.append(event)
        return kept

    def latest(self, kind: str, leg: str) -> Event:
        """The last event of `history`; empty where there is none."""
        return next(reversed(self.history(kind, leg)), {})


def require_in_place(path: Path) -> None:
    """Raises `UserError` for a link or a pipe, as may be in a run from a stranger: what is appended there would reach a
    file anywhere, or wait for ever."""
    if path.is_symlink() or path.is_fifo():
        kind = "link" if path.is_symlink() else "pipe"
        raise UserError(f"{path} is a {kind}, expected a regular file, or none; remove it")


def lost(folder: Path) -> str:
    """What to say where the folder of a run has gone while it was worked on."""
    return (
        f"{folder}, or its lock, was removed, moved or replaced while this process worked on it, so it has stopped; "
        f"if the folder is elsewhere now, go on with: calotype resume FOLDER"
    )


def read_mapping(file: Path) -> dict[str, Any]:
    """The table in a JSON file; empty where the file is missing or damaged."""
    try:
        stored = read_json(file, renamed_legs)
    except UserError:
        return {}
    return stored if isinstance(stored, dict) else {}


def read_events(file: Path) -> list[Event]:
    """Those of a log, read in one pass; of many steps a leg, the means of neighbours: see `Thinning`.

    Lines that are damaged are left out, as the last one is where a process was killed.
    """
    kept: list[tuple[int, Event]] = []
    thinned: dict[str, Thinning] = {}
    for place, line in enumerate(_lines(file)):
        with suppress(ValueError, RecursionError):
            event = json.loads(renamed_legs(line.decode("utf-8", "replace")))
            if not event or not isinstance(event, dict):
                continue
            if event.get("event") == "step" and isinstance(leg := event.get("leg"), str):
                thinned.setdefault(leg, Thinning()).add(place, event)
                continue
            if event.get("event") == "part":  # what follows is another run of the same legs
                kept += [pair for each in thinned.values() for pair in each.events()]
                thinned.clear()
            kept.append((place, event))
    kept += [pair for each in thinned.values() for pair in each.events()]
    return [event for _, event in sorted(kept, key=lambda pair: pair[0])]


def _lines(file: Path) -> Iterator[bytes]:
    """None where there is no regular file; what is longer than a line may be comes in pieces, which are no JSON."""
    with suppress(OSError, UserError):
        require_regular(file)
        with file.open("rb") as log:
            yield from iter(lambda: log.readline(MAX_LINE), b"")
