"""The track on which changes are judged: fixed portraits to train on, others to judge with, and seeds in pairs.

    python bench/track.py prepare
    python bench/track.py train --name base --budget 10m --seeds 0,1,2
    python bench/track.py train --name wide --budget 10m --seeds 0,1,2 --set denoiser.backbone.width=192
    python bench/track.py score CACHE/runs/base/* CACHE/runs/wide/* --count 1000
    python bench/track.py compare base wide

Every call appends what it found to `results.jsonl` in the cache, with the commit, the machine and the seconds. A rival
needs two functions in place of `train_one` and `sample`: one from a folder of class folders to a run, one from a run to
pictures of evenly many styles; `Track.score` takes any pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scoring import Found, Track

from calotype.data.images import grid, images_from_pil, pils_from_images
from calotype.machine import examine
from calotype.model import load
from calotype.recipe import Recipe
from calotype.tables import read_value
from calotype.types import Images, UserError

CACHE = Path.home() / ".cache" / "calotype" / "track"
FEWEST_PAIRS = 3
SHOWN = 60


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(str(error))


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(run, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__, help=text, description=text)
        one.set_defaults(run=run)
        one.add_argument("--cache", type=Path, default=CACHE, help=f"Folder of pictures, runs and results. [{CACHE}]")
        one.add_argument("--size", type=int, default=64, help="Side of the pictures in pixels. [64]")
        return one

    command(prepare, "Write the portraits into folders, or check that they are as they were written.")
    one = command(train, "Train one run for each seed, as `calotype train` does, on the training portraits alone.")
    one.add_argument("--name", required=True, help="Name of the runs; they go into CACHE/runs/NAME/seed-N.")
    one.add_argument("--budget", default="10m", help="Time of each run: 20s, 10m, 1h30m. [10m]")
    one.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="Seeds of the runs, with commas between. [0,1,2]")
    one.add_argument("--set", action="append", default=[], dest="settings", help="One setting, as of `calotype train`.")
    one = command(score, "Sample from finished runs, and measure the samples against portraits that were held out.")
    one.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Folder of a finished run.")
    scored(one)
    one.add_argument("--seed", type=int, default=0, help="Seed of the samples. [0]")
    one.add_argument("--sheets", type=Path, help="Folder for pictures of the samples, and of those without features.")
    one = command(compare, "Compare two sets of runs that are scored already, in pairs of equal seed.")
    one.add_argument("a", help="Name of runs, as given to `train`, or a folder with runs named seed-N.")
    one.add_argument("b", help="The other one.")
    scored(one)
    return whole


def scored(one: argparse.ArgumentParser) -> None:
    one.add_argument("--count", type=int, default=180, help="How many samples; 1000 for what is reported. [180]")
    one.add_argument(
        "--against", choices=("test", "validation"), default="test", help="Use validation for choices. [test]"
    )
    one.add_argument("--set-sampling", nargs="+", default=[], metavar="NAME=VALUE",
                     help="Sampling in place of what is stored with the model, as in guidance=3 steps=24.")  # fmt: skip


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


# -- Commands ----------------------------------------------------------------------------------------------------------


def prepare(wanted: argparse.Namespace) -> None:
    track = Track(wanted.cache, wanted.size)
    for part in ("train", "validation", "test", "floor"):
        print(f"{track.folder / part}: {len(list((track.folder / part).glob('*/*.png'))):,} pictures")


def train(wanted: argparse.Namespace) -> None:
    track = Track(wanted.cache, wanted.size)
    for seed in wanted.seeds:
        run, start = wanted.cache / "runs" / wanted.name / f"seed-{seed}", time.perf_counter()
        train_one(track.folder / "train", run, wanted.size, wanted.budget, [*wanted.settings, f"seed={seed}"])
        record(
            wanted.cache,
            start,
            command="train",
            run=str(run),
            seed=seed,
            budget=wanted.budget,
            settings=wanted.settings,
        )


def score(wanted: argparse.Namespace) -> None:
    track, changes = Track(wanted.cache, wanted.size, wanted.against), sampling_changes(wanted.set_sampling)
    start = time.perf_counter()
    rows = [("other real pictures", track.floor(wanted.count))]
    record(wanted.cache, start, command="floor", against=wanted.against, count=wanted.count, **rows[0][1])
    for run in wanted.runs:
        start = time.perf_counter()
        images, styles, sampling = sample(run, wanted.count, wanted.seed, changes)
        sampled = time.perf_counter() - start
        found = track.score(images, styles)
        asked = {"against": wanted.against, "count": wanted.count, "changes": changes, "sample_seed": wanted.seed}
        record(wanted.cache, start, command="score", run=str(run.resolve()), sampling=sampling, sample_seconds=sampled,
               **asked, **found)  # fmt: skip
        rows.append((f"{run.parent.name}/{run.name}", found))
        if wanted.sheets:
            write_sheets(wanted.sheets / f"{run.parent.name}-{run.name}", track, images, styles)
    print(f"{wanted.count} pictures each against {len(track.real(wanted.against)[0])} of {wanted.against}")
    print("\n".join(table(rows)))


def compare(wanted: argparse.Namespace) -> None:
    changes = sampling_changes(wanted.set_sampling)
    asked = {"against": wanted.against, "count": wanted.count, "changes": changes}
    a, b = (scores_by_seed(wanted.cache, name, asked) for name in (wanted.a, wanted.b))
    if not (seeds := sorted(set(a) & set(b))):
        raise UserError(
            f"{wanted.a} and {wanted.b} have no scores of the same seed with {asked}; run `score` on them first"
        )
    print(
        f"{wanted.b} minus {wanted.a}, {len(seeds)} seeds ({', '.join(map(str, seeds))}), {wanted.count} samples each"
    )
    for network in sorted(set(a[seeds[0]]) & set(b[seeds[0]])):
        differences = [b[seed][network] - a[seed][network] for seed in seeds]
        print(f"FD-{network}: {verdict(differences)}")


# -- Calotype ----------------------------------------------------------------------------------------------------------


def train_one(folder: Path, run: Path, size: int, budget: str, settings: Sequence[str]) -> None:
    """What a user does who types `calotype train`, with this version of it."""
    start = [sys.executable, "-c", "from calotype.cli.app import main; main()", "train", str(folder)]
    split = ["split.test=0"] if "split" in recipe_keys() else []  # the track has test pictures of its own
    sets = [word for setting in [*split, *settings] for word in ("--set", setting)]
    subprocess.run([*start, "--size", str(size), "--budget", budget, "--out", str(run), *sets], check=True)


def recipe_keys() -> set[str]:
    return set(Recipe.model_fields)


def sample(run: Path, count: int, seed: int, changes: dict[str, Any]) -> tuple[Images, list[str], list[Found]]:
    """Pictures as `calotype sample` makes them, evenly of all styles; the styles; how they were sampled."""
    model = load(run)
    images = torch.cat([images_from_pil(picture) for picture in model.draw(count, seed=seed, **changes)])
    sampling = [one.model_dump(mode="json") for one in model.settings(changes)]
    return images, [model.classes[label] for label in model.labels(count)], sampling


def sampling_changes(settings: Sequence[str]) -> dict[str, Any]:
    pairs = [setting.partition("=")[::2] for setting in settings]
    return {name: read_value(value) for name, value in pairs}


# -- Results -----------------------------------------------------------------------------------------------------------


def record(cache: Path, start: float, **found: Any) -> None:
    about = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "commit": commit(), "machine": str(examine()),
        "arguments": sys.argv[1:], "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "results.jsonl").open("a") as file:
        file.write(json.dumps(about | found) + "\n")


def commit() -> str:
    """With a plus where files are changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head.strip() + ("+" if changed else "")


