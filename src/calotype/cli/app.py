"""The command line. It starts at once: torch is imported only by the commands that need it."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.options import (
    Budget,
    CanvasSize,
    Device,
    Folder,
    Force,
    Guidance,
    Kind,
    Out,
    RecipeFile,
    RunFolder,
    SamplerOption,
    Set,
    Size,
    Space,
    Steps,
    guides,
    listed,
    seconds,
)
from calotype.cli.process import lasting_streams, unwound_by_signals

if TYPE_CHECKING:
    from calotype.cli.commands import TrainRequest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait crawl on a busy machine

NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

app = typer.Typer(
    help="Train an image generator on a folder of your own pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Pictures to train on, and the embedded ones.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command()
def train(
    folder: Folder, size: Size = None, budget: Budget = "30m", kind: Kind = None, out: Out = None,
    recipe: RecipeFile = None, set: Set = None, device: Device = "auto", space: Space = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Plan, train, sample and report: from a folder of pictures to new ones."""
    _train(_wish(folder, size, budget, kind, out, recipe, set, device, space), force)


@app.command()
def plan(
    folder: Folder, size: Size = None, budget: Budget = "30m", kind: Kind = None,
    recipe: RecipeFile = None, set: Set = None, device: Device = "auto", space: Space = None,
) -> None:  # fmt: skip
    """Show what `train` would do, why, and what it would cost."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    commands.plan(_wish(folder, size, budget, kind, None, recipe, set, device, space), Terminal())


@app.command()
def demo(
    size: Size = None, budget: Budget = "10m", kind: Kind = None, out: Out = None, recipe: RecipeFile = None,
    set: Set = None, device: Device = "auto", space: Space = None,
    force: Force = False,
) -> None:  # fmt: skip
    """`train` on the embedded portraits."""
    _train(_wish(None, size, budget, kind, out, recipe, set, device, space), force)


@app.command()
def resume(run: RunFolder, device: Device = "auto", force: Force = False) -> None:
    """Go on with a run that was stopped."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    _tell(commands.resume(run, device, console, force))


@app.command()
def sample(
    run: RunFolder,
    count: Annotated[
        int | None, typer.Option(help="How many pictures. [default: 16, or one a prompt]", show_default=False)
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Of which class. [default: each in turn; --from: any]", show_default=False),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What they show, in words.", show_default=False)] = None,
    negative: Annotated[str | None, typer.Option(help="What guidance leads away from.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one a line.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal pictures.")] = 0,
    source: Annotated[
        Path | None, typer.Option("--from", help="New versions of this picture.", show_default=False)
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of it changes, up to 1: all. [default: 0.6; with --mask 1]", show_default=False),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Only where this picture of the same size is white.", show_default=False)
    ] = None,
    size: CanvasSize = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to write. [default: RUN/samples]", show_default=False)] = None,
    device: Device = "auto",
) -> None:
    """Make pictures with a trained model: one PNG each, and a grid."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    asked = _prompts(prompt, prompts)
    wanted = {"prompt": asked, "negative": negative, "steps": steps, "guidance": guidance, "sampler": sampler}
    count = (len(asked) if prompts else 16) if count is None else count
    sheet = commands.SampleRequest(size, source, strength, mask)
    folder = commands.sample(run, count, label, seed, out, device, console, sheet, **wanted)
    console.say(f"{count} pictures in {folder}; all of them: {folder / 'grid.png'}")


@app.command()
def interpolate(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="FILE.webp or .gif: an animation; .png: a strip.", show_default=False)],
    seeds: Annotated[str, typer.Option(help="From the first picture of one seed to that of the other.")] = "1,2",
    frames: Annotated[int, typer.Option(help="How many pictures, both ends included.")] = 12,
    labels: Annotated[
        str | None, typer.Option(help="From this class to that: a,b. [default: the first]", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What all of them show, in words.", show_default=False)] = None,
    prompts: Annotated[
        str | None, typer.Option(help="From these words to those: 'a red cat|a blue dog'.", show_default=False)
    ] = None,
    size: CanvasSize = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerOption = None,
    device: Device = "auto",
) -> None:
    """Show the way from one picture of a model to another."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    wanted = {"steps": steps, "guidance": guidance, "sampler": sampler, "prompt": prompt, "prompts": prompts}
    commands.interpolate(run, seeds, frames, labels, size, out, device, console, **wanted)
    console.say(f"{frames} frames in {out}")


@app.command()
def enlarge(
    run: RunFolder,
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("enlarged"),
    size: Annotated[
        int | None, typer.Option(help="With the stage that makes this size. [default: the last]", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="Of which class they are.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal pictures.")] = 0,
    device: Device = "auto",
) -> None:
    """Enlarge pictures with a stage of a cascade."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    count = commands.enlarge(run, pictures, size, label, seed, out, device, console)
    console.say(f"{count} pictures in {out}")


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None, typer.Option(help="Folder of real pictures. [default: the run's own]", show_default=False)
    ] = None,
    count: Annotated[
        int, typer.Option(help="How many samples; of portraits with captions, in each language too.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal pictures.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write. [default: RUN, its report and its card]", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure how good a run's pictures are, whether it copies those it was trained on, and whether it obeys."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    wanted: dict[str, Any] = {"steps": steps, "guidance": guidance, "sampler": sampler}
    console.say(f"all numbers are in {commands.evaluate(run, data, count, seed, out, device, console, **wanted)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where to write compare.html and compare.json.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures. [default: the first run's]", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="How many samples of each run.")] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal pictures.")] = 0,
    device: Device = "auto",
) -> None:
    """Measure runs side by side: errors, cost, quality, overfitting, stability."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    print(f"done: look at {commands.compare(runs, data, out, count, seed, device, Terminal()) / 'compare.html'}")


