"""`calotype preview`: samples of a run as it is now, also while it trains; its lock and state stay untouched."""

from __future__ import annotations

import os
from pathlib import Path

from calotype.cli.commands.sampling import grid_columns
from calotype.cli.console import Console
from calotype.cli.options import PreviewOptions
from calotype.data.images import grid
from calotype.files import write_png
from calotype.machine import find_device
from calotype.run import Run
from calotype.training.snapshot import snapshot
from calotype.types import UserError


def preview(options: PreviewOptions, console: Console) -> Path:
    """Writes one picture, a grid of samples, and returns its path."""
    if options.count < 1:
        raise UserError(f"count is {options.count}, but must be at least 1")
    if options.out is not None and os.path.lexists(options.out):
        raise UserError(f"--out {options.out} already exists and is not overwritten; choose another name")
    model, words = snapshot(options.run, find_device(options.device), options.checkpoint)
    out = options.out or options.run / "preview.png"
    last = Run.open(options.run).latest("preview", "denoiser")
    prompts = [str(prompt) for prompt in last.get("prompts") or []] if model.text_encoder else []
    with console.bar("samples") as progress:
        pictures = []
        for picture in model.draw(options.count, seed=options.seed, prompt=prompts or None, **options.changes()):
            pictures.append(picture)
            progress(len(pictures), options.count)
    write_png(out, grid(pictures, grid_columns(len(pictures))), new=options.out is not None)
    console.say(f"{out}: {options.count} samples of {words}")
    return out
