"""What a denoiser knows before it learns: fitted to the training pictures, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from calotype.data.caption_dropout import parts
from calotype.priors.calibration import Fitted, calibrated, log_spaced
from calotype.priors.captioned import Captioned, Known, fit_told
from calotype.priors.fitted import MOST_VALUES
from calotype.priors.gaussian import CrossFitted, GaussianMixture, Prior, fit, flow_error, refit
from calotype.priors.patches import PatchPrior
from calotype.priors.windows import windows
from calotype.recipe import Recipe
from calotype.spaces.pixel import Space
from calotype.training.examples import Bucket
from calotype.training.loop import Source
from calotype.types import Batch, Latents, Rng, Sigmas, Text

GAUSSIAN_CHECK = 512
"""Held-out pictures by which the size of the mixture is chosen."""
LOCAL_PLACES = 2**19
"""Pixels of smaller pictures, with what lies below them, to which the kinds of places are fitted."""
FEWEST_TO_FOLD = 8
"""Pictures that each half needs, if the closed form of one is to stand in for the other's."""
FEWEST_TOLD = 64
"""Captions without which words are not tried."""
SILENT = 0.2
"""Training tells about so many pictures no words at all."""
OPTIMISTIC = 1.3
"""Where the closed form's error is so many times larger on held-out pictures, each is trained beside that of others."""
OPTIMISTIC_SIGMAS = (1.0, 10.0)
"""The noise at which this is judged: what is over-fitted at lower noise is calibrated, and there the weaker closed form
of half the pictures does more harm than good (dev/LOG.md)."""


@dataclass(frozen=True)
class Trial:
    """Pictures by which closed forms are judged, with their noise."""

    known: Captioned
    sigma: Sigmas
    noise: Latents

    def error(self, form: Prior, of: Captioned | None = None, sigma: Sigmas | None = None) -> float:
        """Of these pictures, or of as many others with the same noise; at these noise levels instead of the trial's."""
        clean, labels, text = of or self.known
        sigma = self.sigma if sigma is None else sigma
        count = min(len(clean), len(sigma))
        some, captions = slice(0, count), Text(tuple(text[:count]))
        return flow_error(form, clean[some], labels[some], sigma[some], self.noise[some], captions)

    def calibrated(self, form: Fitted) -> Fitted:
        """With as much variance outside the axes as these pictures have."""
        clean, labels, text = self.known
        return calibrated(form, clean, labels, self.noise, Text(tuple(text)))

    def optimistic(self, form: Prior, train: Captioned) -> bool:
        """Whether it has learned means and large variances of its training pictures that others do not share."""
        count = min(len(train.clean), len(self.known.clean))
        sigma = log_spaced(*OPTIMISTIC_SIGMAS, count).to(self.known.clean)
        return self.error(form, sigma=sigma) >= OPTIMISTIC * self.error(form, train, sigma)


