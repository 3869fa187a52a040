"""The track on which changes and peers are judged: fixed pictures to train on, others to judge with, equal seconds.

    python bench/track.py prepare --pictures portraits
    python bench/track.py train --name base --budget 10m
    python bench/track.py train --name wide --budget 10m --set denoiser.backbone.width=192
    python bench/track.py train --peer plain_latent --rates 3e-4,1e-3,2e-3 --seeds 0
    python bench/track.py score RUN ... --count 1000
    python bench/track.py compare base wide
    python bench/track.py table --count 180
    python bench/track.py plot --count 1000 --out quality.svg

Runs go into CACHE/runs/PICTURES-SIZE/NAME/seed-N; the name of a peer's run holds its rate and budget. Every call
appends what it measured to `results.jsonl` in the cache, with the commit, the machine and the seconds. A peer is a
module in `bench/peers`, which says what it must have. Threads are those of the machine; for one core each:
OMP_NUM_THREADS=1 taskset -c N.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import quality
import torch
from peers import TASK, Task
from scipy.stats import t as student
from scoring import Measures, Track
from sets import SETS, fingerprint

from calotype.cli.process import SPINS
from calotype.cli.quantities import seconds
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.heap import LARGEST_KEPT, MOST_KEPT
from calotype.machine import examine
from calotype.types import Images, UserError

CACHE = Path.home() / ".cache" / "calotype" / "track"
FEWEST_PAIRS = 3
SHEET = 60
TUNED = {
    "GOMP_SPINCOUNT": SPINS,
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST_KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(MOST_KEPT),
}
"""All peers have the threads and the memory allocator that Calotype's command line has, see `tune_process`."""
ASKED = ("pictures", "size", "against", "count", "sampling")
"""Results are compared where these are equal, and the split."""


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(str(error))


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__, help=text, description=text)
        one.set_defaults(run=run)
        one.add_argument("--cache", type=Path, default=CACHE, help=f"Folder of pictures, runs and results. [{CACHE}]")
        one.add_argument("--pictures", choices=sorted(SETS), default="portraits", help="Picture set. [portraits]")
        one.add_argument("--size", type=int, default=64, help="Side of the pictures in pixels. [64]")
        return one

    command(prepare, "Write a picture set into folders, or check that they are as they were written.")
    one = command(train, "Train one run for each rate and seed on the training pictures alone.")
    one.add_argument("--peer", default="calotype", help="Module in bench/peers. [calotype]")
    one.add_argument("--name", help="Name of the runs. [the peer's, with rate and budget]")
    one.add_argument("--budget", default="10m", help="Time of each run: 20s, 10m, 1h. [10m]")
    one.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="Seeds of the runs, with commas between. [0,1,2]")
    one.add_argument("--rates", type=rates, default=[0.0], help="Learning rates of a peer, with commas between.")
    one.add_argument("--set", action="append", default=[], dest="settings", help="One setting, as of `calotype train`.")
    one = command(score, "Sample from finished runs, and measure the samples against pictures that were held out.")
    one.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Folder of a finished run.")
    measured(one)
    one.add_argument("--sheets", type=Path, help="Folder for grids of the samples, and of faces without features.")
    one = command(compare, "Compare two sets of runs that are scored already, in pairs of equal seed.")
    one.add_argument("a", help="Name of runs, as given to `train`.")
    one.add_argument("b", help="The other one.")
    measured(one)
    measured(command(table, "Print all that was scored of a picture set as a table, means over seeds."))
    one = command(plot, "Draw the quality of each peer over its time, at the rate that is best by validation pictures.")
    one.add_argument("names", nargs="*", help="Names of runs, as given to `train`, rates included. [all]")
    one.add_argument("--out", type=Path, default=Path("quality.svg"), help="SVG file to write. [quality.svg]")
    measured(one)
    return whole


def measured(one: argparse.ArgumentParser) -> None:
    one.add_argument("--count", type=int, default=180, help="How many samples; 1000 for what is reported. [180]")
    one.add_argument(
        "--against", choices=("test", "validation"), default="test", help="Use validation for choices. [test]"
    )
    one.add_argument("--seed", type=int, default=0, help="Seed of the samples. [0]")
    one.add_argument("--sampling", nargs="+", default=[], metavar="NAME=VALUE",
                     help="Sampling in place of what is stored with the model, as in guidance=3 steps=24.")  # fmt: skip


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


# -- Commands ----------------------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> None:
    track = Track(arguments.cache, arguments.pictures, arguments.size)
    for part in ("train", "validation", "test", "floor"):
        print(f"{track.folder / part}: {len(list((track.folder / part).glob('*/*.png'))):,} pictures")


