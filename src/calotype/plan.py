"""The plan: pictures, machine and a time budget in; a recipe, its reasons and its cost out.

Costs are not looked up: one real step of every kind is taken with the real networks on the real pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from calotype.build import build_denoising, build_first_stage, build_space, build_stage
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import LatentCache
from calotype.data.sources import LatentSource
from calotype.diffusion.gaussian import CLUSTERS, FEWEST, Mixture, largest_rank
from calotype.learning.objectives import FirstStageConfig, Objective
from calotype.learning.player import Player, PlayerConfig
from calotype.learning.train import Clock, Source, learn
from calotype.legs import picture_source, start_linear
from calotype.machine import Machine, best_time, peak_memory
from calotype.recipe import Backbone, Recipe, check, merge
from calotype.stage import generate
from calotype.vocabulary import NOT_TOLD, Rng, UserError

Phases = list[tuple[float, float]]
"""The leg up to this fraction costs so many seconds an image."""


@dataclass(frozen=True)
class Choice:
    what: str
    value: str
    why: str


@dataclass
class Plan:
    recipe: Recipe
    device: str
    budget_seconds: float
    choices: list[Choice] = field(default_factory=list)
    predicted: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, Phases] = field(default_factory=dict)
    paced: list[str] = field(default_factory=list)
    """Legs whose length follows the clock; the others see as many images as the user has set."""
    final_count: int = 16
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        about = asdict(self)
        del about["recipe"]
        return {"kind": self.recipe.kind, "size": self.recipe.size, **about}

    @classmethod
    def from_json(cls, recipe: Recipe, about: dict[str, Any]) -> Plan:
        kept = {
            name: about[name] for name in ("device", "budget_seconds", "predicted", "paced", "final_count", "notes")
        }
        phases = {leg: [(end, cost) for end, cost in phases] for leg, phases in about["phases"].items()}
        return cls(recipe, **kept, phases=phases, choices=[Choice(**choice) for choice in about["choices"]])

    def after(self, leg: str) -> float:
        """Predicted seconds of all that comes after a leg."""
        order = ["autoencoder", "latents", "denoiser", "samples"]
        return sum(self.predicted["seconds"][what] for what in order[order.index(leg) + 1 :])


def make_plan(
    pictures: Pictures, machine: Machine, size: int, budget: float, spent: float, settings: dict[str, Any]
) -> Plan:
    """A recipe that ends within `budget` seconds, of which `spent` are gone already.

    `settings` (of a recipe file and of `--set`) stand above what the plan would choose.
    Raises `UserError` where the settings do not fit the pictures.
    """
    proposal, why_backbone = propose(pictures, machine, size, budget)
    rate = {"denoiser": {"learn": {"learning_rate": learning_rate(check(merge(proposal, settings)).denoiser.backbone)}}}
    proposal = merge(proposal, rate)
    recipe = check(merge(proposal, settings))
    check_sizes(recipe)
    choices = explain(recipe, check(proposal), pictures, why_backbone)
    plan = Plan(recipe, str(machine), budget, choices, notes=list(pictures.notes))
    measured = Measurement(recipe, pictures, machine.device)
    plan.phases = {"autoencoder": measured.autoencoder(), "denoiser": measured.denoiser()}
    allot(plan, measured, len(pictures), budget - spent)
    return plan


def propose(pictures: Pictures, machine: Machine, size: int, budget: float) -> tuple[dict[str, Any], str]:
    """The settings that suit these pictures, this machine and this much time, and why this backbone."""
    reduction, channels = choose_space(size)
    side = max(1, size // reduction)
    backbone, why_backbone = choose_backbone(side, REACHED * machine.flops * budget * (1 - AUTOENCODER_SHARE))
    precision = "bfloat16" if machine.fast_bfloat16 else "float32"
    few = len(pictures.train_indices) < FEW_PICTURES
    settings = {
        "size": size,
        "precision": precision,
        "flip": False,
        "autoencoder": {
            "network": {"reduction": reduction, "channels": channels, **ladder(reduction)},
            "crop": size if size <= LARGEST_CROP else LARGEST_CROP,
        },
        "denoiser": {
            "backbone": {**backbone, "dropout": 0.1 if few else 0.0},
            "schedule": {"kind": "flow", "shift": max(1.0, math.sqrt(channels * side**2 / 4096))},
        },
        "sampling": {"guidance": 2.0 if pictures.classes else 1.0},
    }
    return settings, why_backbone


def explain(recipe: Recipe, proposed: Recipe, pictures: Pictures, why_backbone: str) -> list[Choice]:
    """What was chosen, by the plan with its reason or by the user."""
    network, count = recipe.autoencoder.network, len(pictures.train_indices)
    side = recipe.size // network.reduction

    def choice(what: str, value: str, of: Callable[[Recipe], object], why: str) -> Choice:
        return Choice(what, value, why if of(recipe) == of(proposed) else "as you set it")

    return [
        choice(
            "latents", f"{side} x {side} x {network.channels} (f{network.reduction})",
            lambda one: one.autoencoder.network, "few places, so that the denoiser is cheap",
        ),
        choice("denoiser", describe(recipe.denoiser.backbone), lambda one: one.denoiser.backbone, why_backbone),
        choice(
            "start", recipe.denoiser.start, lambda one: one.denoiser.start,
            "closed-form Gaussians are the best denoiser that needs no training; the network learns what is left",
        ),
        choice("schedule", recipe.denoiser.schedule.kind, lambda one: one.denoiser.schedule, "straight paths"),
        choice("precision", recipe.precision, lambda one: one.precision, "both were timed here; this is faster"),
        Choice("labels", ", ".join(pictures.classes) or "none", f"class subfolders; {count:,} pictures to train on"),
        choice(
            "dropout", f"{recipe.denoiser.backbone.dropout:g}", lambda one: one.denoiser.backbone.dropout,
            f"{FEW_PICTURES:,} pictures and more need none",
        ),
    ]  # fmt: skip


FEW_PICTURES = 1000
LARGEST_CROP = 256
"""The autoencoder sees nothing that is larger than this; its networks are local."""


def choose_space(size: int) -> tuple[int, int]:
    """Reduction and channels of the autoencoder: 64 to 256 places up to 256 px; channels grow with the reduction."""
    for smallest, reduction, channels in ((192, 16, 64), (48, 8, 32), (24, 4, 8)):
        if size >= smallest:
            return reduction, channels
    return 4, 8


def ladder(reduction: int) -> dict[str, Any]:
    """Widths of the autoencoder: the cheap levels are wide."""
    return {"stem": 4, "widths": {4: [96], 8: [96, 192], 16: [64, 128, 256], 32: [64, 128, 256, 256]}[reduction]}


def choose_backbone(side: int, operations: float) -> tuple[dict[str, Any], str]:
    """The largest DiT that can still see enough pictures with so many operations."""
    patch = max(1, side // 16)
    tokens = (side // patch) ** 2
    for width, depth in ((768, 12), (512, 12), (384, 12), (384, 8), (256, 8), (192, 6), (128, 4)):
        images = operations / (6 * 12 * width**2 * depth * tokens)  # 12 width ** 2 weights a layer, 6 operations each
        if images >= ENOUGH_IMAGES:
            break
    why = f"the time allows about {images:,.0f} pictures of training with it"
    return {"kind": "dit", "width": width, "depth": depth, "heads": width // 64, "patch": patch}, why


ENOUGH_IMAGES = 20_000
"""A smaller network that sees this many pictures is better than a larger one that sees fewer."""
REACHED = 0.4
"""Of the speed of a single convolution, what a whole training step reaches."""


def learning_rate(backbone: Backbone) -> float:
    """Wider layers take smaller steps; a UNet's convolutions, with nine times the inputs, smaller ones."""
    return (0.4 if backbone.kind == "dit" else 0.04) / backbone.width


