"""What a denoiser knows before it learns: fitted to the training pictures, once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from calotype.data.folder import Pictures
from calotype.diffusion.gaussian import ClosedForm, Mixture, Unseen, fit, flow_error, refit
from calotype.diffusion.told import Captioned, fit_told
from calotype.learning.train import Source
from calotype.legs.examples import MOST_VALUES, Examples
from calotype.recipe import Recipe
from calotype.spaces.pixel import Space
from calotype.stage import Stage
from calotype.vocabulary import Batch, Latents, Rng, Sigmas, Text

GAUSSIAN_CHECK = 512
"""Held-out pictures by which the size of the mixture is chosen."""
LOCAL_PLACES = 2**19
"""Pixels of smaller pictures, with what lies below them, to which the kinds of places are fitted."""
FEWEST_TO_FOLD = 8
"""Pictures that each half needs, if the closed form of one is to stand in for the other's."""
FEWEST_TOLD = 64
"""Captions without which words are not tried."""
OPTIMISTIC = 1.7
"""Where the closed form's error is so many times larger on held-out pictures, each is trained beside that of others."""


@dataclass(frozen=True)
class Trial:
    """Pictures by which closed forms are judged, with their noise."""

    known: Captioned
    sigma: Sigmas
    noise: Latents

    def error(self, form: ClosedForm, of: Captioned | None = None) -> float:
        """Of these pictures, or of as many others with the same noise."""
        clean, labels, text = of or self.known
        count = min(len(clean), len(self.sigma))
        some, told = slice(0, count), Text(tuple(text[:count]))
        return flow_error(form, clean[some], labels[some], self.sigma[some], self.noise[some], told)

    def optimistic(self, form: ClosedForm, train: Captioned) -> bool:
        return self.error(form) >= OPTIMISTIC * self.error(form, train)


def fit_mixture(
    recipe: Recipe, pictures: Pictures, space: Space, examples: Examples
) -> tuple[ClosedForm, Unseen | None]:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows.

    And what stands in for it in training, where it knows its own pictures too well.
    """
    rng = Rng((recipe.seed, "gaussian"))
    source, held_out = examples(pictures.train_indices), examples(pictures.held_out_indices)
    few = held_out.batch(0, min(GAUSSIAN_CHECK, len(pictures.held_out_indices)))
    most = max(2, MOST_VALUES // few.clean[0].numel())
    many = source.batch(0, min(most, len(pictures.train_indices)))
    train, known = (captioned(one, space, rng) for one in (many, few))
    sigma = recipe.denoiser.schedule.draw(len(few), rng.at("sigma")).to(known.clean)
    trial = Trial(known, sigma, rng.at("noise").normal(*known.clean.shape).to(known.clean))
    mixture = fit(train.clean, train.labels, known.clean, known.labels, trial.sigma, trial.noise)
    folds = many.fold
    if folds is None or min(folds.bincount(minlength=2)) < FEWEST_TO_FOLD or not trial.optimistic(mixture, train):
        again = captioned(source.batch(len(many), len(many)), space, rng.at("again"))  # with other captions, perhaps
        return best_told(mixture, train, again, trial), None
    unseen = refit(mixture, train.clean, train.labels, on_solver(folds))
    return mixture, Unseen(tuple(one.to(few.clean.device) for one in unseen.mixtures))


def captioned(batch: Batch, space: Space, rng: Rng) -> Captioned:
    text = ("",) * len(batch) if batch.text is None else batch.text.wanted
    return Captioned(on_solver(space.sample(batch.clean, rng)), on_solver(batch.labels), text)


def best_told(mixture: Mixture, train: Captioned, again: Captioned, trial: Trial) -> ClosedForm:
    """One that hears words, if held-out pictures say that it is better; `mixture` itself where nothing is told."""
    if sum(map(bool, train.texts)) < FEWEST_TOLD:
        return mixture
    heard = fit_told(mixture, train.told(), again.told(), trial.known.told())
    if heard is None or trial.optimistic(heard, train) or trial.error(heard) >= trial.error(mixture):
        return mixture
    return heard


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
