"""What a denoiser knows before it learns: fitted to the training pictures, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from calotype.diffusion.gaussian import Mixture, Unseen, fit, flow_error, refit
from calotype.diffusion.windows import windows
from calotype.learning.train import Source
from calotype.legs.examples import MOST_VALUES, Form
from calotype.nets.blocks import Resized
from calotype.recipe import Recipe
from calotype.spaces.pixel import Space
from calotype.stage import Stage
from calotype.vocabulary import Batch, Latents, Rng

GAUSSIAN_CHECK = 512
"""Held-out pictures by which the size of the mixture is chosen."""
LOCAL_PLACES = 2**19
"""Pixels of smaller pictures, with what lies below them, to which the kinds of places are fitted."""
FEWEST_TO_FOLD = 8
"""Pictures that each half needs, if the closed form of one is to stand in for the other's."""
OPTIMISTIC = 1.7
"""Where the closed form's error is so many times larger on held-out pictures, each is trained beside that of others."""


def fit_mixture(recipe: Recipe, forms: Sequence[Form], space: Space) -> tuple[Mixture, Unseen | None]:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows.

    And what stands in for it in training, where it knows its own pictures too well. Of several forms, it is fitted to
    the largest square that lies in all of them, and sees each through such windows.
    """
    rng = Rng((recipe.seed, "gaussian"))
    few = some_of(forms, [form.pictures.held_out_indices for form in forms], GAUSSIAN_CHECK)
    most = max(2, MOST_VALUES // few[0].clean[0].numel())
    many = some_of(forms, [form.pictures.train_indices for form in forms], most)
    side = min(side for one in (*many, *few) for side in one.clean.shape[-2:])

    def seen(batches: Sequence[Batch]) -> Latents:
        drawn = (space.sample(one.clean, rng) for one in batches)
        return on_solver(torch.cat([a_window(latents, side, rng.at("window")) for latents in drawn]))

    clean, known = seen(many), seen(few)
    labels, others = (on_solver(torch.cat([one.labels for one in batches])) for batches in (many, few))
    sigma = recipe.denoiser.schedule.draw(len(known), rng.at("sigma")).to(known)
    noise = rng.at("noise").normal(*known.shape).to(known)
    mixture = fit(clean, labels, known, others, sigma, noise)
    same = slice(0, len(known))
    on_train = flow_error(mixture, clean[same], labels[same], sigma[: len(clean)], noise[: len(clean)])
    on_held_out = flow_error(mixture, known, others, sigma, noise)
    folds = on_solver(torch.cat([one.fold for one in many if one.fold is not None] or [torch.empty(0).long()]))
    if min(folds.bincount(minlength=2)) < FEWEST_TO_FOLD or on_held_out < OPTIMISTIC * on_train:
        return mixture, None
    unseen = refit(mixture, clean, labels, folds)
    return mixture, Unseen(tuple(one.to(few[0].clean.device) for one in unseen.mixtures))


def some_of(forms: Sequence[Form], rows: Sequence[Tensor], most: int) -> list[Batch]:
    """At most so many of these pictures in all, of each form in proportion; no batch of a form that has none."""
    total = sum(map(len, rows))
    counts = [min(len(chosen), math.ceil(most * len(chosen) / total)) for chosen in rows]
    sources = (form.examples(chosen) for form, chosen in zip(forms, rows, strict=True))
    return [source.batch(0, count) for source, count in zip(sources, counts, strict=True) if count]


def a_window(latents: Latents, side: int, rng: Rng) -> Resized:
    """Of each picture, one of the windows that it is seen through."""
    places = list(product(*(windows(length, side) for length in latents.shape[-2:])))
    drawn = rng.integers(len(places), len(latents)).tolist()
    parts = ((rows, columns) for (rows, _), (columns, _) in (places[one] for one in drawn))
    return torch.stack([one[:, rows, columns] for one, (rows, columns) in zip(latents, parts, strict=True)])


def on_solver(values: Tensor) -> Tensor:
    """Where linear algebra is complete: on CUDA, else on the CPU."""
    return values if values.device.type == "cuda" else values.cpu()


def fit_local(stage: Stage, train: Source, crop: int) -> None:
    """What is known of large pictures around their smaller ones, from enough crops of training pictures."""
    if stage.denoiser.local is None:
        return
    places = (crop // stage.factor) ** 2
    batch = max(1, LOCAL_PLACES // 16 // places)
    batches = (train.batch(index * batch, batch) for index in range(16))
    pairs = [(on_solver(one.smaller), on_solver(one.clean)) for one in batches if one.smaller is not None]
    stage.denoiser.local.to(pairs[0][0].device).fit(pairs)
