"""Gathers all measures of all runs into one dictionary, `compare.json`, and makes the page of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from calotype.data.folder import Pictures
from calotype.data.images import grid, pils_from_images
from calotype.evaluation.candidate import Candidate, data_of, open_all, without_seed
from calotype.evaluation.errors import USUAL, levels_of, pictures_for, propagation, relative_level
from calotype.evaluation.expenses import cost, deployment
from calotype.evaluation.history import overfitting, stability
from calotype.evaluation.overlap import Own, notes_of, split_by, unseen_by_all
from calotype.evaluation.quality import (
    SHOWN,
    Made,
    Reals,
    choose_reals,
    floor,
    make,
    memorised,
    quality,
    train_features,
)
from calotype.evaluation.verdicts import verdicts
from calotype.files import write_json
from calotype.machine import device_name, find_device
from calotype.nets.perceptual import efficientnet_lite0
from calotype.report.comparison import write_comparison
from calotype.types import UserError

FORMAT = 3
Bar = Callable[[str], AbstractContextManager[Callable[[int, int, str], None]]]
Read = Callable[[str, int], Pictures]
"""From the name of the data and the size to the pictures."""


class Access(NamedTuple):
    """How pictures are read: those that runs are judged by, and those of a run."""

    read: Read
    own: Own


class Setup(NamedTuple):
    runs: list[Candidate]
    reals: Reals
    seed: int
    bar: Bar


def compare(
    folders: Sequence[Path],
    data: Path | None,
    out: Path,
    count: int,
    seed: int,
    device: str,
    access: Access,
    bar: Bar,
) -> Path:
    """Writes `compare.json`, `compare.html` and a grid of every run into `out`, and returns `out`.

    Raises `UserError` for runs that cannot be compared, data that cannot be read, and an `out` that has other files.
    """
    if count < 2:
        raise UserError(f"count is {count}, but must be at least 2; try 200")
    check_out(out)
    runs = open_all(folders, device)
    name = data_of(runs, data)
    pictures = access.read(name, runs[0].size)
    efficientnet_lite0().to(find_device(device))
    splits = [split_by(one, pictures, access.own) for one in runs]
    pictures = replace(pictures, split=unseen_by_all(splits, len(pictures)))
    setup = Setup(runs, choose_reals(pictures, count), seed, bar)
    found = {**about(setup, name, notes_of(runs, splits, pictures, name)), **measures(setup, out)}
    found["verdicts"] = verdicts(found["runs"])
    write_json(out / "compare.json", found)
    write_comparison(out, found)
    return out


def check_out(out: Path) -> None:
    """An earlier comparison is written over; nothing else is."""
    known = out.is_dir() and ((out / "compare.json").exists() or all(one.name == "cache" for one in out.iterdir()))
    if out.exists() and not known:
        raise UserError(f"--out {out} is not an empty folder; choose another")
    out.mkdir(parents=True, exist_ok=True)


def about(setup: Setup, data: str, seen: Sequence[str]) -> dict[str, Any]:
    runs, reals, device = setup.runs, setup.reals, setup.runs[0].model.device
    notes = [*reals.notes, *class_notes(runs, reals.pictures), *seen]
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"calotype": version("calotype"), "torch": version("torch")},
        "device": f"{device.type} ({device_name(device)}, {torch.get_num_threads()} threads)",
        "data": data,
        "classes": list(reals.pictures.classes),
        "size": runs[0].size,
        "count": len(reals),
        "seed": setup.seed,
        "notes": notes,
    }


def class_notes(runs: Sequence[Candidate], pictures: Pictures) -> list[str]:
    """Of runs that know other classes than the data have."""
    return [
        f"run {one.key} was trained with other classes than the data have, so its pictures are sampled without a class"
        for one in runs
        if one.model.classes != pictures.classes
    ]


def measures(setup: Setup, out: Path) -> dict[str, Any]:
    runs, reals, seed, bar = setup
    kept = pictures_for(len(reals))
    with bar("trained") as told:
        train = train_features(reals, runs[0].size, lambda done, total: told(done, total, ""))
    sigma, small_size = matched(runs, reals)
    results = []
    for one in runs:
        with bar(f"{one.key} samples") as told:
            made = make(one, reals, seed, kept, lambda done, total: told(done, total, ""))
        columns = in_columns(one, reals)
        grid(pils_from_images(torch.cat(made.shown)[columns]), 6).save(out / f"grid-{one.key}.png")
        parts = told_of(one), measures_of(one, made, setup, train), errors_of(one, made, setup, sigma, small_size)
        results.append({key: value for part in parts for key, value in part.items()})
    sizes = sorted({size for one in runs for size in one.recipe.chain})
    return {
        "matched_sigma": sigma,
        "runs": results,
        "floor": [floor(reals, size, seed) for size in sizes],
        "seeds": seeds(runs, results),
    }


def in_columns(one: Candidate, reals: Reals) -> torch.Tensor:
    """The first samples of each class, each class in turn, so that equal places of two grids hold equal classes."""
    labels = reals.pictures.labels[reals.chosen][: max(pictures_for(len(reals)), SHOWN)].tolist()
    turns = [labels[:place].count(label) for place, label in enumerate(labels)]
    return torch.tensor(sorted(range(len(labels)), key=lambda place: (turns[place], labels[place]))[:SHOWN])


def told_of(one: Candidate) -> dict[str, Any]:
    return {
        "key": one.key,
        "name": one.run.name,
        "folder": str(one.run.folder),
        "kind": one.kind,
        "chain": list(one.recipe.chain),
        "seed": one.recipe.seed,
        "grid": f"grid-{one.key}.png",
    }


def measures_of(one: Candidate, made: Made, setup: Setup, train: Any) -> dict[str, Any]:
    reals = setup.reals
    with setup.bar(f"{one.key} costs") as told:
        told(0, 1, "")
        expenses = cost(one, reals.pictures)
        told(1, 1, "")
    return {
        "deployment": deployment(one),
        "cost": expenses,
        "quality": quality(one, made, reals, setup.seed),
        "overfitting": {"legs": overfitting(one.run), "nearest": memorised(made, one.size, reals, train)},
        "stability": stability(one),
    }


def errors_of(one: Candidate, made: Made, setup: Setup, sigma: float, small_size: int) -> dict[str, Any]:
    reals, small = setup.reals, torch.cat(made.small)[: pictures_for(len(setup.reals))]
    labels = one.labels(reals.pictures, reals.chosen)[: len(small)]
    if one.size % small_size:
        reason = f"{one.size} px cannot be shrunk to the {small_size} px at which errors are compared"
        return {"propagation": {"levels": None, "points": None, "reason": reason}}
    with setup.bar(f"{one.key} errors") as told:
        text = one.text(reals.pictures, reals.chosen[: len(small)])
        levels = list(levels_of(one, labels, text, setup.seed, small, sigma, small_size))
        found = propagation(one, levels, setup.seed, lambda done, total: told(done, total, ""))
    return {"propagation": found}


def matched(runs: Sequence[Candidate], reals: Reals) -> tuple[float, int]:
    """Sigma and size at which errors are put into latents: as noisy for them, and as small, as in the first cascade."""
    cascade = next((one for one in runs if len(one.recipe.chain) > 1), None)
    if cascade is None:
        return USUAL, max(1, runs[0].size // 4)
    size = cascade.recipe.chain[0]
    return relative_level(cascade, float(reals.images(reals.chosen, size).std())), size


def seeds(runs: Sequence[Candidate], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much a result hangs on the seed: runs of equal recipe, budget and pictures, each with a seed of its own."""
    settings = [
        (without_seed(one.recipe), one.run.plan.get("budget_seconds"), one.run.facts.get("content")) for one in runs
    ]
    groups = [[place for place, other in enumerate(settings) if other == one] for one in settings]
    groups = [group for place, group in enumerate(groups) if group[0] == place]
    own = [group for group in groups if len(group) == len({runs[place].recipe.seed for place in group})]
    return [spread_of([results[place] for place in group]) for group in own if len(group) > 1]


def spread_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    distances = torch.tensor([one["quality"]["whole"]["fd_lite0"]["value"] for one in results])
    losses = torch.tensor([final_losses(one) for one in results])
    return {
        "runs": [one["key"] for one in results],
        "kind": results[0]["kind"],
        "fd_lite0": {"mean": float(distances.mean()), "spread": float(distances.std())},
        "held_out_loss": {"mean": losses.mean(0).tolist(), "spread": losses.std(0).tolist()},
    }


def final_losses(one: dict[str, Any]) -> list[float]:
    """Of each leg."""
    return [leg["levels"]["all"][-1]["held_out"] for leg in one["overfitting"]["legs"]]
