"""Options that several commands share, and the parsers of those that are more than a number or a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Guide = Literal["prior", "unconditional"]


def option(help: str, *names: str) -> Any:
    """An option whose default is None, or is explained in `help`."""
    return typer.Option(*names, help=help, show_default=False)


Folder = Annotated[Path, typer.Argument(help="Folder of pictures; class subfolders become labels.", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Size = Annotated[int | None, option("Side of the pictures in pixels. [default: 64]")]
Budget = Annotated[str, typer.Option(help="Time for the whole command: 20s, 10m, 1h30m.")]
Kind = Annotated[str | None, option("What to train: latent or cascade. [default: latent]")]
Space = Annotated[
    str | None,
    option("Autoencoder: own, or diffusers:PATH with the folder of an AutoencoderKL. [default: own]"),
]
NewRun = Annotated[Path | None, option("Folder of the new run. [default: runs/NAME-SIZE-N]", "--out")]
RecipeFile = Annotated[Path | None, option("TOML file of settings (see recipes/).", "--recipe")]
Settings = Annotated[list[str] | None, option("A setting, such as denoiser.backbone.width=384.", "--set")]
Data = Annotated[Path | None, option("Folder of real pictures. [default: those of the run]")]
Count = Annotated[int, typer.Option(help="Number of samples, of each run or setting.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal pictures.")]
Label = Annotated[str | None, option("Class of the pictures.")]
CanvasSize = Annotated[str | None, option("Width x height in pixels, as in 256x384. [default: the training size]")]
Steps = Annotated[int | None, option("Number of sampling steps.")]
Guidance = Annotated[float | None, option("Guidance scale; 1 disables it.")]
SamplerName = Annotated[str | None, option("euler, heun, dpm_solver or ancestral.", "--sampler")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Force = Annotated[bool, typer.Option("--force", help="Continue although checks of the autoencoder failed.")]


def seconds(text: str) -> float:
    """A time such as `90`, `20s`, `10m`, `1h30m` or `2d`. Raises `UserError` for anything else, and for 0."""
    from calotype.types import UserError

    text = text.strip().lower()
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", f"{text}s" if text.isdigit() else text)
    parts = units.groups() if units else ()
    total = sum(int(part or 0) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if total < 1:
        raise UserError(f"--budget is {text!r}, but must be a time such as 20s, 10m or 1h30m")
    return float(total)


def guides(text: str | None) -> tuple[Guide, ...]:
    """Guides between commas; none stands for all of them. Raises `UserError` for another word."""
    from calotype.types import UserError

    known: dict[str, Guide] = {"prior": "prior", "unconditional": "unconditional"}
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--guide is {unknown[0]!r}, but must be prior, unconditional, or both between commas")
    return tuple(known[name] for name in names)


def numbers(name: str, text: str, least: int) -> list[float]:
    """Numbers between commas, sorted. Raises `UserError` for anything else, and for numbers below `least`."""
    from calotype.types import UserError

    pattern, parts = r"\d+" if name == "steps" else r"\d+(\.\d+)?", [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(pattern, part) and float(part) >= least for part in parts):
        raise UserError(
            f"--{name} is {text!r}, but must be numbers of at least {least} between commas, such as 8,16,32"
        )
    return sorted({float(part) for part in parts})
