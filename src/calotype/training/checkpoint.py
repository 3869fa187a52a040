"""Checkpoints: folders of safetensors and JSON with a manifest, written whole or not at all. Never a pickle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from safetensors.torch import load_file
from torch import Tensor

from calotype.files import damage, is_whole, read_json, whole_folder, write_json, write_tensors
from calotype.training.loop import TrainProgress
from calotype.types import UserError

KEPT = 2
"""Checkpoints of a leg that stay: the newest, and the one before in case the newest is damaged."""


@runtime_checkable
class Saved(Protocol):
    """What a checkpoint holds a file of: a player, or the guard of one."""

    steps: int

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None: ...


def save(folder: Path, leg: str, players: Mapping[str, Saved], clock: TrainProgress) -> None:
    """Writes `folder/leg-<images seen>`, then removes what it makes needless: see `_needless`."""
    saved = folder / f"{leg}-{clock.images_seen:010d}"
    with whole_folder(saved) as path:
        for name, player in players.items():
            write_tensors(path / f"{name}.safetensors", player.tensors())
        steps = {name: player.steps for name, player in players.items()}
        write_json(path / "state.json", {"clock": clock.state(), "steps": steps})
    for old in (*_needless(folder, leg, saved), *folder.glob(f".{leg}-*.tmp")):
        shutil.rmtree(old, ignore_errors=True)


def _needless(folder: Path, leg: str, saved: Path) -> list[Path]:
    """Checkpoints before `saved`, damaged or whole, but for the newest whole ones.

    One of more images stays until it is overtaken: it was damaged when the leg was restored, and may be rescued.
    """
    before = [path for path in checkpoints(folder, leg) if images_seen(path) < images_seen(saved)]
    kept = [path for path in reversed(before) if is_whole(path)][: KEPT - 1]
    return [path for path in before if path not in kept]


def restore(
    folder: Path,
    leg: str,
    players: Mapping[str, Saved],
    clock: TrainProgress,
    warn: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Brings players and clock to the newest whole checkpoint of the leg, and returns it; None if there is none at all.

    `warn` gets a line for each newer one that is damaged. Raises `UserError`, and changes nothing, if all are damaged.
    A guard that a checkpoint of an earlier version does not know begins anew.
    """
    damaged = []
    for path in reversed(checkpoints(folder, leg)):
        if wrong := damage(path):
            damaged.append(f"{path.name} is damaged ({wrong})")
            continue
        for problem in damaged:
            warn(f"checkpoint {problem}; using {path.name} instead")
        _load(path, players, clock)
        return path
    if damaged:
        raise UserError(
            f"no checkpoint of the {leg} in {folder} is whole: {'; '.join(damaged)}; nothing was deleted: put a copy "
            f"back, or move these folders away to train the {leg} from its start"
        )
    return None


def rename_legs(folder: Path) -> None:
    """Gives the checkpoints of exposure fine-tuning in runs of version 0.1 the name of that leg."""
    for path in folder.glob("mistakes-*"):
        path.rename(path.with_name(path.name.replace("mistakes", "exposure", 1)))


def _load(path: Path, players: Mapping[str, Saved], clock: TrainProgress) -> None:
    state = read_json(path / "state.json")
    for name in [one for one in players if one in state["steps"]]:
        players[name].restore(load_file(path / f"{name}.safetensors"), state["steps"][name])
    clock.restore(state["clock"])


def checkpoints(folder: Path, leg: str) -> list[Path]:
    """Whole and damaged ones, in the order of their number of images."""
    name = re.compile(re.escape(leg) + r"-\d{10,}")
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if name.fullmatch(path.name) and path.is_dir()), key=images_seen)


def images_seen(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
