"""How good the pictures of every stage are, held against real ones of the same size, classes and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from calotype.data.folder import Pictures, Progress
from calotype.data.images import images_from_pixels, rounded
from calotype.diffusion.stage import Sampling, Stage, generate, in_turn, shrunk
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.distances import Features
from calotype.evaluation.features import LITE0, features
from calotype.evaluation.intervals import nearest, share_estimate
from calotype.evaluation.measures import FRECHET, MANY_KEY, MEASURES, as_json, distance_key, measure
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Labels, Rng, Text, UserError

Rows = Int[Tensor, " _"]
FEWEST = 2
"""Pictures of a set that samples are held against; where it has fewer, others are taken too."""
SHOWN = 12
TRAIN_TIMES, FEWEST_TRAIN = 10, 250
"""A sample's nearest training picture is sought among so many times as many as there are samples, at least so many."""


@dataclass(frozen=True)
class Reals:
    """The real pictures: `chosen` are held against samples, `others` against these, as the floor."""

    pictures: Pictures
    chosen: Tensor
    others: Tensor
    notes: tuple[str, ...]
    kept: dict[tuple[int, str], Features] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chosen)

    def images(self, chosen: Tensor, size: int) -> Images:
        images = images_from_pixels(self.pictures.pixels[chosen])
        return rounded(shrunk(images, images.shape[-1] // size))

    def features(self, size: int, which: str = "chosen") -> Features:
        """Of `chosen` or `others` at this size; looked at once."""
        if (size, which) not in self.kept:
            rows = getattr(self, which)
            parts = (self.images(part, size) for part in rows.split(16))
            self.kept[size, which] = features(parts)
        return self.kept[size, which]


def choose_reals(pictures: Pictures, count: int, by_validation: bool = False) -> Reals:
    """Test pictures, or validation pictures, and as many others beside them, as the floor.

    Raises `UserError` where there are fewer than four pictures.
    """
    chosen, others, notes = real_sets(pictures, count, by_validation)
    if len(chosen) < 2:
        raise UserError(f"the data have {len(pictures)} pictures, but a comparison needs at least 4; add some")
    return Reals(pictures, chosen, others, notes)


def real_sets(pictures: Pictures, count: int, by_validation: bool = False) -> tuple[Rows, Rows, tuple[str, ...]]:
    """`count` pictures to hold samples against, as many others, and what is to be said of them; fewer where there are
    not so many.

    The first are test pictures alone (or validation pictures, and then no test picture is in either), unless there
    are fewer than two. The others go on with test pictures, then with validation pictures, then with training ones.
    """
    sets = [pictures.validation_indices, pictures.train_indices]
    sets = sets if by_validation else [pictures.test_indices, *sets]
    pools = [distinct(sets[: place + 1]) for place in range(len(sets))]
    pool, every = next((one for one in pools if len(one) >= FEWEST), pools[-1]), pools[-1]
    number = min(count, len(pool), len(every) // 2)
    chosen, others = every[:number], every[number : 2 * number]
    short = [f"{count} real pictures were wanted; {number} can be held against as many others"]
    return (
        chosen,
        others,
        (
            *(short if number < count else []),
            *borrowed(pictures, chosen, sets[0], f"of the {number} real pictures"),
            *borrowed(pictures, others, sets[0], f"of the {number} others that they are held against, as the floor"),
        ),
    )


def distinct(sets: Sequence[Rows]) -> Rows:
    """All rows in order, each once: pictures that are too few for three sets are in several."""
    return torch.tensor(list(dict.fromkeys(torch.cat(list(sets)).tolist())), dtype=torch.long)


def borrowed(pictures: Pictures, rows: Rows, own: Rows, which: str) -> list[str]:
    """A note where some are not of the set that they should be of."""
    more = rows[~torch.isin(rows, own)]
    if not len(more):
        return []
    trained = int(pictures.split.train[more].sum())
    kinds = {"are validation pictures": len(more) - trained, "were trained on": trained}
    said = " and ".join(f"{number} {what}" for what, number in kinds.items() if number)
    return [f"{which}, {said}: too few are held out"]


@dataclass
class Generated:
    """Of one run: features of each stage's pictures by their size, and a few of the pictures."""

    sampled: dict[int, list[Features]] = field(default_factory=dict)
    """Of the chain so far."""
    given_real: dict[int, list[Features]] = field(default_factory=dict)
    """Enlarged from real pictures, shrunk."""
    reconstructed: list[Features] = field(default_factory=list)
    """Real pictures through the autoencoder."""
    shown: list[Images] = field(default_factory=list)
    """The first final pictures."""
    small: list[Images] = field(default_factory=list)
    """The first pictures of the first stage."""


def generated(one: Candidate, reals: Reals, seed: int, keep: int, progress: Progress) -> Generated:
    """Samples with the classes and captions of the real pictures; picture i depends on (seed, i, these two) only."""
    model, made = one.model, Generated()
    labels, all_rngs = one.labels(reals.pictures, reals.chosen), model.rngs(len(reals), seed)
    for part in in_turn(len(reals), one.size, one.size):
        chosen, rngs = reals.chosen[part], all_rngs[part]
        text = one.text(reals.pictures, chosen)
        pictures = chain(model.stages, model.samplings, labels[part], rngs, text)
        for stage, images in zip(model.stages, pictures, strict=True):
            made.sampled.setdefault(stage.image_size, []).append(features([rounded(images)]))
        from_real(one, reals, chosen, labels[part], rngs, made)
        if part.start < max(keep, SHOWN):
            made.shown.append(pictures[-1].cpu())
            made.small.append(pictures[0])
        progress(min(part.stop, len(reals)), len(reals))
    return made


def chain(
    stages: Sequence[Stage], samplings: Sequence[Sampling], labels: Labels, rngs: Sequence[Rng], text: Text | None
) -> list[Images]:
    """The finished pictures of every stage: the last are those of `generate`."""
    made: list[Images] = []
    for place, (stage, sampling) in enumerate(zip(stages, samplings, strict=True)):
        if place and sampling.conditioning == "truncated":  # it goes on from what the stage before leaves unfinished
            made.append(generate(stages[: place + 1], labels, samplings[: place + 1], rngs, text=text))
        else:
            made.append(generate([stage], labels, [sampling], rngs, made[-1] if made else None, text=text))
    return made


def from_real(
    one: Candidate, reals: Reals, chosen: Tensor, labels: Labels, rngs: Sequence[Rng], made: Generated
) -> None:
    """What each later stage, or the autoencoder, makes of real pictures: its own part in what is wrong."""
    device, base = one.model.device, one.model.stages[0]
    if isinstance(base.space, LatentSpace):
        real = reals.images(chosen, base.image_size).to(device)
        made.reconstructed.append(features([rounded(base.space.decode(base.space.encode(real)))]))
    for stage, sampling in zip(one.model.stages[1:], one.model.samplings[1:], strict=True):
        assert stage.low_res_size is not None
        low_res = reals.images(chosen, stage.low_res_size).to(device)
        whole = sampling.model_copy(update={"conditioning": "whole"})
        images = generate([stage], labels, [whole], rngs, low_res, text=one.text(reals.pictures, chosen))
        made.given_real.setdefault(stage.image_size, []).append(features([rounded(images)]))


def quality(one: Candidate, made: Generated, reals: Reals, seed: int) -> dict[str, Any]:
    """The whole chain, and every stage: `sampled` on what the stages before made, `given_real` on real pictures."""
    stages = []
    for size in one.recipe.chain:
        ways = {"sampled": made.sampled[size], "given_real": made.given_real.get(size, [])}
        measured = {name: against(np.concatenate(rows), reals, size, seed) for name, rows in ways.items() if rows}
        stages.append({"size": size, **measured})
    found = {"whole": stages[-1]["sampled"], "stages": stages}
    if not made.reconstructed:
        return found
    return {**found, "autoencoder": against(np.concatenate(made.reconstructed), reals, one.recipe.chain[0], seed)}


def floor(reals: Reals, size: int, seed: int) -> dict[str, Any]:
    """Other real pictures in the place of samples: nothing can be expected to be better."""
    return {"size": size, **against(reals.features(size, "others"), reals, size, seed)}


def against(made: Features, reals: Reals, size: int, seed: int) -> dict[str, Any]:
    """All measures, of however few pictures: the intervals and n beside them show what they are worth."""
    real = reals.features(size)
    found = {name: measure(name, made, real, seed) for name in MEASURES if name != MANY_KEY}
    return {distance_key(LITE0): found.pop(FRECHET), **found, "n": [len(made), len(real)]}


def nearest_trained(made: Generated, size: int, reals: Reals, trained: Features) -> dict[str, Any]:
    """How near samples lie to training pictures, against how near held-out ones do; `nearer`: than 95 % of those."""
    held_out = reals.features(size)[~reals.pictures.split.train[reals.chosen].numpy()]
    samples = np.concatenate(made.sampled[size])
    count = {"n": [len(samples), len(held_out), len(trained)]}
    if not len(held_out) or not len(trained):
        reason = "no picture of the comparison is held out, or none was trained on"
        return {"samples_median": None, "held_out_median": None, "nearer": None, "reason": reason, **count}
    ours, theirs = nearest(samples, trained), nearest(held_out, trained)
    near = int((ours < np.percentile(theirs, 5)).sum())
    medians = {"samples_median": float(np.median(ours)), "held_out_median": float(np.median(theirs))}
    return {**medians, "nearer": as_json(share_estimate(near, len(samples))), **count}


def train_features(reals: Reals, size: int, progress: Progress) -> Features:
    """Of training pictures, evenly spread; none of them is held against samples where that can be helped."""
    train = reals.pictures.train_indices
    train = train[~torch.isin(train, torch.cat([reals.chosen, reals.others]))]
    most = max(FEWEST_TRAIN, TRAIN_TIMES * len(reals))
    chosen = train[torch.linspace(0, len(train) - 1, min(most, len(train))).round().long()]
    rows = []
    for part in chosen.split(32):
        rows.append(features([reals.images(part, size)]))
        progress(sum(map(len, rows)), len(chosen))
    return np.concatenate(rows) if rows else reals.features(size)[:0]