def describe(backbone: Backbone) -> str:
    if backbone.kind == "dit":
        return f"DiT of {backbone.depth} layers, width {backbone.width}, patches of {backbone.patch}"
    return f"UNet of width {backbone.width}, {len(backbone.multiples)} levels of {backbone.blocks} blocks"


def check_sizes(recipe: Recipe) -> None:
    """The picture must divide into latents, the latents into what the backbone needs, and a crop into latents."""
    unit = recipe.autoencoder.network.reduction * backbone_unit(recipe)
    if recipe.size % unit:
        near = sorted({max(unit, recipe.size // unit * unit), -(-recipe.size // unit) * unit})
        raise UserError(
            f"size is {recipe.size}, but this autoencoder and denoiser need a multiple of {unit}; "
            f"try {' or '.join(map(str, near))}"
        )
    crop = recipe.autoencoder.crop
    if crop % recipe.autoencoder.network.reduction or crop > recipe.size:
        raise UserError(
            f"autoencoder.crop is {crop}, but must be at most {recipe.size} and "
            f"a multiple of {recipe.autoencoder.network.reduction}; 0 takes whole pictures"
        )
    seen, halvings = crop or recipe.size, recipe.autoencoder.critic.depth
    if seen < 2**halvings:
        raise UserError(
            f"the autoencoder sees {seen} px, but its critic halves them {halvings} times; take pictures and crops of "
            f"at least {2**halvings} px, or set autoencoder.critic.depth={int(math.log2(seen))}"
        )


def backbone_unit(recipe: Recipe) -> int:
    backbone = recipe.denoiser.backbone
    return backbone.patch if backbone.kind == "dit" else 2 ** (len(backbone.multiples) - 1)


class Measurement:
    """Takes one real step of each kind here; every method returns seconds, an image or a step."""

    def __init__(self, recipe: Recipe, pictures: Pictures, device: torch.device) -> None:
        self.recipe, self.pictures, self.device = recipe, pictures, device
        self.space = build_space(recipe).to(device)
        self.stage = build_stage(recipe, self.space, len(pictures.classes), self._mixture())
        self.stage.denoiser.to(device)
        self.rng = Rng((recipe.seed, "plan"))
        start_linear(self.space, pictures, device)

    def _mixture(self) -> Mixture | None:
        """As large as it may get."""
        if self.recipe.denoiser.start == "nothing":
            return None
        side = self.recipe.size // self.space.reduction
        dimension, classes = self.space.channels * side**2, max(1, len(self.pictures.classes))
        components = classes * (max(CLUSTERS) if len(self.pictures) >= FEWEST * classes * max(CLUSTERS) else 1)
        return Mixture(components, largest_rank(len(self.pictures), dimension, components), dimension)

    def autoencoder(self) -> Phases:
        """The critic makes steps dearer once it learns, and again once it is listened to."""
        config, objective = self.recipe.autoencoder, build_first_stage(self.recipe, self.space.vae)
        objective.critic.to(self.device)
        objective.features.to(self.device)
        source = picture_source(self.recipe, self.pictures, self.device)
        ends = phase_ends(config.losses)
        return [(end, self._step(objective, source, config.batch, end - 1e-6)) for end in ends]

    def denoiser(self) -> Phases:
        moments = self.space.moments(self._images(2)).half().cpu()
        cache = LatentCache(moments[:1][None].expand(1, 2, *moments.shape[1:]))
        source = LatentSource(cache, torch.full((2,), NOT_TOLD), torch.arange(2), self.rng, self.device)
        objective = build_denoising(self.recipe, self.stage)
        return [(1.0, self._step(objective, source, self.recipe.denoiser.batch, 0.0))]

    def encode(self) -> float:
        images = self._images(16)
        return best_time(lambda: self.space.moments(images), self.device, 2) / len(images)

    @torch.no_grad()
    def sample(self) -> float:
        """Seconds a picture, with the recipe's steps and guidance."""
        count, few = 8, self.recipe.sampling.model_copy(update={"steps": 2})
        labels = torch.full((count,), NOT_TOLD, device=self.device)
        rngs = [self.rng.at(index) for index in range(count)]
        latents = torch.zeros(count, *self.stage.shape, device=self.device)
        whole = best_time(lambda: generate([self.stage], labels, [few], rngs), self.device, 1)
        decode = best_time(lambda: self.space.decode(latents), self.device, 1)
        return (max(0.0, whole - decode) / 2 * self.recipe.sampling.steps + decode) / count

    def parameters(self) -> dict[str, int]:
        return {"autoencoder": count_parameters(self.space.vae), "denoiser": count_parameters(self.stage.denoiser)}

    def closed_form(self) -> int:
        """Numbers that are computed from the pictures and not trained."""
        return sum(value.numel() for value in self.stage.denoiser.buffers())

    def _images(self, count: int) -> torch.Tensor:
        pixels = self.pictures.pixels[torch.arange(count) % len(self.pictures)]
        return images_from_pixels(pixels).to(self.device).contiguous(memory_format=torch.channels_last)

    def _step(self, objective: Objective, source: Source, batch: int, progress: float) -> float:
        players = {name: Player(network, PlayerConfig()) for name, network in objective.players.items()}
        clock = Clock(total=10**6, batch=batch, seed=0)

        def step() -> None:
            learn(players, objective.losses(source.batch(0, batch), progress, clock.rng()), clock)

        return best_time(step, self.device, 2) / batch


def phase_ends(losses: FirstStageConfig) -> list[float]:
    """Fractions of the first leg at which its steps change their cost."""
    changes = {1.0}
    if losses.perceptual:
        changes |= {losses.perceptual_start}
    if losses.adversarial:
        changes |= {losses.critic_start, max(losses.critic_start, losses.critic_used)}
    return sorted(changes - {0.0})


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def seconds_an_image(phases: Phases) -> float:
    """Averaged over the leg."""
    starts = [0.0, *(end for end, _ in phases)]
    return sum((end - start) * cost for start, (end, cost) in zip(starts, phases, strict=False))


AUTOENCODER_SHARE = 0.3
"""Of the training time."""
OVERHEAD = 0.05
"""Of the training time: previews, held-out measures, checkpoints, the log."""


def allot(plan: Plan, measured: Measurement, count: int, left: float) -> None:
    """Divides the seconds that are left, and fills in how many images each leg sees."""
    recipe, a_picture = plan.recipe, measured.sample()
    encode = measured.encode() * count * (2 if recipe.flip else 1)
    some = max(4.0, min(48.0, 0.04 * left / a_picture))
    plan.final_count = max(4, int(some) // 6 * 6)
    samples = some * a_picture + 1.0  # not of `final_count`, which jumps: more time must not mean less training
    train = max(0.0, left - encode - samples) / (1 + OVERHEAD)
    if not train:
        plan.notes.append(
            f"the budget is too short: reading, measuring and sampling alone take {samples + encode:.0f} s more"
        )
    costs = {name: seconds_an_image(phases) for name, phases in plan.phases.items()}
    shares = {"autoencoder": AUTOENCODER_SHARE, "denoiser": 1 - AUTOENCODER_SHARE}
    plan.paced = [name for name in costs if not getattr(recipe, name).images]
    train = max(0.0, train - sum(getattr(recipe, name).images * cost for name, cost in costs.items()))
    whole = sum(shares[name] for name in plan.paced)
    images = {
        name: getattr(recipe, name).images
        or fit_images(shares[name] / whole * train / costs[name], getattr(recipe, name).batch)
        for name in costs
    }
    plan.recipe = check(merge(recipe.model_dump(), {name: {"images": number} for name, number in images.items()}))
    seconds = {name: images[name] * cost * (1 + OVERHEAD) for name, cost in costs.items()}
    parameters = measured.parameters()
    plan.predicted = {
        "parameters": parameters,
        "images": images,
        "steps": {name: images[name] // getattr(recipe, name).batch for name in images},
        "seconds_a_step": {name: costs[name] * getattr(recipe, name).batch for name in costs},
        "seconds": {"latents": encode, "samples": samples, **seconds},
        "peak_memory_bytes": peak_memory(measured.device),
        "disk_bytes": disk_bytes(recipe, sum(parameters.values()), measured.closed_form(), count),
    }


def fit_images(images: float, batch: int) -> int:
    """Whole batches, at least one."""
    return max(1, math.floor(images / batch)) * batch


def disk_bytes(recipe: Recipe, parameters: int, closed_form: int, count: int) -> int:
    """Two checkpoints of weights, average and two moments each, the model, and the latents in float16."""
    latents = 2 * recipe.autoencoder.network.channels * (recipe.size // recipe.autoencoder.network.reduction) ** 2
    checkpoint, model = 4 * (4 * parameters + 2 * closed_form), 4 * (parameters + closed_form)
    return 2 * checkpoint + model + 2 * latents * count * (2 if recipe.flip else 1)


class Pace:
    """Keeps a leg to its time: if this machine is faster or slower than measured, the leg gets longer or shorter."""

    def __init__(self, phases: Phases, seconds: float) -> None:
        self.phases, self.seconds = phases, seconds

    def done(self, progress: float) -> float:
        """The share of the leg's work that lies before this fraction of its images."""
        before = [(min(end, progress), cost) for end, cost in self.phases]
        return seconds_an_image(before) / seconds_an_image(self.phases)

    def __call__(self, clock: Clock) -> None:
        done = self.done(clock.progress)
        if not 0.02 < done < 0.97:
            return
        ahead = clock.seconds * (1 - done) / done
        stretch = max(0.5, min(2.0, (self.seconds - clock.seconds) / ahead))
        images = clock.images_seen + (clock.total - clock.images_seen) * stretch
        clock.total = max(clock.images_seen + clock.batch, fit_images(images, clock.batch))
