"""Every command with its options, as a class: typer makes an object of it from the command line. Torch is not imported.

The docstring of a class is its help; `calotype --help` shows the first sentence, which fits on a line of 80
columns. `calotype.cli.commands` has the function that does the work of each.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calotype.bounds import LARGEST_SIDE, MAX_FRAMES, MAX_SAMPLES
from calotype.cli.quantities import byte_count, seconds, seed_number, speed

app = typer.Typer(
    help="Train an image generator on a folder of your own pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Folders of pictures, and the built-in portraits.", no_args_is_help=True)


def option(help: str, *names: str, **settings: Any) -> Any:
    """An option whose default is None, or is explained in `help`."""
    return typer.Option(*names, help=help, show_default=False, **settings)


def numeric(help: str, *names: str, **settings: Any) -> Any:
    """A number, whose default is shown."""
    return typer.Option(*names, help=help, metavar="NUMBER", **settings)


def argument(help: str, metavar: str | None = None) -> Any:
    return typer.Argument(help=help, metavar=metavar, show_default=False)


SETTING = "A setting, such as denoiser.backbone.width=384; may be given several times."
RunFolder = Annotated[Path, argument("Folder of a run.", "RUN")]
RealPictures = Annotated[Path | None, option("Folder of real pictures. [default: those of the run]")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events into RUN/tensorboard.")]
Seed = Annotated[int, numeric("Random seed: equal seeds give equal pictures.", parser=seed_number)]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")]
RankCount = Annotated[int, numeric("Number of processes (ranks) on this machine.", "--ranks", min=1)]
Force = Annotated[bool, typer.Option("--force", help="Continue although checks of the autoencoder failed.")]
SampleCount = Annotated[int, numeric("Number of samples per run or setting.", max=MAX_SAMPLES)]
CanvasSize = Annotated[str | None, option("Width x height in pixels, as in 256x384. [default: the training size]")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Settings that replace those stored with a model."""

    steps: Annotated[int | None, option("Number of sampling steps. [default: the model's]")] = None
    guidance: Annotated[float | None, option("Guidance scale; 1 disables it. [default: the model's]")] = None
    sampler: Annotated[str | None, option("dpm_solver, euler, heun or ancestral. [default: the model's]")] = None

    def changes(self) -> dict[str, Any]:
        """As keywords of `Model.sample`."""
        return {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}


# -- Training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingOptions:
    """Pictures, recipe, machine and time of a run."""

    folder: Annotated[Path | None, argument("Folder of pictures; class subfolders become labels.", "FOLDER")]
    """None: the built-in portraits."""
    size: Annotated[int | None, option("Side of the pictures in pixels. [default: 64]", min=1, max=LARGEST_SIDE)] = None
    budget: Annotated[
        float, option("Time for the whole command: 20s, 10m, 1h30m. [default: 30m]", parser=seconds, metavar="TIME")
    ] = 1800.0
    """Seconds."""
    kind: Annotated[
        Literal["latent", "cascade"] | None, option("Latent diffusion, or a cascade in pixels. [default: latent]")
    ] = None
    """None: the recipe's, else latent."""
    recipe: Annotated[Path | None, option("TOML file of settings (see recipes/).")] = None
    overrides: Annotated[list[str] | None, option(SETTING, "--set", metavar="KEY=VALUE")] = None
    device: Device = "auto"
    space: Annotated[
        str | None, option("Autoencoder: own, or diffusers:PATH with the folder of an autoencoder. [default: own]")
    ] = None
    """None: the recipe's, else own."""
    source: Annotated[
        Path | None, option("Start from the networks of this finished run, with more or other pictures.", "--from")
    ] = None
    started: float = field(default_factory=time.monotonic, init=False)
    """When the budget began to run, by the monotonic clock: that of the day may be set."""

    def counted_from_process_start(self) -> None:
        """Of a command, the budget is the time of the whole process; of a rank, that of its torchrun."""
        import psutil

        process = psutil.Process()
        launcher = process.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
        age = max(0.0, time.time() - (launcher or process).create_time())
        object.__setattr__(self, "started", time.monotonic() - age)


