"""The plan's peak memory against that of the run, for ten recipes.

    python bench/memory.py [--only NAME ...] [--out FOLDER] [--budget 60s]

Each recipe is trained in a process of its own, on embedded portraits of its size, for a few steps a leg: how long a
run trains does not change what it holds. Prints a table: the recipe, the peak that the plan predicts, the peak of the
process (the most resident memory, VmHWM on Linux), and their ratio, which should be between 0.95 and 1.10.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from calotype.demo.portraits import write_portraits

STEPS = 3
"""Batches of 8 that each leg sees, about."""


class Case(NamedTuple):
    """Portraits of a size, and the settings of a run."""

    size: int
    count: int
    settings: dict[str, object]
    times: int = 1
    """The size of the files, in units of that of the run."""


LATENT: dict[str, object] = {"kind": "latent", "denoiser.text.kind": "none"}
CASCADE: dict[str, object] = {"kind": "cascade", "denoiser.text.kind": "none"}
WORDS: dict[str, object] = {"denoiser.text.kind": "bytes"}
CASES = {
    "latent 32": Case(32, 2400, {**LATENT, "stages": [32]}),
    "latent 64": Case(64, 4800, {**LATENT, "stages": [64]}),
    "latent 64, words": Case(64, 4800, {**LATENT, "stages": [64], **WORDS}),
    "latent 64, crops": Case(64, 990, {**LATENT, "stages": [64], "denoiser.views": 15}, 2),
    "latent 128": Case(128, 1200, {**LATENT, "stages": [128]}),
    "pixels 32": Case(32, 2400, {**CASCADE, "stages": [32]}),
    "cascade 32 to 64, words": Case(64, 1200, {**CASCADE, "stages": [32, 64], **WORDS}),
    "cascade 64 to 128": Case(128, 1200, {**CASCADE, "stages": [64, 128]}),
    "latent 64 to 256": Case(256, 600, {**LATENT, "stages": [64, 256]}),
    "latent 512": Case(512, 120, {**LATENT, "stages": [512]}),
    "latent 64 to 1024": Case(1024, 40, {**LATENT, "stages": [64, 1024]}),
}


def measured(case: Case, folder: Path, budget: str) -> tuple[int, int]:
    """Bytes that the plan predicts, and that the run has held."""
    side = case.times * case.size
    pictures = folder / f"portraits-{side}-{case.count}"
    if not pictures.exists():
        write_portraits(side, case.count, pictures)
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    legs = ["denoiser", *(f"enlarge.{size}" for size in case.settings["stages"][1:])]  # type: ignore[index]
    legs += ["autoencoder"] if case.settings["kind"] == "latent" else []
    settings = {**case.settings, **{f"{leg}.images": 8 * STEPS for leg in legs}}
    chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = ["train", str(pictures), "--size", str(case.size), "--budget", budget, "--out", str(run), "--force"]
    with (run.parent / "output.txt").open("w") as output:
        subprocess.run([sys.executable, "-m", "calotype", *command, *chosen], check=True, stdout=output, stderr=output)
    predicted = json.loads((run / "plan.json").read_text())["predicted"]["peak_memory_bytes"]
    return predicted, json.loads((run / "run.json").read_text())["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help="; ".join(CASES))
    parser.add_argument("--out", type=Path, help="a folder that keeps pictures and runs")
    parser.add_argument("--budget", default="60s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| recipe | predicted, GB | real, GB | ratio |\n| --- | --- | --- | --- |", flush=True)
        for name in arguments.only:
            predicted, real = measured(CASES[name], folder, arguments.budget)
            print(f"| {name} | {predicted / 1e9:.2f} | {real / 1e9:.2f} | {predicted / real:.2f} |", flush=True)


if __name__ == "__main__":
    main()
