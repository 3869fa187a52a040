"""A run that starts from a finished one: what that was, what it has seen, and a copy of its model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.cli.commands.reading import read_as_run
from calotype.cli.console import Console
from calotype.data.images import shown
from calotype.data.remote import NotReachedError
from calotype.data.seen import OWN_FILE, Seen, read_seen, seen_by
from calotype.files import damage, inside, read_json, read_manifest, sha256, whole_folder, write_json
from calotype.machine import find_device
from calotype.nets.frozen import FolderConfig
from calotype.planning import Plan
from calotype.run import Origin, Run
from calotype.training.warm_start import START_FOLDER, WarmStart, read_start
from calotype.types import UserError


@dataclass(frozen=True)
class Source:
    """The finished run that another starts from."""

    run: Run
    start: WarmStart
    seen: Seen | None
    """Pictures that it, and the runs before it, have seen; None where none of that is known."""
    origin: Origin

    @property
    def notes(self) -> list[str]:
        if self.origin.seen:
            return []
        return [
            f"the pictures of {shown(self.run.name)} cannot be read or have changed, so some that it was trained on "
            f"may be held out here"
        ]


def open_source(folder: Path, device: str, console: Console) -> Source:
    """Raises `UserError` for a folder that is no run, or has no whole model, and as `seen_by_run` does."""
    source = source_of(Run.open(folder), device)
    own, earlier = seen_by_run(source.run, source.start.recipe.size, console), read_seen(folder)
    if own is None:
        return replace(source, seen=earlier, origin=source.origin.model_copy(update={"seen": False}))
    return replace(source, seen=own.and_of(earlier))


def seen_by_run(run: Run, size: int, console: Console) -> Seen | None:
    """The pictures of a run as it has recorded them; of a run of an earlier version, which has not, as they are now.

    None where such pictures are gone, or have changed. Raises `UserError` where they are at an address that cannot be
    read now: later it can, and then none of them is held out.
    """
    if (recorded := read_seen(run.folder, OWN_FILE)) is not None:
        return recorded
    try:
        pictures = read_as_run(run, None, size, run.folder / "cache", console)
    except NotReachedError as error:
        raise UserError(
            f"the pictures of {shown(run.name)} must be read, so that none that it was trained on is held out here; "
            f"{error}, or leave --from out"
        ) from None
    except UserError:
        return None
    return seen_by(pictures) if run.state.is_of(pictures) else None


def source_of(run: Run, device: str) -> Source:
    """As `open_source`, but `seen` is None: the pictures are not read."""
    model, before = run.folder / "model", run.state.origin
    start = read_start(run.folder, run.name, find_device(device))
    origin = Origin(
        run=run.name,
        folder=str(run.folder.resolve()),
        model=sha256(model / "manifest.json"),
        seconds=run.state.wall_seconds + (before.seconds if before else 0.0),
        seen=before is None or before.seen,
        before=before,
    )
    return Source(run, start, None, origin)


def require_fitting(source: Source, settings: dict[str, Any]) -> None:
    """Raises `UserError` where another kind of model, or another size, is wanted."""
    for name, own in (("kind", source.start.recipe.kind), ("size", source.start.recipe.size)):
        if (wanted := settings.get(name, own)) != own:
            raise UserError(
                f"{name} is {wanted}, but {source.run.folder}, from which this run is to start, has {own}; leave it "
                f"out, or leave --from out to start from scratch"
            )


def copy_start(source: Source, folder: Path) -> None:
    """Copies the model of a run into the folder of the run that starts from it, whole or not at all.

    Raises `UserError` where a copy is not what the manifest of the model says, as where that is written over meanwhile.
    """
    model, text = source.run.folder / "model", source.start.recipe.denoiser.text
    with whole_folder(folder / START_FOLDER) as path:
        for name in (*read_manifest(model), "manifest.json"):
            shutil.copyfile(inside(model, name), path / name)
        other = "it is another" if sha256(path / "manifest.json") != source.origin.model else ""
        if wrong := other or damage(path):
            raise UserError(f"the model in {model} has changed while it was read and copied ({wrong}); start again")
        (path / "manifest.json").unlink()  # that of the copy is written last
        if isinstance(text, FolderConfig):  # the text encoder stays where it is
            about = read_json(path / "model.json")
            about["recipe"]["denoiser"]["text"]["path"] = str(Path(text.path).resolve())
            write_json(path / "model.json", about)


def check_disk(folder: Path, plan: Plan) -> None:
    """Raises `UserError` before hours of training rather than after."""
    needed, free = plan.predicted["disk_bytes"], shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the run needs about {needed / 1e6:,.0f} MB in {folder}, but {free / 1e6:,.0f} MB are free; "
            f"free some space, or choose another place with --out"
        )