def train(arguments: argparse.Namespace) -> None:
    track = Track(arguments.cache, arguments.pictures, arguments.size)
    for rate in arguments.rates:
        for seed in arguments.seeds:
            parts = [arguments.name or arguments.peer, *([f"{rate:g}"] if rate else [])]
            name = "-".join(parts if arguments.name else [*parts, arguments.budget, *arguments.settings])
            run, start = runs_folder(arguments) / name / f"seed-{seed}", time.perf_counter()
            task = Task(
                arguments.peer, arguments.pictures, str(track.folder / "train"), str(run), arguments.size,
                seconds(arguments.budget), seed, rate, tuple(arguments.settings),
            )  # fmt: skip
            call("train", task)
            task.write()
            record(arguments.cache, start, command="train", run=str(run), seed=seed, budget=arguments.budget,
                   settings=arguments.settings, rate=rate, peer=arguments.peer)  # fmt: skip


def score(arguments: argparse.Namespace) -> None:
    track, start = Track(arguments.cache, arguments.pictures, arguments.size, arguments.against), time.perf_counter()
    asked = asked_of(arguments, track)
    rows = [("other real pictures", track.floor(arguments.count))]
    record(arguments.cache, start, command="floor", **asked, **rows[0][1])
    for run in arguments.runs:
        if not (run / TASK).is_file():
            raise UserError(f"{run} has no {TASK}: it is no finished run of the track; `train` writes one")
        start, task = time.perf_counter(), replace(Task.of(run), sampling=tuple(arguments.sampling))
        classes = track.labels(arguments.count)
        images = sample(task, classes, arguments.seed)
        sampling = time.perf_counter() - start
        measures = track.score(images, classes)
        record(arguments.cache, start, command="score", run=str(run.resolve()), name=run.parent.name, seed=task.seed,
               peer=task.peer, sample_seconds=sampling, sample_seed=arguments.seed, **asked, **measures)  # fmt: skip
        rows.append((f"{run.parent.name}/{run.name}", measures))
        if arguments.sheets:
            write_sheets(arguments.sheets / f"{run.parent.name}-{run.name}", track, images, classes)
    real = len(track.real("floor", arguments.count)[0])
    against = len(track.real(arguments.against)[0])
    print(f"{arguments.count} samples and {real} other real pictures against {against} of {arguments.against}")
    print("\n".join(lines(rows)))


def compare(arguments: argparse.Namespace) -> None:
    a, b = (scores_by_seed(arguments, name) for name in (arguments.a, arguments.b))
    if not (seeds := sorted(set(a) & set(b))):
        raise UserError(
            f"{arguments.a} and {arguments.b} have no scores of the same seed with {arguments.count} samples against "
            f"{arguments.against} pictures; run `score` on them first"
        )
    print(f"{arguments.b} minus {arguments.a}, seeds {', '.join(map(str, seeds))}, {arguments.count} samples each")
    for name in sorted(set.intersection(*(set(each[seed]) for each in (a, b) for seed in seeds))):
        print(f"{name}: {verdict([b[seed][name] - a[seed][name] for seed in seeds])}")


def table(arguments: argparse.Namespace) -> None:
    """Means of the measures over the seeds of each name, the latest score of each."""
    latest, floor = {}, []
    for entry in results(arguments):
        if entry["command"] == "floor":
            floor = [("other real pictures", entry)]
        elif entry["command"] == "score":
            latest[entry["name"], entry["seed"]] = entry
    by_name = defaultdict(list)
    for (name, _), entry in latest.items():
        by_name[name].append(entry)
    if not floor or not by_name:
        raise UserError(
            f"nothing was scored with {asked_of(arguments, Track(arguments.cache, arguments.pictures, arguments.size))}"
        )
    print("\n".join(lines([*floor, *((f"{name} ({len(each)})", mean(each)) for name, each in by_name.items())])))


def plot(arguments: argparse.Namespace) -> None:
    """Of what was scored with `--count` samples against test pictures; rates are chosen by validation pictures."""
    test, validation = (
        quality.distances(
            entry
            for entry in results(argparse.Namespace(**vars(arguments) | {"against": part}))
            if entry["command"] == "score" and entry["name"] in (arguments.names or [entry["name"]])
        )
        for part in ("test", "validation")
    )
    if not test:
        raise UserError(f"no such runs were scored with --count {arguments.count} against test pictures")
    title = f"{arguments.pictures.capitalize()} of {arguments.size} px, {arguments.count} samples"
    quality.write_plot(arguments.out, title, quality.curves(test, validation))


# -- Peers -------------------------------------------------------------------------------------------------------------


def runs_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.cache) / "runs" / f"{arguments.pictures}-{arguments.size}"


def call(verb: str, task: Task, *more: str) -> None:
    """In a process of its own, so that it has all memory and its time is that of a command."""
    program, tuned = str(Path(__file__).parent / "call_peer.py"), TUNED | os.environ
    subprocess.run([sys.executable, program, verb, json.dumps(asdict(task)), *more], check=True, env=tuned)


