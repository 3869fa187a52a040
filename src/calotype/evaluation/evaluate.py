"""Gathers all measures of one run into `evaluation.json`, and shows the samples that are most like copies."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.images import grid, pils_from_images
from calotype.demo.describing import Facts
from calotype.diffusion.stage import generate, shrunk
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.copying import Copying, copying, unknown
from calotype.evaluation.features import FeatureNetwork, distance_name
from calotype.evaluation.history import overfitting
from calotype.evaluation.measures import distance_key, measured
from calotype.evaluation.memorisation import facing
from calotype.evaluation.prompts import Obedience, obedience
from calotype.evaluation.reconstructions import reconstructions
from calotype.evaluation.references import Bar, Halves, Library, halves
from calotype.evaluation.samples import Samples, make_samples, noise_features
from calotype.files import write_json
from calotype.machine import device_name
from calotype.nets.perceptual import efficientnet_lite0
from calotype.report.evaluation import FILE, FORMAT, PAIRS_FILE, PROMPTED_FILE
from calotype.run import read_mapping
from calotype.types import Labels, Rng, Text, UserError

PAIR_SIDE = 256
"""Pairs are shown in about so many pixels."""


@dataclass(frozen=True)
class Setup:
    """One run, `pictures` that its samples are held against, and those it was trained on if they can be read."""

    one: Candidate
    pictures: Pictures
    trained: Pictures | None
    cache: Path
    count: int
    seed: int
    network: FeatureNetwork
    bar: Bar
    drawn: Sequence[Facts] = ()
    """What `trained` show, where that is known."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampling that is stored with the model."""
    seen: Sequence[str] = ()
    """What there is to say of `pictures` that the run has seen."""

    def unseen(self, chosen: Tensor) -> bool | None:
        """Whether none of these pictures was trained on; None: nobody knows."""
        if self.trained is None:
            return None
        return not self.pictures.split.train[chosen].any()

    def library(self, pictures: Pictures, what: str) -> Library:
        return Library(pictures, self.cache, self.network, what, self.bar)


def evaluate_run(setup: Setup, out: Path) -> dict[str, Any]:
    """Writes `evaluation.json` and `nearest.png` into `out`, and returns what the first holds.

    Raises `UserError` for fewer than two pictures, and for no samples.
    """
    if setup.count < 1:
        raise UserError(f"count is {setup.count}, but must be at least 1; try 200")
    efficientnet_lite0().to(setup.one.model.device)
    pair = halves(setup.pictures, setup.count)
    again = torch.arange(setup.count) % len(pair.chosen)
    labels = setup.one.labels(setup.pictures, pair.chosen[again])
    text = setup.one.text(setup.pictures, pair.chosen[again])
    with setup.bar("samples") as told:
        samples = make_samples(setup.one.model, labels, text, setup.seed, setup.network, told)
    copies, obeyed = copies_of(setup, samples), obedience_of(setup)
    found = {
        **about(setup, pair),
        **measures(setup, pair, samples),
        "memorisation": copies.found,
        "obedience": obeyed.found,
        "gaps": overfitting(setup.one.run),
    }
    for shown in (PAIRS_FILE, PROMPTED_FILE):  # of an earlier evaluation
        (out / shown).unlink(missing_ok=True)
    write_json(out / FILE, found)
    if copies.pairs:
        pairs(setup, labels, text, copies).save(out / PAIRS_FILE)
    if obeyed.plate:
        obeyed.plate.save(out / PROMPTED_FILE)
    return found


def about(setup: Setup, pair: Halves) -> dict[str, Any]:
    device = setup.one.model.device
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"calotype": version("calotype"), "torch": version("torch")},
        "device": f"{device.type} ({device_name(device)}, {torch.get_num_threads()} threads)",
        "content": setup.pictures.content,
        "unseen": setup.unseen(pair.chosen),
        "pictures": setup.pictures.split.counts,
        "size": setup.one.size,
        "kind": setup.one.kind,
        "count": setup.count,
        "seed": setup.seed,
        "sampling": [one.model_dump(mode="json") for one in setup.one.model.samplings],
        "features": {
            "network": setup.network.name,
            "distance": distance_name(setup.network),
            "key": distance_key(setup.network),
            "weights_sha256": setup.network.weights,
            "preparation": setup.network.preparation,
        },
        "notes": [*pair.notes, *setup.seen, *notes(setup, pair)],
    }


