"""The priors of a run: fitted to its training images once, stored in its folder, and read from there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.data.captions import shorter_versions
from calotype.files import is_whole, listed, read_as, sha256, whole_folder, write_json, write_tensors
from calotype.heap import freed_at_once
from calotype.machine import release_memory
from calotype.nets.weights import load_file_into
from calotype.priors.fit import CaptionedLatents, PriorValidation, fit_prior
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.priors.prior import MOST_VALUES, Prior
from calotype.priors.stored import PriorDescription, described, description
from calotype.recipe import Recipe
from calotype.run import Run
from calotype.spaces.latent import LatentSpace, channel_effects
from calotype.spaces.pixel import Space
from calotype.spaces.tiling import half_overlapping
from calotype.training.checkpoint import checkpoints
from calotype.training.examples import Bucket, of_view
from calotype.training.loop import BatchSource
from calotype.types import Batch, Images, OtherImages, Rng, Text, UserError

VALIDATION_IMAGES = 512
"""Validation images by which the prior is chosen."""
MOST_FITTED_VIEWS = 3
"""Of each picture; more were not tried."""
PATCHES = 2**19
"""Low-resolution pixels, with the high-resolution patches below them, to which a patch prior is fitted."""
WEIGHED_IMAGES, WEIGHED_SIDE = 16, 16
"""Training images, and places of their latents from the first corner on, at which effects of channels are measured."""
CROP_BATCHES = 16
"""In which they are drawn."""
UNCAPTIONED = 0.2
"""Share of images that training gives no caption."""
Constants = dict[str, Prior]
"""The priors of a leg, by their names in the run's folder: "mixture", for which "unseen-0" and so on stand in where
it is cross-fitted, or "local", a prior of patches."""

# -- Fitted ------------------------------------------------------------------------------------------------------------


@freed_at_once()
def fit_mixture(recipe: Recipe, buckets: Sequence[Bucket], space: Space) -> Constants:
    """The prior of the first stage, from as many training latents as `MOST_VALUES` allows, and its cross-fitted form.

    With several aspect buckets it is fitted to the largest square that fits into all, in windows of each. Where
    pictures are mirrored in training, it is fitted to each and to its mirror image, and where training has views, to
    some of them.
    """
    rng = Rng((recipe.seed, "gaussian"))
    train_rows = [bucket.pictures.train_indices for bucket in buckets]
    buckets = [viewed(bucket, 0) for bucket in buckets]
    few = take(buckets, [bucket.pictures.validation_indices for bucket in buckets], VALIDATION_IMAGES, rng)
    most = max(2, MOST_VALUES // few.clean[0].numel() // fitted_sides(recipe))
    many = take(buckets, train_rows, most, rng)
    others = [[reflected(bucket) for bucket in buckets]] if recipe.flip else []
    others += [[viewed(bucket, view + 1) for bucket in buckets] for view in range(fitted_views(recipe))]
    if others:
        many = joined([many, *(take(other, train_rows, most, rng) for other in others)])

    def examples(batch: Batch, rng: Rng, place: int) -> CaptionedLatents:
        texts = ("",) * len(batch) if batch.text is None else batch.text.prompts
        stream = Rng(("telling", place))  # as in version 0.1: another name would draw other numbers
        shorter = shortened(texts, recipe.denoiser.caption_dropout, stream)
        latents = on_solver(space.sample(batch.clean, rng))
        return CaptionedLatents(latents, batch.labels.to(latents.device), texts, shorter)

    train, validation = examples(many, rng, 0), examples(few, rng, 2)
    folds = None if many.fold is None else many.fold.to(train.latents.device)
    del many  # as large as all that is fitted
    more = None
    if any(train.captions):
        more = examples(take(buckets, train_rows, most, rng, 1), rng.at("again"), 1)
    sigma = recipe.denoiser.schedule.sample(len(few), rng.at("sigma")).to(validation.latents)
    noise = rng.at("noise").normal(*validation.latents.shape).to(validation.latents)
    prior, crossed = fit_prior(train, PriorValidation(validation, sigma, noise), folds, more)
    return {"mixture": prior, **{f"unseen-{fold}": mixture for fold, mixture in enumerate(crossed)}}


def channel_weights(recipe: Recipe, buckets: Sequence[Bucket], space: Space) -> Float[Tensor, " channel"] | None:
    """Weights of the latent channels in the denoiser's loss, with mean 1; None where all are equal.

    The weight is the effect of the channel on the picture to the power that the recipe says, measured at windows of
    some training latents.
    """
    power = recipe.denoiser.channel_weighting
    if not power or not isinstance(space, LatentSpace):
        return None
    rng = Rng((recipe.seed, "channel effects"))
    few = take(buckets, [bucket.pictures.train_indices for bucket in buckets], WEIGHED_IMAGES, rng)
    window = few.clean[..., :WEIGHED_SIDE, :WEIGHED_SIDE]
    effects = channel_effects(space, space.sample(window, rng.at("latents")), rng)
    if not effects.max() > 0:  # a decoder that ignores its latents
        return None
    weights = effects**power
    return weights / weights.mean()


def reflected(bucket: Bucket) -> Bucket:
    """The same examples, each mirrored."""
    return bucket._replace(examples=lambda chosen: replace(bucket.examples(chosen), reflected=True))


def fitted_views(recipe: Recipe) -> int:
    """Views of each picture to which the prior is fitted."""
    return min(recipe.denoiser.views, MOST_FITTED_VIEWS)


def fitted_sides(recipe: Recipe) -> int:
    """Copies of each picture to which the prior is fitted: whole, mirrored where the recipe mirrors, and its views."""
    return 1 + recipe.flip + fitted_views(recipe)


def viewed(bucket: Bucket, view: int) -> Bucket:
    """The same examples, each whole (0) or of one view."""
    return bucket._replace(examples=lambda chosen: of_view(bucket.examples(chosen), view))


def take(buckets: Sequence[Bucket], rows: Sequence[Tensor], most: int, rng: Rng, turn: int = 0) -> Batch:
    """At most `most` of these images, of each bucket in proportion; in the next turn, the next ones."""
    total = sum(map(len, rows))
    first = (bucket.examples(torch.arange(1)).batch(0, 1) for bucket in buckets)
    side = min(side for batch in first for side in batch.clean.shape[-2:])  # of the square that fits into all
    counts = [min(len(chosen), math.ceil(most * len(chosen) / total)) for chosen in rows]
    sources = (bucket.examples(chosen) for bucket, chosen in zip(buckets, rows, strict=True))
    batches = (source.batch(turn * count, count) for source, count in zip(sources, counts, strict=True) if count)
    return joined([random_windows(batch, side, rng.at("window", turn, place)) for place, batch in enumerate(batches)])


def random_windows(batch: Batch, side: int, rng: Rng) -> Batch:
    """A window of each image: one of those in which the prior denoises it."""
    places = list(product(*(half_overlapping(length, side) for length in batch.clean.shape[-2:])))
    if len(places) == 1:  # the whole image
        return batch
    windows = (places[place] for place in rng.integers(len(places), len(batch)).tolist())
    squares = [image[:, row.read, column.read] for image, (row, column) in zip(batch.clean, windows, strict=True)]
    return replace(batch, clean=torch.stack(squares).contiguous(memory_format=torch.channels_last))


def joined(batches: Sequence[Batch]) -> Batch:
    """All their images, interleaved: so the first n of them are of each batch in proportion."""
    if len(batches) == 1:
        return batches[0]
    turns = torch.cat([(torch.arange(len(batch)) + 0.5) / len(batch) for batch in batches]).argsort(stable=True)
    first = batches[0].clean
    shape = len(turns), *first.shape[1:]
    clean = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    for places, batch in zip(turns.argsort().split([*map(len, batches)]), batches, strict=True):
        clean[places] = batch.clean  # no copy of all besides this one
    labels = torch.cat([batch.labels for batch in batches])[turns]
    folds = [batch.fold for batch in batches if batch.fold is not None]
    texts = [text for batch in batches if batch.text for text in batch.text.prompts]
    fold = torch.cat(folds)[turns] if folds else None
    return Batch(clean, labels, None, fold, Text(tuple(texts)).at(turns.tolist()) if texts else None)


def shortened(captions: Sequence[str], caption_dropout: float, rng: Rng) -> list[str]:
    """Captions as caption dropout leaves them: "" or the first part, about as often as training drops all or a part."""
    nothing = UNCAPTIONED / (UNCAPTIONED + caption_dropout)
    empty = (rng.at("silent").uniform(len(captions)) < nothing).tolist()
    shorter = [shorter_versions(caption)[:1] for caption in captions]
    return ["" if dropped or not part else part[0] for dropped, part in zip(empty, shorter, strict=True)]


def on_solver(values: Tensor) -> Tensor:
    """Where linear algebra is complete: on CUDA, else on the CPU."""
    return values if values.device.type == "cuda" else values.cpu()


@dataclass(frozen=True)
class CropPairs:
    """Low-resolution and high-resolution crops of training images, `PATCHES` pixels of the former; whoever iterates
    again gets the same ones, so that they need not be kept."""

    train: BatchSource
    batch: int

    def __iter__(self) -> Iterator[tuple[Images, OtherImages]]:
        for index in range(CROP_BATCHES):
            part = self.train.batch(index * self.batch, self.batch)
            assert part.low_res is not None
            yield on_solver(part.low_res), on_solver(part.clean)


@freed_at_once()
def fit_patches(factor: int, train: BatchSource, crop: int) -> Constants:
    """A patch prior, fitted to crops of training images."""
    pairs = CropPairs(train, max(1, PATCHES // CROP_BATCHES // (crop // factor) ** 2))
    prior = PatchPrior(factor).to(next(iter(pairs))[0].device)
    prior.fit(pairs)
    return {"local": prior}


def cross_fitted(constants: Constants, device: torch.device) -> CrossFitted | None:
    stored = (constants.get(f"unseen-{fold}") for fold in range(len(constants)))
    folds = tuple(prior.to(device) for prior in stored if isinstance(prior, GaussianMixture))
    return CrossFitted(folds) if folds else None


# -- Stored ------------------------------------------------------------------------------------------------------------


def keep(run: Run | None, leg: str, fit: Callable[[], Constants]) -> Constants:
    """The constants of a leg on the CPU, from the run's folder; fitted and written there if the leg has not begun.

    Without a run to store them in they are fitted. Raises `UserError` where they are missing or damaged, and
    checkpoints were trained with them.
    """
    if run is None:
        return fit()
    folder, hashes = run.folder / "constants" / leg, run.state.constants
    # before its hash is known, any whole folder counts
    if not is_whole(folder) or hashes.get(leg) not in (None, sha256(folder / "manifest.json")):
        write_constants(folder, _fitted(run, leg, fit))
    hashes[leg] = sha256(folder / "manifest.json")
    run.save()
    release_memory(torch.device("cpu"))
    return read_constants(folder)


def _fitted(run: Run, leg: str, fit: Callable[[], Constants]) -> Constants:
    """What `fit` returns. Raises `UserError` where a leg was already trained with other constants, now lost."""
    folder, finished = run.folder / "constants" / leg, run.state.legs.get(leg) == "finished"
    lost = leg in run.state.constants and run.state.part > 1  # networks of this part go on beside them
    if not finished and not lost and not checkpoints(run.folder / "checkpoints", leg):
        if leg in run.state.constants:
            text = f"{leg}: {folder} was missing or damaged, and no checkpoint needs what it held: it was fitted again"
            run.log("note", text=text)
        return fit()
    again = "start a new run" if finished or lost else f"remove checkpoints/{leg}-* to train the {leg} from its start"
    raise UserError(
        f"{folder} is missing or damaged, but the {leg} was trained with it: put it back from a copy, or {again}"
    )


def write_constants(folder: Path, constants: Constants) -> None:
    about = {name: description(prior) for name, prior in constants.items()}
    with whole_folder(folder) as path:
        write_json(path / "constants.json", about)
        for name, prior in constants.items():
            write_tensors(path / f"{name}.safetensors", prior.state_dict())


def read_constants(folder: Path) -> Constants:
    """Raises `UserError` where they are damaged."""
    file = listed(folder, "constants.json")
    about: dict[str, PriorDescription] = read_as(file, dict[str, PriorDescription])
    files = {name: listed(folder, f"{name}.safetensors") for name in about}
    makers = {name: partial(described, description, str(file)) for name, description in about.items()}
    return {name: load_file_into(files[name], makers[name], lambda prior: prior) for name in about}
