"""Checkpoints: folders of safetensors and JSON with a manifest, written whole or not at all. Never a pickle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from safetensors.torch import load_file
from torch import Tensor

from calotype.files import is_whole, read_json, whole_folder, write_json, write_tensors
from calotype.learning.train import Clock

KEPT = 2
"""Checkpoints of a leg that stay: the newest, and the one before in case the newest is damaged."""


@runtime_checkable
class Saved(Protocol):
    """What a checkpoint holds a file of: a player, or the guard of one."""

    steps: int

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None: ...


def save(folder: Path, leg: str, players: Mapping[str, Saved], clock: Clock) -> None:
    """Writes `folder/leg-<images seen>`, then removes older ones of the same leg, and what a killed process left.

    Those with a higher number were damaged, or the run would have gone on from them.
    """
    saved = folder / f"{leg}-{clock.images_seen:010d}"
    with whole_folder(saved) as path:
        for name, player in players.items():
            write_tensors(path / f"{name}.safetensors", player.tensors())
        steps = {name: player.steps for name, player in players.items()}
        write_json(path / "state.json", {"clock": clock.state(), "steps": steps})
    kept = [path for path in checkpoints(folder, leg) if path <= saved][-KEPT:]
    for old in {*checkpoints(folder, leg), *folder.glob(f".{leg}-*")} - {*kept}:
        shutil.rmtree(old)


def restore(folder: Path, leg: str, players: Mapping[str, Saved], clock: Clock) -> Path | None:
    """Brings players and clock to the newest whole checkpoint of the leg, and returns it; None if there is none.

    A guard that a checkpoint of an earlier version does not know begins anew.
    """
    path = next((path for path in reversed(checkpoints(folder, leg)) if is_whole(path)), None)
    if path is None:
        return None
    state = read_json(path / "state.json")
    for name in [one for one in players if one in state["steps"]]:
        players[name].restore(load_file(path / f"{name}.safetensors"), state["steps"][name])
    clock.restore(state["clock"])
    return path


def checkpoints(folder: Path, leg: str) -> list[Path]:
    return sorted(folder.glob(f"{leg}-" + "[0-9]" * 10))
