"""The plan itself: how the time is divided, and what is predicted."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from calotype.data.folder import Pictures
from calotype.data.shapes import shape_notes, sizes_of
from calotype.machine import Machine, peak_memory
from calotype.planning.choices import Choice, explain, learning_rate, propose, shares
from calotype.planning.measurement import Measurement
from calotype.planning.reading import check_text
from calotype.planning.sizes import check_sizes
from calotype.recipe import DiffusionConfig, EnlargeRecipe, OptimizerConfig, Recipe, leg_above
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.budget import Phases, TimeBudget, mean_cost, whole_batches
from calotype.training.checkpoint import KEPT_CHECKPOINTS as CHECKPOINTS
from calotype.training.levels import LEVELS_TRIED

OVERHEAD = 0.05
"""Of the training time: previews, held-out measures, checkpoints, the log."""
LAST_LOOKS = 10.0
"""Samples' worth of time at the ends of the legs: a dozen at under half of the steps, averaged and raw."""
WARMUP_STEPS, LONGEST_WARMUP = 100, 0.25
"""With 25 steps the network stays silent for the rest of a run of 500; with 60 it does not (dev/LOG.md, 2026-11-22)."""
ORDER = (
    "captions", "autoencoder", "latents", "inspect", "fit", "denoiser", "prepare", "enlarge",
    "exposure", "level", "previews", "samples",
)  # fmt: skip
LEVEL_SHARE, FEWEST_LEVEL_CROPS, MOST_LEVEL_CROPS = 0.05, 12, 96
"""The search for an augmentation level may take this share of the time; with fewer crops it says nothing."""


@dataclass
class Plan:
    recipe: Recipe
    device: str
    budget_seconds: float
    choices: list[Choice] = field(default_factory=list)
    predicted: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, Phases] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    """Floating-point operations an image in each leg, forward and backward."""
    paced: list[str] = field(default_factory=list)
    """Legs whose length follows the clock; the others see as many images as the user has set."""
    final_count: int = 16
    level_crops: dict[str, int] = field(default_factory=dict)
    """On how many crops the augmentation of each stage that enlarges is searched; 0: it stays as the recipe has it."""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        about = asdict(self)
        del about["recipe"]
        return {"kind": self.recipe.kind, "size": self.recipe.size, **about}

    @classmethod
    def from_json(cls, recipe: Recipe, about: dict[str, Any]) -> Plan:
        names = ("device", "budget_seconds", "predicted", "paced", "final_count", "level_crops", "notes")
        kept = {name: about[name] for name in names}
        phases = {leg: [(end, cost) for end, cost in phases] for leg, phases in about["phases"].items()}
        flops = about.get("flops", {})  # plans of version 0.1.0 have none
        return cls(
            recipe, **kept, phases=phases, flops=flops, choices=[Choice(**choice) for choice in about["choices"]]
        )

    def parameters(self, leg: str) -> int:
        """Of the network that a leg trains; the critic is not counted."""
        return int(self.predicted["parameters"][network_of(leg)])

    @property
    def time_budget(self) -> TimeBudget:
        """What training needs of this plan."""
        seconds = self.predicted["seconds"]
        return TimeBudget(self.budget_seconds, seconds, self.phases, self.paced, self.level_crops)


def network_of(leg: str) -> str:
    """Which network a leg trains, by the leg that trains it first."""
    return leg.replace("exposure", "enlarge")


