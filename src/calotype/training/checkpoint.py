"""Checkpoints: folders of safetensors and JSON with a manifest, written whole or not at all. Never a pickle."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor

from calotype.bounds import BatchSize, ImageCount, SeedNumber
from calotype.files import damage, is_whole, listed, make_folder, read_as, whole_folder, write_json, write_tensors
from calotype.places import DISK_FULL
from calotype.ranks import ALONE, Ranks
from calotype.training.loop import Note, TrainProgress, doublings
from calotype.training.pieces import PIECES, layout_of, piece_of, read_pieces, write_pieces
from calotype.types import Config, UserError

SPARE = 1.2
"""Free space that a checkpoint needs, by its size: the log, the previews and run.json need some, too."""
KEPT_CHECKPOINTS = 2
"""Checkpoints of a leg that stay: the newest, and the one before in case the newest is damaged."""


@runtime_checkable
class Saved(Protocol):
    """State with a file of its own in a checkpoint: a train state, or a critic guard."""

    steps: int

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None: ...


def save(
    folder: Path, leg: str, states: Mapping[str, Saved], progress: TrainProgress, ranks: Ranks = ALONE,
    milestones: int = 0, note: Note = lambda text: None,
) -> None:  # fmt: skip
    """Writes `folder/leg-<images seen>`, then removes what it supersedes: see `_superseded`, which tells `note`.

    Of several ranks all call it: each writes its pieces of sharded states, the first all else. Raises `UserError` where
    the disk has too little space for it, which is mostly seen before anything is written; nothing is removed then.
    """
    saved = folder / f"{leg}-{progress.images_seen:010d}"
    tensors = {name: state.tensors() for name, state in states.items()}
    sharded = {name: own for name, own in tensors.items() if piece_of(own.values()).count > 1}
    if ranks.first:
        make_folder(folder)
    with _enough_space(folder, leg, tensors, milestones, ranks), _written_together(saved, ranks) as path:
        for name, own in sharded.items():
            write_pieces(path, name, own)
        if ranks.first:
            for name in tensors.keys() - sharded.keys():
                write_tensors(path / f"{name}.safetensors", tensors[name])
            if sharded:
                write_json(path / PIECES, {name: layout_of(name, own) for name, own in sharded.items()})
            steps = {name: state.steps for name, state in states.items()}
            write_json(path / "state.json", {"clock": progress.state(), "steps": steps})
    if ranks.first:
        for old in (*_superseded(folder, leg, saved, milestones, note), *folder.glob(f".{leg}-*.tmp")):
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _written_together(path: Path, ranks: Ranks) -> Iterator[Path]:
    """As `whole_folder`, for all ranks: it takes its name once all have written, and none goes on before it has."""
    with whole_folder(path) if ranks.first else nullcontext(path) as temporary:
        yield Path(ranks.say(lambda: str(temporary)))
        ranks.meet()
    ranks.say(lambda: None)


@contextmanager
def _enough_space(
    folder: Path, leg: str, tensors: Mapping[str, Mapping[str, Tensor]], milestones: int, ranks: Ranks
) -> Iterator[None]:  # fmt: skip
    """Raises `UserError` where the disk has too little space, or fills up meanwhile; it names what could be removed."""
    needed = SPARE * sum(value.nbytes for state in tensors.values() for value in state.values())

    def full() -> UserError:
        free = shutil.disk_usage(folder).free
        missing = needed - free if needed > free else needed  # of a user's share of a disk the free space says nothing
        older = checkpoints(folder, leg)[:-KEPT_CHECKPOINTS]
        oldest = next(iter(milestones_among(older, milestones)), None)
        removable = f", for instance by removing the oldest milestone, {oldest}" if oldest else ""
        return UserError(
            f"the next checkpoint of the {leg} takes {needed / SPARE / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are "
            f"free in {folder}; those before are sound: free at least {missing / 1e6:,.1f} MB more"
            f"{removable}, then go on with: calotype resume {folder.parent}"
        )

    if ranks.first and shutil.disk_usage(folder).free < needed:
        raise full()
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise full() from None


def _superseded(folder: Path, leg: str, saved: Path, milestones: int, note: Note) -> list[Path]:
    """Checkpoints before `saved`, damaged or whole, but for the newest whole ones and milestones.

    One of more images stays until it is overtaken: it was damaged when the leg was restored, and may be rescued.
    """
    before = [path for path in checkpoints(folder, leg) if _images_of(path) < _images_of(saved)]
    newest = islice(filter(_is_known_whole, reversed(before)), KEPT_CHECKPOINTS - 1)  # no others are read
    kept = [*newest, *milestones_among(before, milestones, note)]
    return [path for path in before if path not in kept]


def milestones_among(paths: Sequence[Path], first: int, note: Note = lambda text: None) -> list[Path]:
    """Of checkpoints by images seen, the first whole one at or after each of `first`, twice as many, and so on; none
    for 0.

    One that has no other in its place stays, damaged or whole, and is not read. `note` gets a line for each damaged one
    in whose place another is kept.
    """
    reached: dict[int, list[Path]] = {}
    for path in paths:
        if rung := doublings(first, _images_of(path)):
            reached.setdefault(rung, []).append(path)
    return [_first_whole(same, note) if len(same) > 1 else same[0] for same in reached.values()]


def _first_whole(paths: Sequence[Path], note: Note) -> Path:
    """The first where all are damaged: it may be rescued."""
    damaged: list[Path] = []
    for path in paths:
        if _is_known_whole(path):
            for other in damaged:
                note(f"milestone {other.name} is damaged ({damage(other)}); {path.name} is kept in its place")
            return path
        damaged.append(path)
    return paths[0]


def _is_known_whole(path: Path) -> bool:
    """As `is_whole`, but files that have been read, and have not changed since, are not read again."""
    try:
        found = [(file.name, file.lstat()) for file in sorted(path.iterdir())]
    except OSError:  # it is being removed
        return False
    return _is_whole_still(path, tuple((name, its.st_size, its.st_mtime_ns, its.st_ctime_ns) for name, its in found))


@lru_cache(256)
def _is_whole_still(path: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> bool:
    return is_whole(path)


def restore(
    folder: Path, leg: str, states: Mapping[str, Saved], progress: TrainProgress, warn: Note = lambda text: None
) -> Path | None:
    """Brings train states and progress to the leg's newest whole checkpoint, and returns it; None if there is none.

    `warn` gets a line for each newer one that is damaged, and for each older one that has not all its files. Raises
    `UserError`, and changes nothing, if all are damaged.
    A guard that a checkpoint of an earlier version does not hold starts without a past.
    """
    damaged, paths = [], checkpoints(folder, leg)
    for path in reversed(paths):
        try:
            if wrong := damage(path):
                raise UserError(wrong)
            load_checkpoint(path, states, progress)
        except UserError as error:
            damaged.append(f"{path.name} is damaged ({str(error).removeprefix(f'{path}{os.sep}')})")
            continue
        for problem in damaged:
            warn(f"checkpoint {problem}; using {path.name} instead")
        for older in paths[: paths.index(path)]:
            if wrong := damage(older, read=False):
                warn(f"checkpoint {older.name} is damaged ({wrong}); to keep what it was, put a copy back")
        return path
    if damaged:
        raise UserError(
            f"no checkpoint of the {leg} in {folder} is whole: {'; '.join(damaged)}; nothing was deleted: put a copy "
            f"back, or move these folders away to train the {leg} from its start"
        )
    return None


class SavedProgress(Config):
    """See `TrainProgress`."""

    total: ImageCount
    batch: BatchSize
    seed: SeedNumber
    images_seen: ImageCount
    seconds: float = Field(ge=0)


class SavedState(Config):
    """`state.json`: progress, and the steps of each state."""

    clock: SavedProgress
    steps: dict[str, Annotated[int, Field(ge=0)]]


def load_checkpoint(path: Path, states: Mapping[str, Saved], progress: TrainProgress) -> None:
    """Brings train states and progress to a checkpoint that is whole; of sharded states each rank reads its pieces."""
    stored: SavedState = read_as(listed(path, "state.json"), SavedState)
    if missing := sorted(states.keys() - stored.steps.keys() - {"critic-guard"}):  # which earlier versions did not have
        raise UserError(f"state.json says nothing of the {' and the '.join(missing)}")
    for name in [name for name in states if name in stored.steps]:
        file, state = path / f"{name}.safetensors", states[name]
        try:
            state.restore(read_pieces(path, name, piece_of(state.tensors().values())), stored.steps[name])
        except UserError as error:
            raise UserError(f"{file.name}: {str(error).removeprefix(f'{file} ')}") from None
    progress.restore(stored.clock.model_dump())


def rename_legs(folder: Path) -> None:
    """Gives the checkpoints of exposure fine-tuning in runs of version 0.1 the name of that leg."""
    for path in folder.glob("*mistakes-*"):
        path.rename(path.with_name(path.name.replace("mistakes", "exposure", 1)))


def checkpoints(folder: Path, leg: str) -> list[Path]:
    """Checkpoints of a leg, whole and damaged, by images seen."""
    name = re.compile(re.escape(leg) + r"-\d{10,}")
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if name.fullmatch(path.name) and path.is_dir()), key=_images_of)


def _images_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
