"""`calotype export` and `calotype push`: a model for other software, and for other people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from calotype.cli.commands.reading import check_empty
from calotype.cli.console import Console
from calotype.cli.options import ExportOptions, PushOptions
from calotype.data.listing import first_names
from calotype.export.bundle import SETTINGS, export_onnx
from calotype.export.check import Difference
from calotype.export.diffusers_folder import PIPELINE, export_diffusers
from calotype.export.hub import push
from calotype.export.web import export_web
from calotype.files import read_manifest
from calotype.model import load
from calotype.report.card import CARD, SAMPLES_PICTURE
from calotype.types import UserError


def export(options: ExportOptions, console: Console) -> Path:
    """Writes the folder, says how far its pictures are from ours, and returns it."""
    out = options.out or options.run / options.to
    check_empty(out, PIPELINE if options.to == "diffusers" else SETTINGS)
    require_own(out)
    if options.runtime is not None and options.to != "web":
        raise UserError(f"--runtime is for --to web, but --to is {options.to}; leave it out")
    model = load(options.run, "cpu")
    model = replace(model, samplings=model.settings(options.changes()))
    cards = [folder / CARD for folder in (options.run / "model", options.run)]
    card = next((file for file in cards if file.is_file()), None)
    write: dict[str, Callable[..., Difference]] = {
        "onnx": export_onnx,
        "web": partial(export_web, runtime=options.runtime),
        "diffusers": export_diffusers,
    }
    with console.bar("export") as progress:
        difference = write[options.to](model, out, progress=progress, card=card)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    console.say(f"{out} ({size:,.0f} MB): {difference}")
    return out


def require_own(out: Path) -> None:
    """Raises `UserError` where something else was put into an earlier export: it is replaced with all that it holds."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    own = {*read_manifest(out), "manifest.json", "stages", "vae", "__pycache__"}
    if others := sorted({path.name for path in out.iterdir()} - own):
        raise UserError(
            f"--out {out} has what no export has put there: {first_names(others)}; move it away, or take another"
        )


def push_folder(options: PushOptions, console: Console) -> str:
    """Uploads a folder, and returns its address."""
    model = options.folder / "model"
    folder = model if (model / "model.json").is_file() else options.folder
    with console.bar("upload"):
        address = push(folder, options.repository, not options.public, beside=(CARD, SAMPLES_PICTURE))
    console.say(f"{folder} is at {address}")
    return address
