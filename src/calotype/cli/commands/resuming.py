"""What has changed since a run was started: its pictures, settings and machine; named, and refused where it matters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from calotype.cli.commands.reading import read_of_run
from calotype.cli.console import Console
from calotype.data.folder import Pictures
from calotype.data.images import shown
from calotype.data.listing import plural
from calotype.data.remote import absolute, may_exist
from calotype.data.seen import continued_split, own_becomes_seen
from calotype.data.split import SPLIT_FILE, is_split_of, write_split
from calotype.files import remove
from calotype.machine import Machine, cores
from calotype.recipe import Recipe, exposure_above, leg_above
from calotype.run import PORTRAITS, Run, read_mapping
from calotype.tables import differences, number
from calotype.training.checkpoint import checkpoints
from calotype.types import UserError

HARMLESS = re.compile(
    r"precision|sharding|milestones|(enlarge\.\d+\.)?sampling\..+|.+\.(critic_)?learn\.(?!optimizer$).+"
)
"""Settings by which what was trained before stays of use: how to sample, and how to go on learning; the moments of one
optimizer are of no use to another."""
LEG_OF = (
    (re.compile(r"(autoencoder|denoiser)\..+"), lambda name: name),
    (re.compile(r"enlarge\.(\d+)\.exposure\..+"), lambda size: exposure_above(int(size))),
    (re.compile(r"enlarge\.(\d+)\..+"), lambda size: leg_above(int(size))),
)
"""The leg that a setting is of; any other setting is of all legs."""


# -- Pictures ----------------------------------------------------------------------------------------------------------


def read_again(run: Run, recipe: Recipe, data: Path | None, console: Console) -> Pictures:
    """The pictures of a run, from `data` if they have moved, or are to be others from now on.

    Raises `UserError` where they are gone, have changed without being asked for by `data`, or have other classes.
    """
    folder, state = run.folder, run.state
    if recipe.denoiser.text.kind != "none":
        state.uncaptioned = None
    source = place_of_pictures(run, data)
    pictures = read_of_run(run, source, recipe.size, folder / "cache", console)
    if same := is_same(run, pictures):
        change = "the change of its pictures was cut short, and is finished now"
    else:
        change = f"{change_of(run, pictures)} since {folder} was started"
        if data is None:
            raise UserError(
                f"the pictures in {shown(source or PORTRAITS)} have changed: {change}; put them back, or go on with "
                f"them as they are: calotype resume {folder} --data {shown(source or 'FOLDER')}"
            )
        if list(pictures.classes) != state.classes:
            raise UserError(
                f"--data {shown(data)} has the classes {', '.join(pictures.classes) or 'none'}, but {folder} was "
                f"started with {', '.join(state.classes) or 'none'}; give a folder with these, or start a new run"
            )
    if data is not None:
        if (moved := absolute(data)) != state.data:
            announce(run, console, f"the pictures are in {shown(data)} now, and were in {shown(state.data)}")
        state.data = moved
    if not same or not is_split_of(folder, (pictures.content, pictures.uncaptioned), len(pictures)):
        pictures = change_pictures(run, recipe, pictures, change, console)
    elif data is not None:
        run.save()
    return pictures


def change_pictures(run: Run, recipe: Recipe, pictures: Pictures, change: str, console: Console) -> Pictures:
    """Makes these the pictures of a run, each in the set in which it was before; new ones are split.

    `run.json` is written before `split.json`, so that a process that is killed in between is noticed: the split is then
    of other content. What was chosen or fitted by the pictures before is forgotten where no checkpoint needs it.
    Closed forms that are needed are no longer cross-fitted: halves of those pictures are not halves of these.
    """
    folder, state, seen = run.folder, run.state, own_becomes_seen(run.folder)
    pictures = pictures.split_by(continued_split(seen, recipe.split))
    unknown = ["the new sets may hold out pictures that were trained on before"] if seen is None else []
    announce(run, console, "; ".join([change, *pictures.split.notes, *unknown]))
    state.outdated = [leg for leg in state.constants if state.legs.get(leg) == "finished"]
    for leg in [leg for leg in state.constants if leg not in state.outdated]:
        if state.part > 1 or checkpoints(folder / "checkpoints", leg):  # in a later part networks go on from the first
            state.outdated.append(leg)
            stays = "its closed form stays that of the earlier pictures, with which it was trained"
            announce(run, console, f"{leg}: {stays}; it is no longer cross-fitted")
        else:
            del state.constants[leg]
            remove(folder / "constants" / leg)
    state.validation = {leg: its for leg, its in state.validation.items() if state.legs.get(leg) == "finished"}
    state.black_and_white = dict(pictures.levels)
    state.content, state.labels, state.pictures = pictures.content, labels_hash(pictures), pictures.split.counts
    state.uncaptioned = uncaptioned(pictures, recipe)
    run.save()
    write_split(folder, pictures.split, state.uncaptioned or state.content)
    return pictures


def read_unchanged(run: Run, recipe: Recipe, data: Path | None, console: Console) -> Pictures:
    """The pictures of a run, from `data` if they have moved.

    Raises `UserError` where they are others: the pictures for validation and for the test must stay what they are.
    """
    folder, state = run.folder, run.state
    source = place_of_pictures(run, data)
    pictures = read_of_run(run, source, recipe.size, folder / "cache", console)
    if not is_same(run, pictures):
        raise UserError(
            f"the pictures in {shown(source or PORTRAITS)} are not those of {folder}: {change_of(run, pictures)}; put "
            f"them back, or start a new run with: calotype train {shown(source or 'FOLDER')} --from {folder}"
        )
    if data is not None:
        state.data = absolute(data)
    return pictures


def place_of_pictures(run: Run, data: Path | None) -> Path | None:
    """Where the pictures of a run are: in `data`, or where they were; None for the portraits. Raises `UserError`."""
    source = data if data is not None else None if run.state.data == PORTRAITS else Path(run.state.data)
    if source is None or may_exist(source):
        return source
    if data is not None:
        raise UserError(f"--data {shown(data)} does not exist; give the folder of the pictures of {run.folder}")
    go_on = f"calotype resume {run.folder} --data FOLDER"
    raise UserError(f"the pictures of {run.folder} were in {shown(source)}, which is gone; go on with: {go_on}")


def is_same(run: Run, pictures: Pictures) -> bool:
    """Whether content, classes and labels are those of the run; earlier versions stored no labels."""
    state = run.state
    stored = tuple(state.classes), state.labels or labels_hash(pictures)
    same = stored == (pictures.classes, labels_hash(pictures))
    return same and state.is_of(pictures)


def uncaptioned(pictures: Pictures, recipe: Recipe) -> str | None:
    """For a run that reads no captions: the hash of its pictures without any."""
    return (pictures.uncaptioned or None) if recipe.denoiser.text.kind == "none" else None


def note_captions(run: Run, recipe: Recipe, pictures: Pictures) -> None:
    """Records whether captions belong to the pictures, where the recipe has changed whether they are read."""
    if (now := uncaptioned(pictures, recipe)) == run.state.uncaptioned:
        return
    write_split(run.folder, pictures.split, now or pictures.content)
    run.state.uncaptioned = now
    run.save()


def labels_hash(pictures: Pictures) -> str:
    return hashlib.sha256(str(pictures.labels.tolist()).encode()).hexdigest()[:32]


def change_of(run: Run, pictures: Pictures) -> str:
    before = number(read_mapping(run.folder / SPLIT_FILE).get("count"))
    same = before is None or before == len(pictures)
    return (
        "some pictures, labels or captions were replaced"
        if same
        else f"there are {len(pictures):,} instead of {before:,.0f}"
    )


# -- Settings and machine ----------------------------------------------------------------------------------------------


def note_changes(run: Run, recipe: Recipe, device: str, machine: Machine, console: Console) -> None:
    """Names what has changed, and goes on with it.

    Raises `UserError` for a setting with which networks have been trained already, and where the run does not say how
    far a leg is.
    """
    changes = [*_settings(run, recipe), *_machine(run, device, machine)]
    if missing := [leg for leg in recipe.legs if leg not in run.state.legs]:
        raise UserError(
            f"{run.folder / 'run.json'} is damaged: legs says nothing of {', '.join(missing)}; put the file back from "
            f"a copy, or start a new run"
        )
    for text in changes:
        announce(run, console, text)
    run.state.settings = recipe.model_dump(mode="json")
    run.state.threads, run.state.ranks = machine.threads, machine.ranks


def _settings(run: Run, recipe: Recipe) -> Iterator[str]:
    if run.state.settings is None:  # of an earlier version
        return
    for key, (before, now) in differences(run.state.settings, recipe.model_dump(mode="json")).items():
        change = f"{key} was {_value(before)} when {run.folder} was started, and is {_value(now)} in its recipe.toml"
        if not HARMLESS.fullmatch(key) and any(run.state.legs.get(leg) != "waiting" for leg in _legs_of(key, run)):
            raise UserError(f"{change}; put it back, or start a new run")
        yield f"{change}; the run goes on with it"


def _legs_of(key: str, run: Run) -> list[str]:
    for pattern, leg in LEG_OF:
        if match := pattern.fullmatch(key):
            return [leg(match[1])]
    return list(run.state.legs)


def _value(setting: Any) -> str:
    return "not set" if setting is None else repr(setting)


def _machine(run: Run, device: str, machine: Machine) -> Iterator[str]:
    """Where results may differ in their last bits."""
    changed = []
    if (before := run.state.versions.get("torch")) not in (None, torch.__version__):
        changed.append(f"torch {torch.__version__} instead of {before}")
    if (before := device.split(" ", maxsplit=1)[0]) != machine.device.type:
        changed.append(f"{machine.device.type} instead of {before}")
    if machine.ranks != run.state.ranks:
        changed.append(f"{plural(machine.ranks, 'rank')} instead of {run.state.ranks}")
    if changed:
        yield f"the run goes on with {' and '.join(changed)}, so its last bits may differ from those of one machine"
    if machine.device.type == "cpu" and machine.threads > cores():
        yield (
            f"the run keeps its {machine.threads} threads, so that its numbers stay the same, though this machine has "
            f"{cores()} cores"
        )


def announce(run: Run, console: Console, text: str) -> None:
    console.say(text)
    run.log("note", text=text)
