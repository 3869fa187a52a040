"""The command line. It starts at once: torch is imported only by the commands that need it."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.console import Terminal
from calotype.cli.options import (
    Budget,
    CanvasSize,
    Count,
    Data,
    Device,
    Folder,
    Force,
    Guidance,
    Kind,
    Label,
    NewRun,
    RecipeFile,
    RunFolder,
    SamplerName,
    Seed,
    Settings,
    Size,
    Space,
    Steps,
    guides,
    numbers,
    option,
    seconds,
)
from calotype.cli.process import lasting_streams, unwound_by_signals


class Lazy:
    """A module that is imported when it is first used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.name), attribute)


if TYPE_CHECKING:
    from calotype.cli import commands
else:
    commands = Lazy("calotype.cli.commands")

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait slow down a busy machine

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

app = typer.Typer(
    help="Train an image generator on a folder of your own pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Folders of pictures, and the built-in portraits.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command()
def train(
    folder: Folder, size: Size = None, budget: Budget = "30m", kind: Kind = None, out: NewRun = None,
    recipe: RecipeFile = None, set: Settings = None, device: Device = "auto", space: Space = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Train an image generator on a folder of pictures: plan, train, sample and report."""
    _train(_request(folder, size, budget, kind, out, recipe, set, device, space), force)


@app.command()
def plan(
    folder: Folder, size: Size = None, budget: Budget = "30m", kind: Kind = None, recipe: RecipeFile = None,
    set: Settings = None, device: Device = "auto", space: Space = None,
) -> None:  # fmt: skip
    """Show what `train` would do, why, and what it would cost."""
    commands.plan(_request(folder, size, budget, kind, None, recipe, set, device, space), Terminal())


@app.command()
def demo(
    size: Size = None, budget: Budget = "10m", kind: Kind = None, out: NewRun = None, recipe: RecipeFile = None,
    set: Settings = None, device: Device = "auto", space: Space = None, force: Force = False,
) -> None:  # fmt: skip
    """Run `train` on the built-in portraits."""
    _train(_request(None, size, budget, kind, out, recipe, set, device, space), force)


@app.command()
def resume(run: RunFolder, device: Device = "auto", force: Force = False) -> None:
    """Continue a run that was stopped."""
    _done(commands.resume(run, device, Terminal(), force))


@app.command()
def sample(
    run: RunFolder,
    count: Annotated[int | None, option("Number of pictures. [default: 16, or one per prompt]")] = None,
    label: Annotated[str | None, option("Class of the pictures. [default: each in turn; with --from: none]")] = None,
    prompt: Annotated[str | None, option("What the pictures show, in words.")] = None,
    negative: Annotated[str | None, option("Negative prompt: what to avoid.")] = None,
    prompts: Annotated[Path | None, option("File with one prompt per line.")] = None,
    seed: Seed = 0,
    source: Annotated[Path | None, option("Picture to make variations of (image-to-image).", "--from")] = None,
    strength: Annotated[
        float | None, option("Strength of image-to-image, from 0 to 1. [default: 0.6; with --mask 1]")
    ] = None,
    mask: Annotated[Path | None, option("Picture of the same size; repaint only its white area (inpainting).")] = None,
    size: CanvasSize = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    out: Annotated[Path | None, option("Folder to write to. [default: RUN/samples-N]")] = None,
    device: Device = "auto",
) -> None:
    """Generate pictures with a trained model: a PNG file of each, and a grid."""
    console, texts = Terminal(), _prompts(prompt, prompts)
    changes = {"prompt": texts, "negative": negative, "steps": steps, "guidance": guidance, "sampler": sampler}
    count = (len(texts) if prompts else 16) if count is None else count
    request = commands.SampleRequest(size, source, strength, mask)
    folder = commands.sample(run, count, label, seed, out, device, console, request, **changes)
    console.say(f"{count} pictures in {folder}; all of them: {folder / 'grid.png'}")


@app.command()
def interpolate(
    run: RunFolder,
    out: Annotated[Path, option("FILE.webp or FILE.gif: an animation; FILE.png: a strip.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the first and the last picture.")] = "1,2",
    frames: Annotated[int, typer.Option(help="Number of pictures, both ends included.")] = 12,
    labels: Annotated[str | None, option("First and last class: a,b. [default: the first class]")] = None,
    prompt: Annotated[str | None, option("What all pictures show, in words.")] = None,
    prompts: Annotated[str | None, option("First and last prompt: 'a red cat|a blue dog'.")] = None,
    size: CanvasSize = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    device: Device = "auto",
) -> None:
    """Interpolate between two pictures of a model: seeds, classes or prompts."""
    console = Terminal()
    changes = {"steps": steps, "guidance": guidance, "sampler": sampler, "prompt": prompt, "prompts": prompts}
    commands.interpolate(run, seeds, frames, labels, size, out, device, console, **changes)
    console.say(f"{frames} frames in {out}")


@app.command()
def enlarge(
    run: RunFolder,
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("enlarged"),
    size: Annotated[int | None, option("Output size of the stage to use, in pixels. [default: the last stage]")] = None,
    label: Label = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Enlarge pictures with a super-resolution stage of a cascade."""
    console = Terminal()
    count = commands.enlarge(run, pictures, size, label, seed, out, device, console)
    console.say(f"{count} pictures in {out}")


@app.command()
def evaluate(
    run: RunFolder,
    data: Data = None,
    count: Annotated[int, typer.Option(help="Number of samples; for captioned portraits, in each language.")] = 200,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    out: Annotated[Path | None, option("Folder to write to. [default: RUN, with its report and model card]")] = None,
    device: Device = "auto",
) -> None:
    """Measure sample quality, memorisation and prompt alignment of a run."""
    console = Terminal()
    changes: dict[str, Any] = {"steps": steps, "guidance": guidance, "sampler": sampler}
    console.say(f"all numbers are in {commands.evaluate(run, data, count, seed, out, device, console, **changes)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.", show_default=False)],
    out: Annotated[Path, option("Folder to write compare.html and compare.json to.")],
    data: Annotated[Path | None, option("Folder of real pictures. [default: those of the first run]")] = None,
    count: Count = 200,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Compare runs: error propagation, cost, quality, overfitting and stability."""
    print(f"done: look at {commands.compare(runs, data, out, count, seed, device, Terminal()) / 'compare.html'}")


@app.command()
def sweep(
    run: RunFolder,
    data: Data = None,
    count: Count = 200,
    steps: Annotated[str, typer.Option(help="Numbers of sampling steps to try.")] = "8,12,24",
    guidance: Annotated[
        str | None,
        option("Guidance scales to try. [default: 1,2,3,4 with the prior as the guide, else 1,1.5,2,3]"),
    ] = None,
    guide: Annotated[str | None, option("prior or unconditional. [default: both]")] = None,
    slope: Annotated[str | None, option("Slopes of the scale over sigma to try. [default: the model's]")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Search steps, guides and guidance scales on validation pictures, and store the best with the model."""
    grid = commands.Grid(
        [int(value) for value in numbers("steps", steps, 1)],
        numbers("guidance", guidance, 0) if guidance else (),
        guides(guide),
        numbers("slope", slope, 0) if slope else (),
    )
    print(commands.sweep(run, data, count, seed, grid, device, Terminal()))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per line.")] = False,
) -> None:
    """List runs with their state and main figures, newest first."""
    commands.runs(folder, as_json, Terminal())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    out: Annotated[Path | None, option("HTML file. [default: RUN/report.html; of several runs, beside them]")] = None,
) -> None:
    """Write the page of a run, or one page of several runs."""
    print(f"done: look at {commands.report(runs, out)}")