def make_plan(pictures: Pictures, machine: Machine, budget: float, started: float, settings: dict[str, Any]) -> Plan:
    """A recipe that ends `budget` seconds after `started`, a time since the epoch; planning itself takes some of them.

    `settings` (of a recipe file and of `--set`) stand above what the plan would choose.
    Raises `UserError` where the settings do not fit the pictures.
    """
    began = time.time()
    proposal, reasons = propose(pictures, machine, budget, settings)
    proposing = time.time() - began
    proposal = with_learning_rates(proposal, parse_recipe(merge(proposal, settings)), machine.width)
    recipe = parse_recipe(merge(proposal, settings))
    check_sizes(recipe)
    check_text(recipe, pictures)
    choices = explain(recipe, parse_recipe(proposal), pictures, reasons)
    shapes = shape_notes(sizes_of(pictures), recipe.aspect_buckets, recipe.size, recipe.unit)
    plan = Plan(recipe, str(machine), budget, choices, notes=[*pictures.notes, *shapes])
    measured = Measurement(recipe, pictures, machine.device)
    plan.phases, plan.flops = measured.phases(), measured.flops()
    allot(plan, measured, len(pictures), budget, started, proposing)
    return plan


def with_learning_rates(proposal: dict[str, Any], recipe: Recipe, width: int) -> dict[str, Any]:
    """Those that go with the backbones as the user wants them, and with batches `width` times as large."""

    def rate(config: DiffusionConfig) -> dict[str, Any]:
        return {"learn": {"learning_rate": learning_rate(config.backbone) * min(2.0, width**0.5)}}

    above = {str(size): rate(recipe.enlarger(size)) for size in recipe.chain[1:]}
    return merge(proposal, {"denoiser": rate(recipe.denoiser), "enlarge": above})