@app.command("train")
@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Train on a folder of pictures: plan, train, sample, report."""

    out: Annotated[Path | None, option("Folder of the new run. [default: runs/NAME-SIZE-N]")] = None
    force: Force = False
    ranks: RankCount = 1
    serve: Annotated[bool, typer.Option("--serve", help="Show the run in the browser, as `serve` does.")] = False
    tensorboard: TensorBoard = False


@app.command("plan")
@dataclass(frozen=True)
class PlanOptions(TrainingOptions):
    """Show what `train` would do, why, and what it would cost. With --flops and --memory, for another machine."""

    flops: Annotated[
        float | None, option("FLOP/s of another machine, such as 5e14; needs --memory.", parser=speed, metavar="NUMBER")
    ] = None
    memory: Annotated[
        int | None, option("Free memory of another machine, such as 80GB.", parser=byte_count, metavar="SIZE")
    ] = None
    """Bytes."""


@app.command("demo")
@dataclass(frozen=True)
class DemoOptions(TrainOptions):
    """Run `train` on the built-in portraits."""

    folder: Path | None = field(default=None, init=False)
    budget: Annotated[
        float, option("Time for the whole command: 20s, 10m, 1h30m. [default: 10m]", parser=seconds, metavar="TIME")
    ] = 600.0


@app.command("resume")
@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run that was stopped. With --budget, train a finished one further."""

    run: RunFolder
    device: Device = "auto"
    force: Force = False
    data: Annotated[
        Path | None, option("Folder of the pictures, if they have moved or changed. [default: where they were]")
    ] = None
    budget: Annotated[
        float | None,
        option("Time to train the networks of a finished run further.", parser=seconds, metavar="TIME"),
    ] = None
    """Seconds."""
    ranks: RankCount = 1
    tensorboard: TensorBoard = False
    started: float = field(default_factory=time.monotonic, init=False)
    """When it began, by the monotonic clock."""


@app.command("preview")
@dataclass(frozen=True)
class PreviewOptions(SamplingOptions):
    """Sample from the newest checkpoint, also while a run trains. Uses the averaged weights."""

    run: RunFolder
    count: Annotated[int, numeric("Number of pictures.", max=MAX_SAMPLES)] = 16
    seed: Seed = 0
    out: Annotated[Path | None, option("PNG file. [default: RUN/preview.png]")] = None
    checkpoint: Annotated[
        str | None, option("Name in RUN/checkpoints, such as denoiser-0000016384. [default: newest]", metavar="NAME")
    ] = None
    device: Device = "auto"


# -- Sampling ----------------------------------------------------------------------------------------------------------


@app.command("sample")
@dataclass(frozen=True)
class SampleOptions(SamplingOptions):
    """Generate pictures with a trained model. Writes a PNG file for each picture, and a grid."""

    run: RunFolder
    count: Annotated[
        int | None, option("Number of pictures. [default: 16, or one per prompt]", max=MAX_SAMPLES, metavar="NUMBER")
    ] = None
    label: Annotated[str | None, option("Class of the pictures. [default: each in turn; with --from: none]")] = None
    prompt: Annotated[str | None, option("Prompt: what the pictures show.")] = None
    negative: Annotated[str | None, option("Negative prompt: what to avoid; needs a guidance scale above 1.")] = None
    prompts: Annotated[Path | None, option("File with one prompt per line.")] = None
    seed: Seed = 0
    picture: Annotated[Path | None, option("Picture to make variations of (image-to-image).", "--from")] = None
    strength: Annotated[
        float | None, option("Strength of image-to-image, from 0 to 1. [default: 0.6; with --mask 1]")
    ] = None
    mask: Annotated[Path | None, option("Mask of the same size as --from; white is repainted (inpainting).")] = None
    size: CanvasSize = None
    out: Annotated[Path | None, option("Folder to write to. [default: RUN/samples-N]")] = None
    device: Device = "auto"
    ranks: RankCount = 1