def fit_mixture(recipe: Recipe, forms: Sequence[Bucket], space: Space) -> tuple[Prior, CrossFitted | None]:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows.

    And what stands in for it in training, where it knows its own pictures too well. Of several forms, it is fitted to
    the largest square that lies in all of them, and sees each through such windows.
    """
    rng = Rng((recipe.seed, "gaussian"))
    trained = [one.pictures.train_indices for one in forms]
    few = some_of(forms, [one.pictures.validation_indices for one in forms], GAUSSIAN_CHECK, rng)
    most = max(2, MOST_VALUES // few.clean[0].numel())
    many = some_of(forms, trained, most, rng)
    train, known = (captioned(one, space, rng) for one in (many, few))
    sigma = recipe.denoiser.schedule.draw(len(few), rng.at("sigma")).to(known.clean)
    trial = Trial(known, sigma, rng.at("noise").normal(*known.clean.shape).to(known.clean))
    mixture = fit(train.clean, train.labels, known.clean, known.labels, trial.sigma, trial.noise)
    mixture = trial.calibrated(mixture)
    folds = many.fold
    if folds is None or min(folds.bincount(minlength=2)) < FEWEST_TO_FOLD or not trial.optimistic(mixture, train):
        others = some_of(forms, trained, most, rng, 1)  # the same with other captions, perhaps
        again = captioned(others, space, rng.at("again"))
        return best_told(mixture, train, again, trial, recipe.denoiser.caption_dropout), None
    unseen = refit(mixture, train.clean, train.labels, on_solver(folds))
    return mixture, CrossFitted(tuple(trial.calibrated(one).to(few.clean.device) for one in unseen.mixtures))


def some_of(forms: Sequence[Bucket], rows: Sequence[Tensor], most: int, rng: Rng, turn: int = 0) -> Batch:
    """At most so many of these pictures in all, of each form in proportion; in the next turn, the next so many."""
    side, total = common_side(forms), sum(map(len, rows))
    counts = [min(len(chosen), math.ceil(most * len(chosen) / total)) for chosen in rows]
    sources = (form.examples(chosen) for form, chosen in zip(forms, rows, strict=True))
    drawn = (source.batch(turn * count, count) for source, count in zip(sources, counts, strict=True) if count)
    return joined([through_windows(one, side, rng.at("window", turn, place)) for place, one in enumerate(drawn)])


def common_side(forms: Sequence[Bucket]) -> int:
    """Of the largest square that lies in all forms, as they are cached."""
    return min(side for one in forms for side in one.examples(torch.arange(1)).batch(0, 1).clean.shape[-2:])


def through_windows(batch: Batch, side: int, rng: Rng) -> Batch:
    """Of each picture, one of the squares that it is seen through."""
    places = list(product(*(windows(length, side) for length in batch.clean.shape[-2:])))
    drawn = (places[place] for place in rng.integers(len(places), len(batch)).tolist())
    squares = [one[:, rows, columns] for one, ((rows, _), (columns, _)) in zip(batch.clean, drawn, strict=True)]
    return replace(batch, clean=torch.stack(squares))


def joined(batches: Sequence[Batch]) -> Batch:
    """All their pictures, in turn: so any first ones are of each batch in proportion."""
    turns = torch.cat([(torch.arange(len(one)) + 0.5) / len(one) for one in batches]).argsort(stable=True)
    clean = torch.cat([one.clean for one in batches])[turns].contiguous(memory_format=torch.channels_last)
    labels = torch.cat([one.labels for one in batches])[turns]
    folds = [one.fold for one in batches if one.fold is not None]
    texts = [text for one in batches if one.text for text in one.text.prompts]
    fold = torch.cat(folds)[turns] if folds else None
    return Batch(clean, labels, None, fold, Text(tuple(texts)).at(turns.tolist()) if texts else None)


def captioned(batch: Batch, space: Space, rng: Rng) -> Captioned:
    text = ("",) * len(batch) if batch.text is None else batch.text.prompts
    return Captioned(on_solver(space.sample(batch.clean, rng)), on_solver(batch.labels), text)


def best_told(mixture: GaussianMixture, train: Captioned, again: Captioned, trial: Trial, phrases: float) -> Prior:
    """One that hears words, if held-out pictures with whole captions say that it is better; else `mixture` itself.

    Where a caption says less it may be a little worse, with the axes of two groups to find in as many pictures.
    """
    if sum(map(bool, train.texts)) < FEWEST_TOLD:
        return mixture
    held_out, rng = trial.known, Rng(("telling",))
    whole = Known(train.and_again(again).told(), held_out.told())
    less = [said_less(one, phrases, rng.at(place)) for place, one in enumerate((train, again, held_out))]
    heard = fit_told(mixture, [whole, Known(less[0].and_again(less[1]), less[2])])
    if heard is None:
        return mixture
    heard = trial.calibrated(heard)
    return mixture if trial.optimistic(heard, train) or trial.error(heard) >= trial.error(mixture) else heard


def said_less(pictures: Captioned, phrases: float, rng: Rng) -> Captioned:
    """Told in part, and some of them not at all, about as often as training tells either."""
    nothing = SILENT / (SILENT + phrases)
    silent = (rng.at("silent").uniform(len(pictures.texts)) < nothing).tolist()
    texts = [parts(text)[:1] for text in pictures.texts]
    return pictures._replace(
        texts=["" if quiet or not said else said[0] for quiet, said in zip(silent, texts, strict=True)]
    )


def on_solver(values: Tensor) -> Tensor:
    """Where linear algebra is complete: on CUDA, else on the CPU."""
    return values if values.device.type == "cuda" else values.cpu()


def fit_local(local: PatchPrior, train: Source, crop: int) -> PatchPrior:
    """What is known of large pictures around their smaller ones, from enough crops of training pictures."""
    places = (crop // local.factor) ** 2
    batch = max(1, LOCAL_PLACES // 16 // places)
    batches = (train.batch(index * batch, batch) for index in range(16))
    pairs = [(on_solver(one.low_res), on_solver(one.clean)) for one in batches if one.low_res is not None]
    local.to(pairs[0][0].device).fit(pairs)
    return local
