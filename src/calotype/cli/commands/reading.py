"""The pictures a command works on, and the folders it writes into."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from calotype.cli.console import Console
from calotype.cli.options import PortraitsOptions
from calotype.data.folder import Pictures, read_folder
from calotype.data.split import Rule, rule_of, three_sets
from calotype.demo.portraits import read_portraits, write_portraits
from calotype.run import PORTRAITS, Run
from calotype.types import UserError


def read(folder: Path | None, size: int, cache: Path | None, console: Console, rule: Rule = three_sets) -> Pictures:
    """The pictures in a folder, or the portraits, split by `rule`: see `rule_of` for those of a run."""
    with console.bar("pictures") as progress:
        if folder is None:
            return read_portraits(size, progress=lambda done, total: progress(done, total, ""), rule=rule)
        return read_folder(folder, size, cache, lambda done, total: progress(done, total, ""), rule)


def read_as_run(run: Run, data: Path | None, size: int, cache: Path, console: Console) -> Pictures:
    """The pictures in `data`, or those of a run: with its split where it was trained on them, else with a new one."""
    name = str(data or run.state.data)
    source = None if name == PORTRAITS and data is None else Path(name)
    pictures = read(source, size, cache, console, rule_of(run.folder))
    if pictures.content == run.state.content:
        return pictures
    return replace(pictures, split=three_sets(pictures.pixels, pictures.labels, pictures.classes))


def read_own(run: Run, size: int, cache: Path, console: Console) -> Pictures | None:
    """The pictures that a run was trained on; None where they cannot be read, or have changed."""
    try:
        pictures = read_as_run(run, None, size, cache, console)
    except UserError:
        return None
    return pictures if pictures.content == run.state.content else None


def export_portraits(options: PortraitsOptions, console: Console) -> None:
    """The embedded portraits as PNG files in class folders."""
    out = options.out
    with console.bar("portraits") as progress:
        write_portraits(options.size, options.count, out, lambda done, total: progress(done, total, ""))
    console.say(f"portraits in {out}; their licences are in {out / 'LICENSE.md'}")


def free(path: Path) -> Path:
    """The path with the first number behind it that is not taken."""
    numbers = iter(range(1, 1 << 30))
    return next(one for number in numbers if not os.path.lexists(one := path.with_name(f"{path.name}-{number}")))


def check_empty(out: Path) -> None:
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder; choose another")


def safe(name: str) -> str:
    """A label as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