@app.command("interpolate")
@dataclass(frozen=True)
class InterpolateOptions(SamplingOptions):
    """Interpolate between two seeds, classes or prompts."""

    run: RunFolder
    out: Annotated[Path, option("FILE.webp or FILE.gif for an animation, FILE.png for a strip.")]
    seeds: Annotated[str, typer.Option(help="Seeds of the first and the last picture.")] = "1,2"
    frames: Annotated[int, numeric("Number of pictures, both ends included.", max=MAX_FRAMES)] = 12
    labels: Annotated[str | None, option("First and last class: a,b. [default: the first class]")] = None
    prompt: Annotated[str | None, option("Prompt of all pictures.")] = None
    prompts: Annotated[str | None, option("First and last prompt: 'a red cat|a blue dog'.")] = None
    size: CanvasSize = None
    device: Device = "auto"


@app.command("enlarge")
@dataclass(frozen=True)
class EnlargeOptions:
    """Enlarge pictures with a super-resolution stage of a cascade."""

    run: RunFolder
    pictures: Annotated[Path, argument("A picture, or a folder of pictures.", "PICTURES")]
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("enlarged")
    size: Annotated[int | None, option("Output size of the stage to use, in pixels. [default: the last stage]")] = None
    label: Annotated[str | None, option("Class of the pictures.")] = None
    prompt: Annotated[str | None, option("Prompt: what the pictures show.")] = None
    seed: Seed = 0
    device: Device = "auto"


@app.command("export")
@dataclass(frozen=True)
class ExportOptions(SamplingOptions):
    """Write a model for other software: ONNX, browsers, diffusers."""

    run: RunFolder
    to: Annotated[
        Literal["onnx", "web", "diffusers"], option("ONNX graphs, a page for browsers, or a folder for diffusers.")
    ]
    out: Annotated[Path | None, option("Folder to write to. [default: RUN/onnx, RUN/web or RUN/diffusers]")] = None
    runtime: Annotated[
        Path | None, option("With --to web: npm package of onnxruntime-web. [default: node_modules/onnxruntime-web]")
    ] = None


@app.command("push")
@dataclass(frozen=True)
class PushOptions:
    """Upload a model or an export to the Hugging Face hub."""

    folder: Annotated[Path, argument("Folder of a run, of a model, or of an export.", "FOLDER")]
    repository: Annotated[str, argument("Repository on the hub.", "OWNER/NAME")]
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. [default: private]")] = False


# -- Evaluation --------------------------------------------------------------------------------------------------------


@app.command("evaluate")
@dataclass(frozen=True)
class EvaluateOptions(SamplingOptions):
    """Measure sample quality, memorisation and prompt alignment."""

    run: RunFolder
    data: RealPictures = None
    count: Annotated[int, numeric("Number of samples; for captioned portraits, per language.", max=MAX_SAMPLES)] = 200
    features: Annotated[
        Literal["lite0", "inception", "dinov2", "clip"],
        typer.Option(help="Network of the features; inception gives FID."),
    ] = "lite0"
    features_weights: Annotated[
        Path | None, option("Weights: a safetensors file for inception, a transformers folder for dinov2 and clip.")
    ] = None
    seed: Seed = 0
    out: Annotated[Path | None, option("Folder to write to. [default: RUN; updates its report and model card]")] = None
    device: Device = "auto"
    ranks: RankCount = 1


@app.command("compare")
@dataclass(frozen=True)
class CompareOptions:
    """Compare runs: quality, cost, overfitting, error propagation."""

    runs: Annotated[list[Path], argument("Folders of finished runs.", "RUN...")]
    out: Annotated[Path, option("Folder to write compare.html and compare.json to.")]
    data: Annotated[Path | None, option("Folder of real pictures. [default: those of the first run]")] = None
    count: SampleCount = 200
    seed: Seed = 0
    device: Device = "auto"