def notes(setup: Setup, pair: Halves) -> list[str]:
    said = [] if (swept := of_the_sweep(setup, pair)) is None else [swept]
    if asked := ", ".join(f"{name} {value}" for name, value in setup.changes.items() if value is not None):
        said.append(f"samples are made with {asked}, as asked, not as is stored with the model")
    if setup.one.model.classes != setup.pictures.classes:
        said.append("the run was trained with other classes than the pictures have: its samples are of no class")
    return said


def of_the_sweep(setup: Setup, pair: Halves) -> str | None:
    """Whether steps and guidance were chosen by the pictures that they are judged by now; None: not by these data."""
    found = read_mapping(setup.one.run.folder / "sweep.json")
    if not found.get("stored") or found.get("content") != setup.pictures.content:
        return None
    if both := len(set(found["rows"]) & set(pair.chosen.tolist())):
        return f"steps and guidance were chosen by a sweep that saw {both} of the {len(pair.chosen)} real pictures"
    return "steps and guidance were chosen by a sweep on other real pictures and other seeds"


def measures(setup: Setup, pair: Halves, samples: Samples) -> dict[str, Any]:
    """Of as many samples as there are real pictures; beside other real pictures (floor) and noise (ceiling)."""
    one, library, number = setup.one, setup.library(setup.pictures, "real"), len(pair.chosen)
    real, others = (library.features(rows, one.size) for rows in (pair.chosen, pair.others))
    noise = noise_features(number, one.size, setup.seed, setup.network)
    found = {
        name: measured(rows, real, setup.seed, setup.network)
        for name, rows in (("samples", samples.seen.features[:number]), ("floor", others), ("ceiling", noise))
    }
    return {
        "measures": found,
        "classes": by_class(setup, pair, samples),
        "autoencoder": reconstructions(one, library, setup.trained or setup.pictures, pair, setup.seed),
    }


def by_class(setup: Setup, pair: Halves, samples: Samples) -> list[dict[str, Any]]:
    """The same, one class at a time, so of fewer pictures."""
    one, library, labels = setup.one, setup.library(setup.pictures, "real"), setup.pictures.labels
    classes = one.model.classes if one.model.classes == setup.pictures.classes else ()
    found = []
    for index, name in enumerate(classes):
        real, others = (library.features(rows[labels[rows] == index], one.size) for rows in pair[:2])
        number = len(pair.chosen)
        made = samples.seen.features[:number][(samples.labels[:number] == index).numpy()]
        sampled, floor = (measured(rows, real, setup.seed, setup.network) for rows in (made, others))
        found.append({"class": name, "samples": sampled, "floor": floor})
    return found


def copies_of(setup: Setup, samples: Samples) -> Copying:
    if setup.trained is None:
        return unknown("the pictures that the run was trained on cannot be read, or have changed")
    return copying(samples.seen, setup.library(setup.trained, "trained"), setup.one.size, setup.count)


def obedience_of(setup: Setup) -> Obedience:
    pictures = setup.trained if setup.trained is not None and setup.drawn else setup.pictures
    return obedience(setup.one, setup.library(pictures, "real"), setup.drawn, setup.count, setup.seed)


def pairs(setup: Setup, labels: Labels, text: Text | None, copies: Copying) -> Image.Image:
    """The samples most like copies, each with its nearest training picture to the right."""
    assert setup.trained is not None
    model, size, shown = setup.one.model, setup.one.size, []
    library = setup.library(setup.trained, "trained")
    for place, row in copies.pairs:
        told, some = labels[place : place + 1], text and text.at([place])
        made = generate(model.stages, told, model.samplings, [Rng((setup.seed, "sample", place))], text=some).cpu()
        trained = facing(library.images(torch.tensor([row]), size), made)
        shown += [shrunk(one, max(1, size // PAIR_SIDE)) for one in (made, trained)]
    return grid(pils_from_images(torch.cat(shown)), 6)
