"""The legs of a run: what each trains, on what, and how it is looked at. The plan shares these lines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from calotype.build import build_enlarger, build_first_stage, build_joint, build_space, build_stage
from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images, pixels_from_images
from calotype.data.latents import LatentCache
from calotype.data.sources import LatentSource, PictureSource, drawn
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.gaussian import Mixture, Unseen, fit, flow_error, refit
from calotype.diffusion.local import enlarged
from calotype.editing import redrawn
from calotype.evaluate.features import features
from calotype.evaluate.levels import Search, in_parts, level_distance, search_level
from calotype.evaluate.preference import Preference, prefer
from calotype.evaluate.reconstruction import psnr
from calotype.interop import diffusers
from calotype.learning.guard import CriticGuard
from calotype.learning.joint import Joint
from calotype.learning.objectives import Denoising
from calotype.learning.player import Player, PlayerConfig
from calotype.learning.run import Leg, deterministic
from calotype.learning.train import Clock, Source
from calotype.nets.kl import Autoencoder, Kl
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.nets.vae import Vae
from calotype.recipe import DiffusionConfig, ImportedSpace, Recipe, leg_above, mistakes_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import Space
from calotype.stage import Sampling, Stage, generate, shrunk
from calotype.vocabulary import NOT_TOLD, Batch, Images, Labels, OtherImages, Rng, Text

PREVIEW_COUNT = 12
PREVIEW_VALUES = 2**20
"""Previews show fewer pictures where they are large: so many pixels in all, and 4 pictures at least."""
CHECK_COUNT = 128
CHECK_VALUES = 2**23
"""A check looks at fewer pictures where they are large: at so many values in all, and at 4 pictures at least."""
LOOK_COUNT, LOOK_VALUES = 64, 2**20
GUARDED = 16
"""Pictures by which the critic's guard judges: their mean PSNR is steady to a tenth of a dB from look to look."""
GAUSSIAN_CHECK = 512
LOCAL_PLACES = 2**19
FEWEST_TO_FOLD = 8
OPTIMISTIC = 1.7
"""Where the closed form's error is so many times larger on held-out pictures, each is trained beside that of others."""
LEVELS_TRIED = 6
"""How many augmentation levels are tried for a stage that enlarges."""
MOST_VALUES = 2**26

Examples = Callable[[Tensor], Source]
"""From the indices of pictures to batches of them, as a denoiser wants them."""


def as_read(recipe: Recipe, pictures: Pictures) -> Pictures:
    """Without captions where nothing reads them."""
    return pictures if recipe.denoiser.text.kind != "none" else replace(pictures, captions=None)


def held_out_prompts(pictures: Pictures, count: int) -> tuple[str, ...]:
    """Captions of pictures that are not trained on, to sample with; none where there are none."""
    captions = pictures.captions
    told = [index for index in pictures.held_out_indices.tolist() if captions and captions.of[index]]
    text = drawn(captions, torch.tensor(told[:count], dtype=torch.long), Rng(("prompts",)))
    return text.wanted if text else ()


def start_space(recipe: Recipe, pictures: Pictures, device: torch.device) -> LatentSpace:
    """An autoencoder before its training: imported, or with the closed-form start from the training pictures."""
    space = build_space(recipe).to(device)
    if isinstance(recipe.space, ImportedSpace):
        assert isinstance(space.vae, Kl)
        space.vae.load_state_dict(diffusers.read_weights(Path(recipe.space.path), space.vae.config))
    elif isinstance(space.vae, Vae):
        start_linear(space.vae, pictures, device)
    return space