@app.command()
def sweep(
    run: RunFolder,
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures. [default: the run's]", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="How many samples in each cell.")] = 200,
    steps: Annotated[str, typer.Option(help="Steps to try.")] = "8,12,24",
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Guidance scales to try. [default: 1,2,3,4 with the prior as the guide, else 1,1.5,2,3]",
            show_default=False,
        ),
    ] = None,
    guide: Annotated[
        str | None, typer.Option(help="prior or unconditional. [default: both]", show_default=False)
    ] = None,
    slope: Annotated[
        str | None,
        typer.Option(help="Slopes of the scale over sigma to try. [default: the model's]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal pictures.")] = 0,
    device: Device = "auto",
) -> None:
    """Try steps, guides and guidance scales against validation pictures, and store the best with the model."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    grid = commands.Grid(
        [int(one) for one in listed("steps", steps, 1)],
        listed("guidance", guidance, 0) if guidance else (),
        guides(guide),
        listed("slope", slope, 0) if slope else (),
    )
    print(commands.sweep(run, data, count, seed, grid, device, Terminal()))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List runs with their state and main figures, newest first."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    commands.runs(folder, as_json, Terminal())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file. [default: RUN/report.html; of several, beside them]", show_default=False),
    ] = None,
) -> None:
    """Write the page of a run anew, or one page of several runs."""
    from calotype.cli import commands

    print(f"done: look at {commands.report(runs, out)}")


@app.command()
def inspect(
    run: RunFolder,
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures. [default: the run's]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write inspection.html. [default: RUN]", show_default=False)
    ] = None,
    device: Device = "auto",
) -> None:
    """Say whether a run's autoencoder is fit to diffuse on, and if not, what to change."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    print(f"look at {commands.inspect(run, data, out, device, Terminal()) / 'inspection.html'}")


@data.command()
def portraits(
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    count: Annotated[
        int | None, typer.Option(help="How many, evenly over the classes. [default: all]", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="An empty or new folder.")] = Path("portraits"),
) -> None:
    """Write the embedded portraits as PNG files in class folders."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    console = Terminal()
    commands.write_data(size, count, out, console)
    console.say(f"portraits in {out}; their licences are in {out / 'LICENSE.md'}")


@data.command("check")
def check_data(
    folder: Folder,
    size: Annotated[int, typer.Option(help="Side of the pictures that would be trained on, in pixels.")] = 64,
) -> None:
    """Say what a folder holds; the exit code is 0 if training may start, else 2."""
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    commands.check_data(folder, size, Terminal())


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    from calotype.cli import commands
    from calotype.types import UserError

    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts both say what to show; leave one out")
    return commands.read_prompts(file) if file else [prompt or ""] * (prompt is not None)


def _wish(
    folder: Path | None, size: int | None, budget: str, kind: str | None, out: Path | None, recipe: Path | None,
    overrides: list[str] | None, device: str, space: str | None,
) -> TrainRequest:  # fmt: skip
    import psutil

    from calotype.cli.commands import TrainRequest
    from calotype.types import UserError

    if kind not in (None, "latent", "cascade"):
        raise UserError(f"--kind is {kind!r}, but must be latent or cascade")
    started = psutil.Process().create_time()
    return TrainRequest(
        folder, size, seconds(budget), out, recipe, tuple(overrides or ()), device, kind, started, space
    )


def _train(request: TrainRequest, force: bool) -> None:
    from calotype.cli import commands
    from calotype.cli.console import Terminal

    _tell(commands.train(request, Terminal(), force))


def _tell(folder: Path) -> None:
    print(f"done: look at {folder / 'report.html'} and {folder / 'samples' / 'grid.png'}")
    print(f"more pictures: calotype sample {folder} --count 16")


def main() -> None:
    """Exit codes: 0 done, 1 our mistake, 2 the user's (one line, no traceback); stopped: 130 by Ctrl-C, 143 by SIGTERM,
    129 by SIGHUP.
    """
    with lasting_streams(), unwound_by_signals():
        try:
            sys.exit(app(standalone_mode=False))
        except Exception as error:
            sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """One line for the user; the traceback goes to a file."""
    if isinstance(about := getattr(error, "format_message", lambda: None)(), str):  # typer's own: a wrong option
        print(about if "\n" in about else f"calotype: {about.rstrip('.')}; try: calotype --help", file=sys.stderr)
        return 2

    from calotype.training.signals import Interrupted
    from calotype.types import UserError

    if isinstance(error, Interrupted):
        print(f"stopped; what was learned is saved. Go on with: calotype resume {error}", file=sys.stderr)
        return 128 + error.signal_number
    if isinstance(error, UserError):
        print(f"calotype: {error}", file=sys.stderr)
        return 2
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in (*full, errno.EACCES, errno.EROFS, *NO_FOLDER):
        place = f" at {error.filename}" if error.filename else ""
        hint = "free some space, then resume" if error.errno in full else "choose a folder that can be written to"
        print(f"calotype: {error.strerror}{place}; {hint}", file=sys.stderr)
        return 2
    about = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"calotype: {about} (this is our mistake; {_kept(error)})", file=sys.stderr)
    return 1


def _kept(error: Exception) -> str:
    """Where the traceback went."""
    log = Path.home() / ".cache" / "calotype" / "error.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)))
    except OSError as other:
        return f"its details could not be written to {log}: {other.strerror}"
    return f"the details are in {log}"