def scores_by_seed(cache: Path, name: str, asked: Found) -> dict[int, dict[str, float]]:
    """The latest Fréchet distances by network of each run, asked for in this way."""
    folder = Path(name) if Path(name).is_dir() else cache / "runs" / name
    runs = {str(run.resolve()): int(run.name.removeprefix("seed-")) for run in folder.glob("seed-*")}
    return {
        runs[one["run"]]: {network: found["frechet"]["value"] for network, found in one["distances"].items()}
        for one in results(cache)
        if one["command"] == "score" and one["run"] in runs and asked.items() <= one.items()
    }


def results(cache: Path) -> Iterator[Found]:
    if (file := cache / "results.jsonl").exists():
        yield from map(json.loads, file.read_text().splitlines())


def verdict(differences: Sequence[float]) -> str:
    """Better is lower by more than a standard error, over three paired seeds or more."""
    mean, count = float(np.mean(differences)), len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    shown = count >= FEWEST_PAIRS and abs(mean) > error
    words = ("better" if mean < 0 else "worse") if shown else "not shown"
    return f"{mean:+.2f}, standard error {error:.2f}: {words}"


def table(rows: Sequence[tuple[str, Found]]) -> list[str]:
    names = list(rows[0][1]["distances"])
    heads = [f"FD-{name}" for name in names] + ["kernel", "precision", "recall", "density", "coverage"]
    lines = ["| | " + " | ".join([*heads, "features (real)", "dark skin (real)"]) + " |"]
    lines.append("| --- " * (lines[0].count("|") - 1) + "|")
    for name, found in rows:
        first = found["distances"][names[0]]
        cells = [value(found["distances"][network]["frechet"], ".4g") for network in names]
        cells += [value(first["kernel_distance"], ".3f")] + [value(first[key], ".2f") for key in heads[-4:]]
        cells += [share(found["faces"][key]) for key in ("features", "dark skin")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def value(found: Found, form: str) -> str:
    interval = f" ±{(found['high'] - found['low']) / 2:{form.replace('4', '2')}}" if "low" in found else ""
    return f"{found['value']:{form}}{interval}"


def share(found: Found) -> str:
    within = "within" if found["within_interval"] else "outside"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] ({found['real']['value']:.3f}: {within})"


def write_sheets(folder: Path, track: Track, images: Images, styles: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grid(pils_from_images(images[:SHOWN]), 12).save(folder / "samples.png")
    lost = images[~track.judges.have_features(images, styles)]
    if len(lost):
        grid(pils_from_images(lost[:SHOWN]), 12).save(folder / "without-features.png")


if __name__ == "__main__":
    main()