def allot(plan: Plan, measured: Measurement, count: int, budget: float, started: float, proposing: float = 0.0) -> None:
    """Divides the seconds that are left, and fills in how many images each leg sees.

    `proposing` is how long it took to say what suits the pictures, most of it closed forms of stages that enlarge; they
    are fitted anew, to more pictures, before their legs.
    """
    recipe, a_picture = plan.recipe, measured.sample()
    left = budget - (time.time() - started)
    seconds = dict.fromkeys(recipe.legs, 0.0)
    fixed = beside_training(plan, measured, count, left)
    if recipe.chain[1:]:
        fixed["prepare"] = proposing
    some = max(4.0, min(48.0, 0.04 * left / a_picture))
    plan.final_count = max(4, int(some) // 6 * 6)
    samples = some * a_picture + 1.0  # not of `final_count`, which jumps: more time must not mean less training
    fixed["previews"] = LAST_LOOKS * a_picture
    train = max(0.0, left - sum(fixed.values()) - samples) / (1 + OVERHEAD)
    if not train:
        plan.notes.append(
            f"the budget is too short: reading, measuring and sampling alone take "
            f"{samples + sum(fixed.values()):.0f} s more"
        )
    images = divide(plan, train)
    plan.recipe = with_warmups(recipe, images).with_images(images)
    costs = {leg: mean_cost(phases) for leg, phases in plan.phases.items()}
    for leg in seconds:
        seconds[leg] = images[leg] * costs[leg] * (1 + OVERHEAD)
    parameters, batches = measured.parameters(), {leg: config.batch for leg, config in recipe.legs.items()}
    plan.predicted = {
        "parameters": parameters,
        "images": images,
        "steps": {leg: images[leg] // batches[leg] for leg in images},
        "seconds_a_step": {leg: costs[leg] * batches[leg] for leg in costs},
        "seconds": in_order({**seconds, **fixed, "samples": samples}),
        "peak_memory_bytes": peak_memory(measured.device),
        "disk_bytes": disk_bytes(recipe, measured, count) + measured.reading[1],
    }


def divide(plan: Plan, train: float) -> dict[str, int]:
    """How many images each leg sees in `train` seconds: as the user has set it, the others by their shares."""
    legs = plan.recipe.legs
    costs = {leg: mean_cost(phases) for leg, phases in plan.phases.items()}
    plan.paced = [leg for leg, config in legs.items() if not config.images]
    train = max(0.0, train - sum(config.images * costs[leg] for leg, config in legs.items()))
    parts = shares(plan.paced) if plan.paced else {}
    return {
        leg: config.images or whole_batches(parts[leg] * train / costs[leg], config.batch)
        for leg, config in legs.items()
    }


def with_warmups(recipe: Recipe, images: dict[str, int]) -> Recipe:
    """A diffusion model needs some hundred steps of warm-up to leave its silent start, however short the run is."""

    def changed(leg: str, config: DiffusionConfig) -> dict[str, Any]:
        default = OptimizerConfig().warmup
        needed = min(LONGEST_WARMUP, WARMUP_STEPS * config.batch / images[leg])
        return {"learn": {"warmup": max(default, needed) if config.learn.warmup == default else config.learn.warmup}}

    above = {str(size): changed(leg_above(size), recipe.enlarger(size)) for size in recipe.chain[1:]}
    return parse_recipe(
        merge(recipe.model_dump(), {"denoiser": changed("denoiser", recipe.denoiser), "enlarge": above})
    )


def beside_training(plan: Plan, measured: Measurement, count: int, left: float) -> dict[str, float]:
    """Seconds of what comes between legs: latents, the doctor, the closed form, a search after each stage above."""
    recipe = plan.recipe
    encoded = count * (2 if recipe.flip else 1)
    latent = {"latents": measured.encode() * encoded, "inspect": measured.inspect()}
    fixed = (latent if recipe.kind == "latent" else {}) | {"fit": measured.fit(count)}
    if seconds := measured.reading[0]:
        fixed["captions"] = seconds
    for index, size in enumerate(recipe.chain[1:], 1):
        crop = (recipe.enlarger(size).crop or size) / size
        below = sum(measured.sample_stage(place) for place in range(index))
        a_crop = below + LEVELS_TRIED * crop**2 * measured.sample_stage(index)
        crops = min(MOST_LEVEL_CROPS, int(LEVEL_SHARE * max(0.0, left) / a_crop))
        plan.level_crops[str(size)] = crops if crops >= FEWEST_LEVEL_CROPS and is_open(recipe, size) else 0
        fixed[f"level-{size}"] = plan.level_crops[str(size)] * a_crop
    return fixed


def is_open(recipe: Recipe, size: int) -> bool:
    """Whether the level of a stage's augmentation is to be searched: one that was trained, and that nobody has set."""
    config = recipe.enlarger(size)
    default = EnlargeRecipe().sampling
    untouched = (config.sampling.augmentation, config.sampling.conditioning) == (0.0, default.conditioning)
    return untouched and config.augmentation.share > 0


def in_order(seconds: dict[str, float]) -> dict[str, float]:
    """What comes first stands first."""
    last = 10**9

    def place(what: str) -> tuple[int, int]:
        head, _, size = what.partition("-")
        rank = ORDER.index(head)
        return (int(size), rank) if size else (last if head in ("previews", "samples") else 0, rank)

    return {what: seconds[what] for what in sorted(seconds, key=place)}


def disk_bytes(recipe: Recipe, measured: Measurement, count: int) -> int:
    """At most: two checkpoints a leg, what the closed forms were fitted to be, the model, the latents in float16.

    And, for a while, what is written whole before the old is removed: a third checkpoint beside the best average
    weights, or a second model. An imported autoencoder that is not trained is in the model alone.
    """
    network, base = recipe.autoencoder.network, recipe.chain[0]
    latents = 2 * network.channels * (base // network.reduction) ** 2 if recipe.kind == "latent" else 0
    legs = [checkpoint_numbers(recipe, measured, leg) for leg in recipe.legs]
    model = sum(measured.parameters().values()) + measured.closed_form()
    spare = max([model, *(leg + leg // 4 for leg in legs)])
    numbers = CHECKPOINTS * sum(legs) + spare + model + measured.constants()
    return 4 * numbers + 2 * latents * count * (2 if recipe.flip else 1)


def checkpoint_numbers(recipe: Recipe, measured: Measurement, leg: str) -> int:
    """Weights, their average and two moments of each network; again, of an autoencoder whose critic is guarded."""
    parameters = measured.parameters()
    numbers = parameters[network_of(leg)]
    if leg == "autoencoder" and recipe.autoencoder.losses.adversarial:
        numbers += measured.critic() + parameters["autoencoder"]
    return 4 * numbers
