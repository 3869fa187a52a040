"""What a denoiser knows before it learns: fitted to the training pictures, once."""

from __future__ import annotations

from torch import Tensor

from calotype.data.folder import Pictures
from calotype.diffusion.gaussian import Mixture, Unseen, fit, flow_error, refit
from calotype.learning.train import Source
from calotype.legs.examples import MOST_VALUES, Examples
from calotype.recipe import Recipe
from calotype.spaces.pixel import Space
from calotype.stage import Stage
from calotype.vocabulary import Rng

GAUSSIAN_CHECK = 512
"""Held-out pictures by which the size of the mixture is chosen."""
LOCAL_PLACES = 2**19
"""Pixels of smaller pictures, with what lies below them, to which the kinds of places are fitted."""
FEWEST_TO_FOLD = 8
"""Pictures that each half needs, if the closed form of one is to stand in for the other's."""
OPTIMISTIC = 1.7
"""Where the closed form's error is so many times larger on held-out pictures, each is trained beside that of others."""


def fit_mixture(recipe: Recipe, pictures: Pictures, space: Space, examples: Examples) -> tuple[Mixture, Unseen | None]:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows.

    And what stands in for it in training, where it knows its own pictures too well.
    """
    rng = Rng((recipe.seed, "gaussian"))
    train, held_out = examples(pictures.train_indices), examples(pictures.held_out_indices)
    few = held_out.batch(0, min(GAUSSIAN_CHECK, len(pictures.held_out_indices)))
    most = max(2, MOST_VALUES // few.clean[0].numel())
    many = train.batch(0, min(most, len(pictures.train_indices)))
    clean, known = (on_solver(space.sample(one.clean, rng)) for one in (many, few))
    sigma = recipe.denoiser.schedule.draw(len(known), rng.at("sigma")).to(known)
    noise = rng.at("noise").normal(*known.shape).to(known)
    mixture = fit(clean, on_solver(many.labels), known, on_solver(few.labels), sigma, noise)
    labels, same = on_solver(many.labels), slice(0, len(known))
    on_train = flow_error(mixture, clean[same], labels[same], sigma[: len(clean)], noise[: len(clean)])
    on_held_out = flow_error(mixture, known, on_solver(few.labels), sigma, noise)
    folds = many.fold
    if folds is None or min(folds.bincount(minlength=2)) < FEWEST_TO_FOLD or on_held_out < OPTIMISTIC * on_train:
        return mixture, None
    unseen = refit(mixture, clean, labels, on_solver(folds))
    return mixture, Unseen(tuple(one.to(few.clean.device) for one in unseen.mixtures))


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