def start_linear(vae: Vae, pictures: Pictures, device: torch.device) -> None:
    """From at most 2,000 training pictures."""
    most = max(16, min(2000, MOST_VALUES // pictures.pixels[0].numel()))
    chosen = pictures.train_indices[:: max(1, len(pictures.train_indices) // most)][:most]
    vae.start_linear(images_from_pixels(pictures.pixels[chosen]).to(device))


def picture_source(recipe: Recipe, pictures: Pictures, device: torch.device) -> PictureSource:
    """For the autoencoder."""
    crop = recipe.autoencoder.crop or recipe.chain[0]
    return PictureSource(pictures, pictures.train_indices, Rng((recipe.seed, "pictures")), device, crop, recipe.flip)


@dataclass
class AutoencoderLeg(Leg):
    @property
    def vae(self) -> Autoencoder:
        """What was learned: the averaged weights."""
        vae = self.players["autoencoder"].average
        assert isinstance(vae, Autoencoder)
        return vae


@dataclass
class DenoiserLeg(Leg):
    preview_raw: Callable[[Path], None] = lambda path: None
    """As `preview`, with the weights as the last step left them instead of their average."""

    @property
    def stage(self) -> Stage:
        """What was learned: the stage with the averaged weights."""
        assert isinstance(self.objective, Denoising)
        return averaged(self.objective.stage, self.players["denoiser"])


def averaged(stage: Stage, player: Player) -> Stage:
    assert isinstance(player.average, Denoiser)
    return replace(stage, denoiser=player.average)


def autoencoder_leg(recipe: Recipe, pictures: Pictures, device: torch.device) -> AutoencoderLeg:
    """The first stage: pictures to latents and back."""
    deterministic(recipe.seed)
    space = start_space(recipe, pictures, device)
    config, objective = recipe.autoencoder, build_first_stage(recipe, space.vae)
    objective.features.to(device)
    learns = {"autoencoder": config.learn, "critic": config.critic_learn}
    players = {name: Player(network.to(device), learns[name]) for name, network in objective.players.items()}
    look = reconstructions(pictures, players["autoencoder"].average, device)
    clock = Clock(config.images, config.batch, recipe.seed)
    source = picture_source(recipe, pictures, device)
    leg = AutoencoderLeg("autoencoder", objective, players, source, clock, look.draw, look.measure)
    watched = Reconstructions(look.images[:GUARDED], space.vae)
    guard = CriticGuard(objective, players["autoencoder"], watched.psnr)
    return replace(leg, guards={"critic-guard": guard} if "critic" in players else {})


def reconstructions(pictures: Pictures, vae: nn.Module, device: torch.device) -> Reconstructions:
    count = check_count(pictures.pixels[0].numel())
    return Reconstructions(held_out_images(pictures, count, device), vae)


@dataclass
class Reconstructions:
    """Held-out pictures through an autoencoder."""

    images: Images
    vae: nn.Module

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Images:
        assert isinstance(self.vae, Autoencoder)
        parts = [self.vae.decode(self.vae.encode(some).mean) for some in images.split(16)]
        return torch.cat(parts).clamp(-1, 1)

    def draw(self, path: Path) -> None:
        """Originals, each with its reconstruction to the right."""
        some = self.images[: max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.images[0, 0].numel()))]
        pairs = torch.stack([some, self.reconstruct(some)], 1).flatten(0, 1)
        grid(pils_from_images(pairs), 6).save(path)

    def psnr(self) -> float:
        """Mean, in dB; what is above 40 is equal to the eye, and must not count for more."""
        return float(psnr(self.images, self.reconstruct(self.images)).clamp(max=40.0).mean())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        fake = self.reconstruct(self.images)
        few = slice(0, 32)
        features = efficientnet_lite0().to(fake.device)
        distance = perceptual_distance(features, self.images[few], fake[few])
        counts = {"n": float(len(fake)), "n_perceptual": float(len(distance))}
        return {"psnr": float(psnr(self.images, fake).mean()), "perceptual": float(distance.mean()), **counts}


def latent_examples(recipe: Recipe, pictures: Pictures, cache: LatentCache, device: torch.device) -> Examples:
    rng = Rng((recipe.seed, "latents"))
    return lambda chosen: LatentSource(cache, pictures.labels, chosen, rng, device, pictures.captions)


def picture_examples(recipe: Recipe, pictures: Pictures, device: torch.device) -> Examples:
    rng, size = Rng((recipe.seed, "base")), recipe.chain[0]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, size, recipe.flip)


def crop_examples(recipe: Recipe, size: int, pictures: Pictures, device: torch.device) -> Examples:
    """With their smaller pictures, for the stage that makes pictures of this size."""
    rng, crop = Rng((recipe.seed, leg_above(size))), recipe.enlarger(size).crop or size
    factor = size // recipe.chain[recipe.chain.index(size) - 1]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, crop, recipe.flip, factor)


def denoiser_leg(
    recipe: Recipe, pictures: Pictures, space: Space, examples: Examples, device: torch.device
) -> DenoiserLeg:
    """The diffusion model of the first stage, in pixels or in the latents of a trained autoencoder."""
    deterministic(recipe.seed + 1)
    gaussian = recipe.denoiser.start == "gaussian"
    mixture, unseen = fit_mixture(recipe, pictures, space, examples) if gaussian else (None, None)
    stage = build_stage(recipe, space, len(pictures.classes), mixture)
    objective = Denoising(stage, recipe.denoiser.label_dropout, unseen)
    return diffusion_leg("denoiser", recipe, objective, recipe.denoiser, recipe.sampling, pictures, examples, device)


@dataclass
class JointLeg(Leg):
    @property
    def stage(self) -> Stage:
        """What was learned: the stage with the averaged weights, in the averaged space."""
        assert isinstance(self.objective, Joint)
        space = self.players["autoencoder"].average
        assert isinstance(space, LatentSpace)
        return replace(averaged(self.objective.stage, self.players["denoiser"]), space=space)


def joint_leg(recipe: Recipe, stage: Stage, pictures: Pictures, device: torch.device) -> JointLeg:
    """More training of a stage in latents, together with the autoencoder that makes them."""
    deterministic(recipe.seed + 2)
    objective = build_joint(recipe, trainable(stage))
    objective.first.features.to(device)
    first, second = gentler(recipe.autoencoder.learn), gentler(recipe.denoiser.learn)
    learns = {"autoencoder": first, "critic": recipe.autoencoder.critic_learn, "denoiser": second}
    players = {name: Player(network.to(device), learns[name]) for name, network in objective.players.items()}
    source = picture_examples(recipe, pictures, device)(pictures.train_indices)
    clock = Clock(recipe.joint.images, recipe.joint.batch, recipe.seed)
    leg = JointLeg("joint", objective, players, source, clock, lambda path: None, dict)
    count = check_count(pictures.pixels[0].numel())
    reconstructions = Reconstructions(held_out_images(pictures, count, device), objective_vae(leg.stage))
    shown = picture_examples(recipe, pictures, device)(pictures.held_out_indices)
    batch = shown.batch(0, min(PREVIEW_COUNT, len(pictures.held_out_indices)))
    samples = Samples(
        leg.stage, objective.stage, recipe.sampling, batch, batch, len(pictures.classes), Rng((recipe.seed, "joint"))
    )
    leg.preview, leg.check, leg.prompts = samples.draw, reconstructions.measure, samples.prompts
    return leg


def trainable(stage: Stage) -> Stage:
    """A copy whose networks learn on; the linear path of the autoencoder stays as it is."""
    space, denoiser = copy.deepcopy(stage.space), copy.deepcopy(stage.denoiser).requires_grad_(True)
    assert isinstance(space, LatentSpace)
    space.vae.encoder.requires_grad_(True)
    space.vae.decoder.requires_grad_(True)
    return replace(stage, space=space, denoiser=denoiser)


def objective_vae(stage: Stage) -> Autoencoder:
    assert isinstance(stage.space, LatentSpace)
    return stage.space.vae


def judge(
    recipe: Recipe, before: Stage, after: Stage, pictures: Pictures, progress: Callable[[int, int], None]
) -> Preference:
    """Whether the joint leg has made samples better: as many from before and after as held-out pictures."""
    device = next(before.denoiser.parameters()).device
    real = held_out_images(pictures, recipe.joint.pictures, device)
    labels, text = asked(pictures, recipe.joint.pictures, device)
    rngs = [Rng((recipe.seed, "judge", index)) for index in range(len(labels))]
    rows, blurs = [], []
    for number, stage in enumerate((before, after)):
        made = in_parts([stage], [recipe.sampling], labels, rngs, text=text)
        rows.append(features(made.split(32)))
        blurs.append(Reconstructions(real, objective_vae(stage)).measure()["perceptual"])
        progress(number + 1, 2)
    return prefer(features(real.split(32)), rows[0], rows[1], blurs[0], blurs[1])


def enlarger_leg(
    recipe: Recipe, size: int, pictures: Pictures, examples: Examples, device: torch.device
) -> DenoiserLeg:
    """The diffusion model of a stage that looks at the pictures of the stage before it."""
    deterministic(recipe.seed + size)
    stage, config = build_enlarger(recipe, size, len(pictures.classes)), recipe.enlarger(size)
    fit_local(stage, examples(pictures.train_indices), config.crop or size)
    objective = Denoising(stage, config.label_dropout)
    return diffusion_leg(leg_above(size), recipe, objective, config, config.sampling, pictures, examples, device)


def mistakes_leg(recipe: Recipe, below: Stage, stage: Stage, pictures: Pictures, device: torch.device) -> DenoiserLeg:
    """More training of `stage`, on pictures that the stage below has redrawn with its own mistakes."""
    size, config = stage.image_size, recipe.enlarger(stage.image_size)
    rng, few = Rng((recipe.seed, mistakes_above(size))), config.mistakes.pictures
    stage = replace(stage, denoiser=copy.deepcopy(stage.denoiser).requires_grad_(True))

    def examples(chosen: Tensor) -> Source:
        some = chosen[torch.linspace(0, len(chosen) - 1, min(few, len(chosen))).long()]
        small = redraw_all(recipe, below, pictures, some, device, rng)
        crop = config.crop or size
        return PictureSource(pictures, some, rng, device, crop, recipe.flip, stage.factor, small)

    shorter = config.model_copy(update={"images": config.mistakes.images, "learn": gentler(config.learn)})
    objective = Denoising(stage, config.label_dropout)
    return diffusion_leg(mistakes_above(size), recipe, objective, shorter, config.sampling, pictures, examples, device)


def gentler(learn: PlayerConfig) -> PlayerConfig:
    """For a network that has learned already."""
    return learn.model_copy(update={"learning_rate": learn.learning_rate / 4})


def redraw_all(
    recipe: Recipe, below: Stage, pictures: Pictures, chosen: Tensor, device: torch.device, rng: Rng
) -> UInt8[Tensor, "count 3 size size"]:
    """The chosen pictures at the size of the stage below, redrawn by it, a few at a time."""
    index = recipe.chain.index(below.image_size)
    share, made = recipe.enlarger(recipe.chain[index + 1]).mistakes.share, []
    factor = pictures.pixels.shape[-1] // below.image_size
    for part in chosen.split(8):
        images = shrunk(images_from_pixels(pictures.pixels[part]).to(device), factor)
        rngs = [rng.at("redrawn", int(one)) for one in part]
        labels = pictures.labels[part].to(device)
        text = drawn(pictures.captions, part, rng.at("redrawn", int(part[0])))
        again = redrawn(below, images, labels, recipe.samplings[index], share, rngs, text)
        made.append(pixels_from_images(again).cpu())
    return torch.cat(made)


def diffusion_leg(
    name: str,
    recipe: Recipe,
    objective: Denoising,
    config: DiffusionConfig,
    sampling: Sampling,
    pictures: Pictures,
    examples: Examples,
    device: torch.device,
) -> DenoiserLeg:
    stage = objective.stage
    player = Player(stage.denoiser.to(device), config.learn)
    train = examples(pictures.train_indices)
    count = check_count(train.batch(0, 1).clean[0].numel())
    held_out = examples(pictures.held_out_indices).batch(0, min(count, len(pictures.held_out_indices)))
    same = train.batch(0, len(held_out))
    rng = Rng((recipe.seed, name))
    look = Samples(averaged(stage, player), stage, sampling, held_out, same, len(pictures.classes), rng)
    clock = Clock(config.images, config.batch, recipe.seed)
    return DenoiserLeg(
        name,
        objective,
        {"denoiser": player},
        train,
        clock,
        look.draw,
        look.measure,
        held_out=len(held_out),
        prompts=look.prompts,
        preview_raw=look.draw_raw,
    )


def search_levels(
    recipe: Recipe,
    below: Sequence[Stage],
    stage: Stage,
    pictures: Pictures,
    count: int,
    progress: Callable[[int, int], None],
) -> Search:
    """Which augmentation brings what `stage` makes of pictures from `below` nearest to held-out ones, on few crops."""
    device = next(stage.denoiser.parameters()).device
    rng = Rng((recipe.seed, "level", stage.image_size))
    labels, text = asked(pictures, count, device)
    rngs = [rng.at("sample", index) for index in range(count)]
    small = in_parts(below, recipe.samplings[: len(below)], labels, rngs, text=text)
    config = recipe.enlarger(stage.image_size)
    side = (config.crop or stage.image_size) // stage.factor
    corners = rng.at("crop").integers(small.shape[-1] - side + 1, count, 2).tolist()
    crops = torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(small, corners, strict=True)])
    held_out = crop_examples(recipe, stage.image_size, pictures, device)(pictures.held_out_indices)
    real = held_out.batch(0, count).clean
    distance = level_distance(stage, config.sampling, crops, labels, real, text)
    return search_level(distance, stage.augmentation.most, LEVELS_TRIED, progress)