def sample(task: Task, classes: Sequence[str], seed: int) -> Images:
    """Pictures of these classes, rounded to 8 bits as files are."""
    with tempfile.TemporaryDirectory() as folder:
        labels, out = (str(Path(folder) / name) for name in ("labels.npy", "out.npy"))
        np.save(labels, np.array([task.classes.index(name) for name in classes]))
        call("sample", task, labels, str(seed), out)
        return images_from_pixels(torch.from_numpy(np.load(out)))


# -- Results -----------------------------------------------------------------------------------------------------------


def record(cache: Path, start: float, **result: Any) -> None:
    about = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "commit": commit(), "machine": str(examine()),
        "arguments": sys.argv[1:], "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "results.jsonl").open("a") as file:
        file.write(json.dumps(about | result) + "\n")


def commit() -> str:
    """With a plus where files are changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False).stdout
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head.strip() + ("+" if changed else "")


def results(arguments: argparse.Namespace) -> Iterator[Measures]:
    """Those of this picture set, size, count, part and seed of the samples, the oldest first."""
    asked = asked_of(arguments, Track(arguments.cache, arguments.pictures, arguments.size))
    if (file := arguments.cache / "results.jsonl").exists():
        entries = map(json.loads, file.read_text().splitlines())
        same = (entry for entry in entries if asked.items() <= entry.items())
        yield from (entry for entry in same if entry.get("sample_seed", arguments.seed) == arguments.seed)


def asked_of(arguments: argparse.Namespace, track: Track) -> dict[str, Any]:
    return {key: getattr(arguments, key) for key in ASKED} | {"split": fingerprint(track.folder)}


def scores_by_seed(arguments: argparse.Namespace, name: str) -> dict[int, dict[str, float]]:
    """The latest Fréchet and kernel distances by network of each run of this name."""
    scores = {}
    for entry in results(arguments):
        if entry["command"] == "score" and entry["name"] == name:
            scores[entry["seed"]] = {
                f"{label}-{network}": measures[key]["value"]
                for network, measures in entry["distances"].items()
                for label, key in (("FD", "frechet"), ("KD", "kernel_distance"))
            }
    return scores


def verdict(differences: Sequence[float]) -> str:
    """Better is lower by more than a standard error, over three paired seeds or more."""
    average, count = float(np.mean(differences)), len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    shown = count >= FEWEST_PAIRS and abs(average) > error
    words = ("better" if average < 0 else "worse") if shown else "not shown"
    chance = f", p = {p_value(average / error, count - 1):.2f}" if 0 < error < math.inf else ""
    return f"{average:+.3f}, standard error {error:.3f}: {words}{chance}"


def p_value(statistic: float, freedom: int) -> float:
    """Two-sided, of Student's t: how often chance alone gives a difference as large, where there is none."""
    return float(2 * student.sf(abs(statistic), freedom))


def mean(entries: Sequence[Measures]) -> Measures:
    """Of the measures of several runs; intervals are left out, since those of one run say nothing of other seeds."""

    def of(key: Sequence[str]) -> float:
        values = []
        for entry in entries:
            for part in key:
                entry = entry[part]  # noqa: PLW2901
            values.append(entry)
        return float(np.mean(values))

    distances = {
        network: {name: {"value": of(("distances", network, name, "value"))} for name in measures}
        for network, measures in entries[0]["distances"].items()
    }
    return entries[0] | {"distances": distances, "borders": of(("borders",)), "faces": {}}


def lines(rows: Sequence[tuple[str, Measures]]) -> list[str]:
    """A table in Markdown."""
    names = list(rows[0][1]["distances"])
    heads = [f"FD-{name}" for name in names] + ["kernel", "precision", "recall", "density", "coverage", "borders"]
    heads += [f"{key} (real)" for key in rows[-1][1]["faces"]]
    text = ["| | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for name, measures in rows:
        first = measures["distances"][names[0]]
        cells = [value(measures["distances"][network]["frechet"], ".4g") for network in names]
        cells += [value(first["kernel_distance"], ".3f")]
        cells += [value(first[key], ".2f") for key in ("precision", "recall", "density", "coverage")]
        cells += [f"{measures['borders']:.2f}", *(share(measures["faces"][key]) for key in rows[-1][1]["faces"])]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return text


def value(measure: Measures, form: str) -> str:
    interval = f" ±{(measure['high'] - measure['low']) / 2:{form.replace('4', '2')}}" if "low" in measure else ""
    return f"{measure['value']:{form}}{interval}"


def share(measure: Measures) -> str:
    within = "within" if measure["within_interval"] else "outside"
    real = measure["real"]["value"]
    return f"{measure['value']:.3f} [{measure['low']:.3f}, {measure['high']:.3f}] ({real:.3f}: {within})"


def write_sheets(folder: Path, track: Track, images: Images, classes: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grid(pils_from_images(images[:SHEET]), 12).save(folder / "samples.png")
    if track.judges is not None:
        lost = images[~track.judges.have_features(images, classes)]
        if len(lost):
            grid(pils_from_images(lost[:SHEET]), 12).save(folder / "without-features.png")


if __name__ == "__main__":
    main()
