"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="Folder of pictures; class subfolders become labels.", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Size = Annotated[int | None, typer.Option(help="Side of the pictures in pixels. [default: 64]", show_default=False)]
Budget = Annotated[str, typer.Option(help="How long it may take in all: 20s, 10m, 1h30m.")]
Kind = Annotated[
    str | None, typer.Option(help="What to train: latent or cascade. [default: latent]", show_default=False)
]
Space = Annotated[
    str | None,
    typer.Option(
        help="Where the autoencoder comes from: own, or diffusers:PATH, the folder of an AutoencoderKL. [default: own]",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Where to write. [default: runs/NAME-SIZE-N]", show_default=False)]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file of settings.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, as in denoiser.backbone.width=384.", show_default=False)
]
CanvasSize = Annotated[
    str | None,
    typer.Option(help="Width x height in pixels, as in 256x384. [default: as learned]", show_default=False),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.", show_default=False)]
Guidance = Annotated[float | None, typer.Option(help="1 is none; 2 follows label and prompt more.", show_default=False)]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", help="euler, heun, dpm_solver or ancestral.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Force = Annotated[bool, typer.Option("--force", help="Go on even with an autoencoder that is not fit to diffuse.")]