def asked(pictures: Pictures, count: int, device: torch.device) -> tuple[Labels, Text | None]:
    """What a stage is judged by: held-out captions in turn, alone, as prompts are; else every class in turn."""
    if not (prompts := held_out_prompts(pictures, count)):
        return each_class(count, len(pictures.classes), device), None
    text = Text(tuple(prompts[index % len(prompts)] for index in range(count)))
    return torch.full((count,), NOT_TOLD, device=device), text


def each_class(count: int, classes: int, device: torch.device) -> Labels:
    """Every class in turn; not told where there is none."""
    indices = torch.arange(count, device=device)
    return indices % classes if classes else torch.full_like(indices, NOT_TOLD)


def check_count(values: int) -> int:
    return max(4, min(CHECK_COUNT, CHECK_VALUES // values))


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
    return mixture, refit(mixture, clean, labels, on_solver(folds))


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
    stage.denoiser.local.fit((one.smaller, one.clean) for one in batches if one.smaller is not None)


@dataclass
class Samples:
    """Pictures from a stage with seeds that stay the same, and its loss on held-out pictures and on trained ones."""

    stage: Stage
    raw: Stage  # with the weights as they are, which are not averaged
    sampling: Sampling
    held_out: Batch
    train: Batch
    classes: int
    rng: Rng

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        few = self.sampling.model_copy(update={"steps": min(10, self.sampling.steps), "conditioning": "whole"})
        smaller = self.held_out.smaller
        rngs = [Rng(("preview", index)) for index in range(PREVIEW_COUNT)]
        if smaller is None:
            labels, text = self.asked(self.count)
            shown = generate([self.stage], labels, [few], rngs[: len(labels)], text=text)
        else:
            shown = self._enlarged(smaller[: self.count], few, rngs)
        grid(pils_from_images(shown), 6).save(path)

    def draw_raw(self, path: Path) -> None:
        with at_rest(self.raw.denoiser):
            replace(self, stage=self.raw).draw(path)

    @property
    def count(self) -> int:
        """Of pictures in a preview."""
        most = max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.stage.image_size**2))
        return most if self.held_out.smaller is None else PREVIEW_COUNT // 2

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the pictures in a preview."""
        text = self.text(self.count)
        return text.wanted if text else ()

    def asked(self, count: int) -> tuple[Labels, Text | None]:
        """What previews show: held-out captions, alone, as prompts are; else every class in turn."""
        labels = each_class(count, self.classes, self.held_out.labels.device)
        if (text := self.text(count)) is None:
            return labels, None
        return torch.full_like(labels[: len(text.wanted)], NOT_TOLD), text

    def text(self, count: int) -> Text | None:
        return self.held_out.text and Text(self.held_out.text.wanted[:count])

    def _enlarged(self, smaller: Images, sampling: Sampling, rngs: list[Rng]) -> OtherImages:
        """The smaller picture, what the stage makes of it, and what it was: side by side."""
        count = len(smaller)
        labels, text = self.held_out.labels[:count], self.text(count)
        made = generate([self.stage], labels, [sampling], rngs[:count], smaller, text=text)
        before = enlarged(smaller, self.stage.factor).clamp(-1, 1)
        return torch.stack([before, made, self.held_out.clean[:count]], 1).flatten(0, 1)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Losses, each time with the same noise, so that they can be compared; also by thirds of the noise levels."""
        measures = {"n": float(len(self.held_out))}
        for name, batch in (("held_out", self.held_out), ("train", self.train)):
            measures |= losses_of(self.stage, batch, self.rng.at("check"), name)
        with at_rest(self.raw.denoiser):
            return measures | losses_of(self.raw, self.held_out, self.rng.at("check"), "raw_held_out")


