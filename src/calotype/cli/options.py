"""Every command with its options, as a class: typer makes an object of it from the command line. Torch is not imported.

The docstring of a class is its help. `calotype.cli.commands` has the function that does the work of each.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calotype.bounds import LARGEST_SEED, LARGEST_SIDE, MAX_FRAMES, MAX_SAMPLES
from calotype.cli.quantities import byte_count, seconds, speed

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


def argument(help: str, metavar: str | None = None) -> Any:
    return typer.Argument(help=help, metavar=metavar, show_default=False)


RunFolder = Annotated[Path, argument("Folder of a run.", "RUN")]
RealPictures = Annotated[Path | None, option("Folder of real pictures. [default: those of the run]")]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write TensorBoard events into RUN/tensorboard, also when resumed."),
]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal pictures.", min=-LARGEST_SEED, max=LARGEST_SEED)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
RankCount = Annotated[
    int, typer.Option("--ranks", help="Processes that work together on this machine; torchrun starts them.", min=1)
]
Force = Annotated[bool, typer.Option("--force", help="Continue although checks of the autoencoder failed.")]
SampleCount = Annotated[int, typer.Option(help="Number of samples, of each run or setting.", max=MAX_SAMPLES)]
CanvasSize = Annotated[str | None, option("Width x height in pixels, as in 256x384. [default: the training size]")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Settings that replace those stored with a model."""

    steps: Annotated[int | None, option("Number of sampling steps.")] = None
    guidance: Annotated[float | None, option("Guidance scale; 1 disables it.")] = None
    sampler: Annotated[str | None, option("Such as dpm_solver or euler; a wrong name lists all.")] = None

    def changes(self) -> dict[str, Any]:
        """As keywords of `Model.sample`."""
        return {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}


# -- Training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingOptions:
    """Pictures, recipe, machine and time of a run."""

    folder: Annotated[Path | None, argument("Folder of pictures; class subfolders become labels.")]
    """None: the built-in portraits."""
    size: Annotated[int | None, option("Side of the pictures in pixels. [default: 64]", min=1, max=LARGEST_SIDE)] = None
    budget: Annotated[
        float, option("Time for the whole command: 20s, 10m, 1h30m. [default: 30m]", parser=seconds, metavar="TIME")
    ] = 1800.0
    """Seconds."""
    kind: Annotated[Literal["latent", "cascade"] | None, option("What to train. [default: latent]")] = None
    """None: the recipe's, else latent."""
    recipe: Annotated[Path | None, option("TOML file of settings (see recipes/).")] = None
    overrides: Annotated[list[str] | None, option("A setting, such as denoiser.backbone.width=384.", "--set")] = None
    device: Device = "auto"
    space: Annotated[
        str | None,
        option("Autoencoder: own, or diffusers:PATH with the folder of an autoencoder. [default: own]"),
    ] = None
    """None: the recipe's, else own."""
    source: Annotated[
        Path | None, option("Finished run from whose networks to start, with other or more pictures.", "--from")
    ] = None
    started: float = field(default_factory=time.time, init=False)
    """When the budget began to run, in seconds since the epoch."""

    def counted_from_process_start(self) -> None:
        """Of a command, the budget is the time of the whole process; of a rank, that of its torchrun."""
        import psutil

        process = psutil.Process()
        launcher = process.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
        object.__setattr__(self, "started", (launcher or process).create_time())


