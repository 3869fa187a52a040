"""The options that several commands share, and how those are read that are more than a number or a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

Guide = Literal["prior", "unconditional"]

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
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 disables it.", show_default=False)]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", help="euler, heun, dpm_solver or ancestral.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Force = Annotated[bool, typer.Option("--force", help="Go on even with an autoencoder that is not fit to diffuse.")]


def seconds(text: str) -> float:
    """`90`, `20s`, `10m`, `1h30m`, `2d` in seconds. Raises `UserError` for anything else, and for nothing at all."""
    from calotype.types import UserError

    text = text.strip().lower()
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", f"{text}s" if text.isdigit() else text)
    total = (
        sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True))
        if parts
        else 0
    )
    if total < 1:
        raise UserError(f"--budget is {text!r}, but must be a time such as 20s, 10m or 1h30m")
    return float(total)


def guides(text: str | None) -> tuple[Guide, ...]:
    """The guides that are named, between commas; none stands for all. Raises `UserError` for another word."""
    from calotype.types import UserError

    known: dict[str, Guide] = {"prior": "prior", "unconditional": "unconditional"}
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--guide is {unknown[0]!r}, but must be prior, unconditional, or both between commas")
    return tuple(known[name] for name in names)


def listed(name: str, text: str, least: int) -> list[float]:
    """Numbers between commas. Raises `UserError` for anything else, and for numbers below `least`."""
    from calotype.types import UserError

    kind, parts = r"\d+" if name == "steps" else r"\d+(\.\d+)?", [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(kind, part) and float(part) >= least for part in parts):
        raise UserError(
            f"--{name} is {text!r}, but must be numbers of at least {least} between commas, such as 8,16,32"
        )
    return sorted({float(part) for part in parts})