def losses_of(stage: Stage, batch: Batch, rng: Rng, name: str) -> dict[str, float]:
    sigma, loss = Denoising(stage, label_dropout=0.0).each(batch, rng)
    thirds = zip(("low", "middle", "high"), loss[sigma.argsort()].tensor_split(3), strict=True)
    by_noise = {f"{name}_loss_{level}_noise": float(third.mean()) for level, third in thirds if len(third)}
    return {f"{name}_loss": float(loss.mean()), **by_noise}


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Without dropout, until it goes on learning."""
    network.eval()
    try:
        yield
    finally:
        network.train()


def unseen_first(pictures: Pictures, count: int, device: torch.device) -> tuple[Images, int]:
    """Held-out pictures, and trained ones where those are too few; with how many of them are held out."""
    held_out = pictures.held_out_indices[:count]
    chosen = torch.cat([held_out, pictures.train_indices[: count - len(held_out)]])
    return images_from_pixels(pictures.pixels[chosen]).to(device), len(held_out)


def look_count(values: int) -> int:
    """How many pictures of so many values the doctor looks at between two legs: a few seconds' worth."""
    return max(4, min(LOOK_COUNT, LOOK_VALUES // values))


def held_out_images(pictures: Pictures, count: int, device: torch.device) -> Images:
    chosen = pictures.held_out_indices[:count]
    return images_from_pixels(pictures.pixels[chosen]).to(device).contiguous(memory_format=torch.channels_last)