@app.command("sweep")
@dataclass(frozen=True)
class SweepOptions:
    """Search steps and guidance on validation pictures. Stores the best settings with the model."""

    run: RunFolder
    data: RealPictures = None
    count: SampleCount = 200
    steps: Annotated[str, typer.Option(help="Numbers of sampling steps to try.")] = "8,12,24"
    guidance: Annotated[
        str | None, option("Guidance scales to try. [default: 1,2,3,4 with the prior as the guide, else 1,1.5,2,3]")
    ] = None
    guide: Annotated[str | None, option("Guides to try: prior, unconditional. [default: both]")] = None
    slope: Annotated[str | None, option("Slopes of the scale over sigma to try. [default: the model's]")] = None
    seed: Seed = 0
    device: Device = "auto"


# -- Runs and pictures -------------------------------------------------------------------------------------------------


@app.command("runs")
@dataclass(frozen=True)
class RunsOptions:
    """List runs with their state and main figures, newest first."""

    folder: Annotated[Path, typer.Argument(help="Folder of runs.", metavar="FOLDER")] = Path("runs")
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per line.")] = False


@app.command("serve")
@dataclass(frozen=True)
class ServeOptions:
    """Train and sample in the browser, or through an API. Needs the extra ui."""

    folder: Annotated[Path, typer.Argument(help="Folder of runs.", metavar="FOLDER")] = Path("runs")
    port: Annotated[int, numeric("Port; 0 takes a free one.", min=0, max=65535)] = 8737
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1"
    device: Device = "auto"


@app.command("report")
@dataclass(frozen=True)
class ReportOptions:
    """Write the page of a run, or one page of several runs."""

    runs: Annotated[list[Path], argument("Folders of runs.", "RUN...")]
    out: Annotated[Path | None, option("HTML file. [default: RUN/report.html; for several runs, beside them]")] = None


@app.command("inspect")
@dataclass(frozen=True)
class InspectOptions:
    """Check whether an autoencoder is fit for diffusion. Says what to change if it is not."""

    run: RunFolder
    data: RealPictures = None
    out: Annotated[Path | None, option("Folder to write inspection.html to. [default: RUN]")] = None
    device: Device = "auto"


@app.command("selftest")
@dataclass(frozen=True)
class SelftestOptions:
    """Check in about 20 seconds whether this machine is fit. Gives advice; the exit code is 0 if it is fit, else 2."""

    device: Device = "auto"


@data_app.command("portraits")
@dataclass(frozen=True)
class PortraitsOptions:
    """Write the built-in portraits as PNG files in class folders."""

    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.", min=1, max=LARGEST_SIDE)] = 64
    count: Annotated[int | None, option("Number of pictures, evenly over the classes. [default: all]")] = None
    out: Annotated[Path, typer.Option(help="Empty or new folder to write to.")] = Path("portraits")


@data_app.command("check")
@dataclass(frozen=True)
class CheckOptions:
    """Describe a folder of pictures. The exit code is 0 if training may start, else 2."""

    folder: Annotated[Path, argument("Folder of pictures; class subfolders become labels.", "FOLDER")]
    size: Annotated[int, typer.Option(help="Side of the training pictures in pixels.", min=1, max=LARGEST_SIDE)] = 64


@data_app.command("shards")
@dataclass(frozen=True)
class ShardsOptions:
    """Copy a folder of pictures into shards (WebDataset tar files). Run it again to continue a stopped copy."""

    folder: Annotated[Path, argument("Folder of pictures; class subfolders become labels.", "FOLDER")]
    out: Annotated[Path, option("Folder of the shards; other commands accept it as a folder of pictures.")]


app.add_typer(data_app, name="data")