@app.command()
def inspect(
    run: RunFolder,
    data: Data = None,
    out: Annotated[Path | None, option("Folder to write inspection.html to. [default: RUN]")] = None,
    device: Device = "auto",
) -> None:
    """Check whether the autoencoder of a run is fit for diffusion, and what to change if it is not."""
    print(f"look at {commands.inspect(run, data, out, device, Terminal()) / 'inspection.html'}")


@data.command()
def portraits(
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    count: Annotated[int | None, option("Number of pictures, evenly over the classes. [default: all]")] = None,
    out: Annotated[Path, typer.Option(help="Empty or new folder to write to.")] = Path("portraits"),
) -> None:
    """Write the built-in portraits as PNG files in class folders."""
    console = Terminal()
    commands.write_data(size, count, out, console)
    console.say(f"portraits in {out}; their licences are in {out / 'LICENSE.md'}")


@data.command("check")
def check_data(
    folder: Folder, size: Annotated[int, typer.Option(help="Side of the training pictures in pixels.")] = 64
) -> None:
    """Describe a folder of pictures; the exit code is 0 if training may start, else 2."""
    commands.check_data(folder, size, Terminal())


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    from calotype.types import UserError

    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts both give prompts; use one of them")
    return commands.read_prompts(file) if file else [prompt or ""] * (prompt is not None)


def _request(
    folder: Path | None, size: int | None, budget: str, kind: str | None, out: Path | None, recipe: Path | None,
    overrides: list[str] | None, device: str, space: str | None,
) -> commands.TrainRequest:  # fmt: skip
    import psutil

    from calotype.types import UserError

    if kind not in (None, "latent", "cascade"):
        raise UserError(f"--kind is {kind!r}, but must be latent or cascade")
    began = psutil.Process().create_time()
    return commands.TrainRequest(
        folder, size, seconds(budget), out, recipe, tuple(overrides or ()), device, kind, began, space
    )


def _train(request: commands.TrainRequest, force: bool) -> None:
    _done(commands.train(request, Terminal(), force))


def _done(folder: Path) -> None:
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
            code, line = _explained(error)
            print(line, file=sys.stderr)
            sys.exit(code)


def _explained(error: Exception) -> tuple[int, str]:
    """The exit code, and one line for the user."""
    if isinstance(usage := getattr(error, "format_message", lambda: None)(), str):  # of typer: a wrong option
        return 2, usage if "\n" in usage else f"calotype: {usage.rstrip('.')}; try: calotype --help"

    from calotype.training.process import Interrupted
    from calotype.types import UserError

    if isinstance(error, Interrupted):
        return 128 + error.signal_number, f"stopped; what was learned is saved. Go on with: calotype resume {error}"
    if isinstance(error, UserError):
        return 2, f"calotype: {error}"
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, *NOT_WRITABLE):
        place = f" at {error.filename}" if error.filename else ""
        hint = "free some space, then resume" if error.errno in DISK_FULL else "choose a folder that can be written to"
        return 2, f"calotype: {error.strerror}{place}; {hint}"
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return 1, f"calotype: {first} (this is our mistake; {_traceback_saved(error)})"


def _traceback_saved(error: Exception) -> str:
    """Where the traceback was written."""
    log = Path.home() / ".cache" / "calotype" / "error.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"its details could not be written to {log}: {problem.strerror}"
    return f"the details are in {log}"
