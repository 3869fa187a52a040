"""The command line. It starts at once: torch is imported only by the commands that need it."""

from __future__ import annotations

import re
import signal
import sys
import traceback
from pathlib import Path

import typer

from calotype.cli.console import Terminal
from calotype.cli.options import ResumeOptions, TrainingOptions, TrainOptions, app
from calotype.cli.process import (
    freeze_imported,
    is_rank,
    lasting_streams,
    start_ranks,
    tune_process,
    unwound_by_signals,
)
from calotype.escaping import plain
from calotype.places import DISK_FULL, HINTS, NOT_WRITABLE, cache_home


def main() -> None:
    """Exit codes: 0 done, 1 our mistake, 2 the user's (one line, no traceback); stopped: 130 by Ctrl-C, 143 by SIGTERM,
    129 by SIGHUP.
    """
    tune_process()
    options = None
    with lasting_streams(), unwound_by_signals():
        try:
            options = app(standalone_mode=False)
            if isinstance(options, int):  # the exit code of --help
                sys.exit(options)
            require_current_folder()
            require_named_paths(options)
            if isinstance(options, TrainingOptions):
                options.counted_from_process_start()
            if getattr(options, "ranks", 1) > 1 and not is_rank():
                start_ranks(options.ranks)
            from calotype.cli import commands

            if isinstance(options, TrainingOptions | ResumeOptions):
                freeze_imported()
            commands.FUNCTIONS[type(options)](options, Terminal())
            sys.exit(0)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            code, line = _explained(error, options)
            print(line, file=sys.stderr)
            if is_rank():
                from calotype.ranks import pass_on

                pass_on(line)
            sys.exit(code)


def require_current_folder() -> None:
    """Raises `BadParameter` where it was removed: torch would end the process there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise typer.BadParameter("the current folder was removed; go to another one with cd") from None


def require_named_paths(options: object) -> None:
    """Raises `BadParameter` for an empty word in place of a path, which would be the current folder: most often it is
    a variable of the shell that is not set."""
    words = sys.argv[1:]
    empty = any(not word or re.fullmatch(r"--[a-z]+=", word) for word in words)
    if empty and not {".", "./"} & {*words} and Path() in vars(options).values():
        raise typer.BadParameter("a path is empty; give the name of a folder or file, or . for the current folder")


def _explained(error: Exception, options: object = None) -> tuple[int, str]:
    """The exit code, and one line for the user, of an error of the command with these options."""
    if isinstance(usage := getattr(error, "format_message", lambda: None)(), str):  # of typer: a wrong option
        usage = usage.replace("Value error, ", "")  # pydantic's, in front of its reason
        return 2, usage if "\n" in usage else f"calotype: {plain(usage).rstrip('.')}; try: calotype --help"

    from calotype.training.process import Interrupted
    from calotype.types import UserError

    error = _first_of_full_disk(error)
    if isinstance(error, Interrupted):
        return 128 + error.signal_number, f"stopped; training so far is saved. Continue with: calotype resume {error}"
    if isinstance(error, UserError):
        return 2, f"calotype: {plain(str(error))}"
    if isinstance(error, OSError) and error.errno in HINTS:
        place = plain(f" at {error.filename}") if error.filename else ""
        again = ", then resume: earlier checkpoints are sound"
        trains = isinstance(options, TrainOptions | ResumeOptions) and error.errno not in NOT_WRITABLE
        return 2, f"calotype: {error.strerror}{place}; {HINTS[error.errno]}{again if trains else ''}"
    from calotype.machine import out_of_memory

    if out_of_memory(error):
        return 2, "calotype: out of memory; close other programs, or use a smaller size, batch or --count"
    first = plain(f"{type(error).__name__}: {error}".splitlines()[0])
    return 1, f"calotype: {first} (this is a bug in Calotype; {_traceback_saved(error)})"


def _first_of_full_disk(error: Exception) -> Exception:
    """On a full disk the report and the state of the run cannot be written either: what came before says more."""
    from calotype.types import UserError

    while isinstance(error, OSError) and error.errno in DISK_FULL:
        if not isinstance(before := error.__context__, OSError | UserError):
            break
        error = before
    return error


def _traceback_saved(error: Exception) -> str:
    log = cache_home() / "error.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"its details could not be written to {log}: {problem.strerror}"
    return f"the details are in {log}"
