"""The pictures that a command reads, and the folders that it writes into."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from calotype.cli.console import Console
from calotype.cli.options import PortraitsOptions, ShardsOptions
from calotype.data.folder import Pictures
from calotype.data.listing import plural
from calotype.data.packing import Packed, write_shards
from calotype.data.rgb import Levels
from calotype.data.split import SplitConfig, SplitRule, stratified_split
from calotype.demo.portraits import write_portraits
from calotype.demo.reading import pictures_of_run, read_pictures
from calotype.files import checked, make_folder, reason_of
from calotype.run import PORTRAITS, Run, read_state
from calotype.types import UserError

MAX_BYTES_OF_NAME = 200


def read(
    folder: Path | None,
    size: int,
    cache: Path | None,
    console: Console,
    rule: SplitRule = stratified_split,
    most: int | None = None,
    levels: Levels | None = None,
) -> Pictures:
    """As `read_pictures`, with a bar."""
    with console.bar("pictures") as bar:
        return read_pictures(folder, size, cache, bar, rule, most=most, levels=levels)


def read_of_run(run: Run, source: Path | None, size: int, cache: Path, console: Console) -> Pictures:
    """As `pictures_of_run`, with a bar."""
    with console.bar("pictures") as bar:
        return pictures_of_run(run, source, size, cache, bar)


def levels_in(folder: Path) -> Levels:
    """Black and white of the run in a folder, for pictures with more than 8 bits; empty for a folder of a model."""
    try:
        return read_state(folder / "run.json").black_and_white
    except UserError:
        return {}


def read_as_run(run: Run, data: Path | None, size: int, cache: Path, console: Console) -> Pictures:
    """The pictures in `data`, or those of a run: with its split where it was trained on them, else with a new one."""
    name = str(data or run.state.data)
    source = None if name == PORTRAITS and data is None else Path(name)
    pictures = read_of_run(run, source, size, cache, console)
    if run.state.is_of(pictures):
        return pictures
    fractions = run.state.split.model_dump(include={"validation", "test"}) if run.state.split else {}
    config = checked(fractions, SplitConfig, run.folder / "run.json")
    return pictures.split_by(partial(stratified_split, config=config))


def read_own(run: Run, size: int, cache: Path, console: Console) -> Pictures | None:
    """The pictures that a run was trained on; None where they cannot be read, or have changed."""
    try:
        pictures = read_as_run(run, None, size, cache, console)
    except UserError:
        return None
    return pictures if run.state.is_of(pictures) else None


def export_portraits(options: PortraitsOptions, console: Console) -> None:
    """The embedded portraits as PNG files in class folders."""
    with console.bar("portraits") as bar:
        write_portraits(options.size, options.count, options.out, bar)
    console.say(f"portraits in {options.out}; their licences are in {options.out / 'LICENSE.md'}")


def pack_shards(options: ShardsOptions, console: Console) -> Packed:
    with console.bar("shards") as bar:
        packed = write_shards(options.folder, options.out, bar)
    for line in packed.notes:
        console.say(line)
    shards = plural(packed.shards, "shard")
    console.say(f"{plural(packed.pictures, 'picture')} in {shards} of {packed.bytes / 1e6:,.1f} MB: {options.out}")
    console.say(f"train on them with: calotype train {options.out}")
    return packed


def place_of(path: str) -> Path:
    """The resolved path that a setting names. Raises `UserError` where no path can be so."""
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a NUL byte, or the home of nobody
        raise UserError(f"{path!r:.80} is no path ({reason_of(error)}); give that of a folder") from None


def name_that_fits(name: str) -> str:
    """So that a name which begins with it fits into the 255 bytes of most file systems."""
    while len(os.fsencode(name)) > MAX_BYTES_OF_NAME:
        name = name[:-1]
    return name


def unused_path(path: Path) -> Path:
    """The first of `NAME-1`, `NAME-2`, ... beside `path` that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(each for each in numbered if not os.path.lexists(each))


def new_folder(path: Path) -> Path:
    """Makes `unused_path`, in one step: of two processes that ask at once, each gets its own."""
    make_folder(path.parent)
    while True:
        with suppress(FileExistsError):
            (unused := unused_path(path)).mkdir()
            return unused


def check_empty(out: Path, known: str = "") -> None:
    """Raises `UserError` unless the folder is new, empty, or has earlier results of the same command (a file `known`).

    A folder `cache` alone, which is read into before there are results, does not count.
    """
    if known and (out / known).is_file():
        return
    if out.exists() and (out.is_file() or any(path.name != "cache" or not known for path in out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder; choose another")


def safe_name(name: str) -> str:
    """A label as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