@app.command("train")
@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Train an image generator on a folder of pictures: plan, train, sample and report."""

    out: Annotated[Path | None, option("Folder of the new run. [default: runs/NAME-SIZE-N]")] = None
    force: Force = False
    ranks: RankCount = 1
    serve: Annotated[bool, typer.Option("--serve", help="Show the run on a page while it trains: see serve.")] = False
    tensorboard: TensorBoard = False


@app.command("plan")
@dataclass(frozen=True)
class PlanOptions(TrainingOptions):
    """Show what `train` would do, why, and what it would cost; also for a machine that is not here."""

    flops: Annotated[
        float | None,
        option("Of a machine that is not here, with --memory: operations a second, such as 5e14.", parser=speed),
    ] = None
    memory: Annotated[
        int | None, option("Of a machine that is not here: free memory, such as 80GB.", parser=byte_count)
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
    """Continue a run that was stopped, or with --budget one that is finished."""

    run: RunFolder
    device: Device = "auto"
    force: Force = False
    data: Annotated[Path | None, option("Where its pictures are now, or others. [default: where they were]")] = None
    budget: Annotated[
        float | None,
        option("More time for a finished run, whose networks are trained further.", parser=seconds, metavar="TIME"),
    ] = None
    """Seconds."""
    ranks: RankCount = 1
    tensorboard: TensorBoard = False
    started: float = field(default_factory=time.time, init=False)
    """When it began, in seconds since the epoch."""


@app.command("preview")
@dataclass(frozen=True)
class PreviewOptions(SamplingOptions):
    """Sample from a run as it is now, also while it trains: the averaged weights of its newest checkpoint."""

    run: RunFolder
    count: Annotated[int, typer.Option(help="Number of pictures.", max=MAX_SAMPLES)] = 16
    seed: Seed = 0
    out: Annotated[Path | None, option("PNG file. [default: RUN/preview.png]")] = None
    checkpoint: Annotated[
        str | None, option("One of RUN/checkpoints, such as denoiser-0000016384. [default: the newest]", metavar="NAME")
    ] = None
    device: Device = "auto"


# -- Sampling ----------------------------------------------------------------------------------------------------------


@app.command("sample")
@dataclass(frozen=True)
class SampleOptions(SamplingOptions):
    """Generate pictures with a trained model: a PNG file of each, and a grid."""

    run: RunFolder
    count: Annotated[int | None, option("Number of pictures. [default: 16, or one per prompt]", max=MAX_SAMPLES)] = None
    label: Annotated[str | None, option("Class of the pictures. [default: each in turn; with --from: none]")] = None
    prompt: Annotated[str | None, option("What the pictures show, in words.")] = None
    negative: Annotated[str | None, option("Negative prompt: what to avoid.")] = None
    prompts: Annotated[Path | None, option("File with one prompt per line.")] = None
    seed: Seed = 0
    picture: Annotated[Path | None, option("Picture to make variations of (image-to-image).", "--from")] = None
    strength: Annotated[
        float | None, option("Strength of image-to-image, from 0 to 1. [default: 0.6; with --mask 1]")
    ] = None
    mask: Annotated[Path | None, option("Picture of the same size; repaint only its white area (inpainting).")] = None
    size: CanvasSize = None
    out: Annotated[Path | None, option("Folder to write to. [default: RUN/samples-N]")] = None
    device: Device = "auto"
    ranks: RankCount = 1


@app.command("interpolate")
@dataclass(frozen=True)
class InterpolateOptions(SamplingOptions):
    """Interpolate between two pictures of a model: seeds, classes or prompts."""

    run: RunFolder
    out: Annotated[Path, option("FILE.webp or FILE.gif: an animation; FILE.png: a strip.")]
    seeds: Annotated[str, typer.Option(help="Seeds of the first and the last picture.")] = "1,2"
    frames: Annotated[int, typer.Option(help="Number of pictures, both ends included.", max=MAX_FRAMES)] = 12
    labels: Annotated[str | None, option("First and last class: a,b. [default: the first class]")] = None
    prompt: Annotated[str | None, option("What all pictures show, in words.")] = None
    prompts: Annotated[str | None, option("First and last prompt: 'a red cat|a blue dog'.")] = None
    size: CanvasSize = None
    device: Device = "auto"


@app.command("enlarge")
@dataclass(frozen=True)
class EnlargeOptions:
    """Enlarge pictures with a super-resolution stage of a cascade."""

    run: RunFolder
    pictures: Annotated[Path, argument("A picture, or a folder of pictures.")]
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("enlarged")
    size: Annotated[int | None, option("Output size of the stage to use, in pixels. [default: the last stage]")] = None
    label: Annotated[str | None, option("Class of the pictures.")] = None
    seed: Seed = 0
    device: Device = "auto"


@app.command("export")
@dataclass(frozen=True)
class ExportOptions(SamplingOptions):
    """Write a model for other software: ONNX graphs, a page for browsers, or a folder of diffusers."""

    run: RunFolder
    to: Annotated[Literal["onnx", "web", "diffusers"], option("onnx, web or diffusers.")]
    out: Annotated[Path | None, option("Folder to write to. [default: RUN/onnx, RUN/web or RUN/diffusers]")] = None
    runtime: Annotated[
        Path | None,
        option("With --to web: npm package of onnxruntime-web. [default: node_modules/onnxruntime-web]"),
    ] = None


@app.command("push")
@dataclass(frozen=True)
class PushOptions:
    """Upload a model, or an exported folder, to the Hugging Face hub."""

    folder: Annotated[Path, argument("Folder of a run, of a model, or of an export.")]
    repository: Annotated[str, argument("OWNER/NAME on the hub.", "OWNER/NAME")]
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; else it is private.")] = False


# -- Evaluation --------------------------------------------------------------------------------------------------------


@app.command("evaluate")
@dataclass(frozen=True)
class EvaluateOptions(SamplingOptions):
    """Measure sample quality, memorisation and prompt alignment of a run."""

    run: RunFolder
    data: RealPictures = None
    count: Annotated[
        int, typer.Option(help="Number of samples; for captioned portraits, in each language.", max=MAX_SAMPLES)
    ] = 200
    features: Annotated[
        Literal["lite0", "inception", "dinov2", "clip"], typer.Option(help="Network of the distances; inception: FID.")
    ] = "lite0"
    features_weights: Annotated[
        Path | None, option("Its weights: a safetensors file of Inception, a folder of transformers of the others.")
    ] = None
    seed: Seed = 0
    out: Annotated[Path | None, option("Folder to write to. [default: RUN, with its report and model card]")] = None
    device: Device = "auto"
    ranks: RankCount = 1


@app.command("compare")
@dataclass(frozen=True)
class CompareOptions:
    """Compare runs: error propagation, cost, quality, overfitting and stability."""

    runs: Annotated[list[Path], argument("Folders of finished runs.", "RUN...")]
    out: Annotated[Path, option("Folder to write compare.html and compare.json to.")]
    data: Annotated[Path | None, option("Folder of real pictures. [default: those of the first run]")] = None
    count: SampleCount = 200
    seed: Seed = 0
    device: Device = "auto"


@app.command("sweep")
@dataclass(frozen=True)
class SweepOptions:
    """Search steps, guides and guidance scales on validation pictures, and store the best with the model."""

    run: RunFolder
    data: RealPictures = None
    count: SampleCount = 200
    steps: Annotated[str, typer.Option(help="Numbers of sampling steps to try.")] = "8,12,24"
    guidance: Annotated[
        str | None, option("Guidance scales to try. [default: 1,2,3,4 with the prior as the guide, else 1,1.5,2,3]")
    ] = None
    guide: Annotated[str | None, option("prior or unconditional. [default: both]")] = None
    slope: Annotated[str | None, option("Slopes of the scale over sigma to try. [default: the model's]")] = None
    seed: Seed = 0
    device: Device = "auto"


# -- Runs and pictures -------------------------------------------------------------------------------------------------


@app.command("runs")
@dataclass(frozen=True)
class RunsOptions:
    """List runs with their state and main figures, newest first."""

    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs")
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per line.")] = False


@app.command("serve")
@dataclass(frozen=True)
class ServeOptions:
    """Show runs on a page in the browser, start them, and sample; with an API. Needs the extra ui."""

    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs")
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8737
    host: Annotated[str, typer.Option(help="Address to listen at. Another than this machine's own lets others in.")] = (
        "127.0.0.1"
    )
    device: Device = "auto"


@app.command("report")
@dataclass(frozen=True)
class ReportOptions:
    """Write the page of a run, or one page of several runs."""

    runs: Annotated[list[Path], argument("Folders of runs.", "RUN...")]
    out: Annotated[Path | None, option("HTML file. [default: RUN/report.html; of several runs, beside them]")] = None


@app.command("inspect")
@dataclass(frozen=True)
class InspectOptions:
    """Check whether the autoencoder of a run is fit for diffusion, and what to change if it is not."""

    run: RunFolder
    data: RealPictures = None
    out: Annotated[Path | None, option("Folder to write inspection.html to. [default: RUN]")] = None
    device: Device = "auto"


@app.command("selftest")
@dataclass(frozen=True)
class SelftestOptions:
    """Say in about 20 seconds whether this machine is fit, with advice; the exit code is 0 if it is, else 2."""

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
    """Describe a folder of pictures; the exit code is 0 if training may start, else 2."""

    folder: Annotated[Path, argument("Folder of pictures; class subfolders become labels.")]
    size: Annotated[int, typer.Option(help="Side of the training pictures in pixels.", min=1, max=LARGEST_SIDE)] = 64


@data_app.command("shards")
@dataclass(frozen=True)
class ShardsOptions:
    """Copy a folder of pictures into shards (tar files in the layout of WebDataset); interrupted, it goes on."""

    folder: Annotated[Path, argument("Folder of pictures; class subfolders become labels.")]
    out: Annotated[Path, option("Folder of the shards; commands take it as a folder of pictures.")]


app.add_typer(data_app, name="data")
