"""Makes the plan of a run from pictures, machine, budget and the user's settings, and divides the budget.

The costs that the plan predicts are seconds, bytes of memory and bytes on disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from calotype.data.buckets import bucket_counts, bucket_notes, bucket_sizes, some_sizes
from calotype.data.duplicates import HASH_BYTES
from calotype.data.folder import Pictures
from calotype.machine import UTILIZATION, Machine
from calotype.planning.choose import propose, three_digits
from calotype.planning.costs import Costs
from calotype.planning.count import Counted
from calotype.planning.inherit import explain_start, inherit
from calotype.planning.laws import FEW_EPOCHS, learning_rate, time_shares
from calotype.planning.measure import Measurement
from calotype.planning.memory import choose_sharding, gigabytes, latent_bytes, rounds_of, unread_pixel_bytes
from calotype.planning.plan import Plan, explain, network_of
from calotype.planning.sizes import check_sizes
from calotype.recipe import DiffusionConfig, EnlargeRecipe, OptimizerConfig, Recipe, exposure_above, leg_above
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.checkpoint import KEPT_CHECKPOINTS
from calotype.training.compiling import WORTH
from calotype.training.control import mean_cost, whole_batches
from calotype.training.fitting import fitted_sides
from calotype.training.levels import LEVELS_TRIED, judged_side, scales_tried
from calotype.training.loop import doublings
from calotype.training.scaling import SCALED_SAMPLES
from calotype.training.warm_start import WarmStart
from calotype.types import UserError

OVERHEAD = 0.05
"""Fraction of the training time for previews, held-out measures, checkpoints and the log."""
LAST_PREVIEWS = 10.0
"""Pictures' worth of time for the previews at the ends of legs: a dozen with averaged and raw weights, in few steps."""
WARMUP_STEPS, LONGEST_WARMUP, MOST_WARMUP_STEPS = 100, 0.25, 10_000
"""With 25 steps the network outputs zero for the rest of a run of 500; with 60 it does not (dev/LOG.md, 2026-11-22).
Runs of days need no more than the most."""
GUIDANCE_SHARE, FEWEST_GUIDANCE_SAMPLES, MOST_GUIDANCE_SAMPLES = 0.06, 32, 192
"""Fraction of the time for the search of a guidance scale at most, and samples at each scale. Photographs of minutes
are lost without it: the usual scale is that of portraits."""
SCALING_PASSES = 3
"""Of the fit of epsilon scaling at each of them: one where none is needed, else two to five."""
PREDICTED = (
    f"the plan is for a machine that is not here: seconds are counted operations at {UTILIZATION:.0%} of its FLOP/s, "
    f"memory is predicted, nothing was measured"
)
UNMEASURED = (
    f"networks are sharded, so no rank could measure a step: seconds are counted operations at {UTILIZATION:.0%} of "
    f"the FLOP/s of all ranks"
)
FEWEST_HELD_OUT = 16
"""Validation pictures; by fewer, which guidance scale is nearest would be chance."""
LEVEL_SHARE, FEWEST_LEVEL_CROPS, MOST_LEVEL_CROPS = 0.05, 12, 96
"""Fraction of the time for the search of an augmentation level, whose result on fewer crops would be chance."""


def make_plan(
    pictures: Pictures, machine: Machine, budget: float, started: float, settings: dict[str, Any],
    start: WarmStart | None = None,
) -> Plan:  # fmt: skip
    """For a run that ends `budget` seconds after `started`, by the monotonic clock; planning takes some of them.

    `settings`, those of a recipe file and of `--set`, override what is proposed, and what is taken over from the run
    that this one starts from. Raises `UserError` where they do not fit the pictures or one another.
    """
    began = time.monotonic()
    inherited, about = inherit(start, pictures, settings, machine.device if machine.here else torch.device("cpu"))
    proposal, reasons = propose(pictures, machine, budget, merge(inherited, settings))
    proposal, proposing = merge(proposal, inherited), time.monotonic() - began
    proposal = with_optimizers(proposal, parse_recipe(merge(proposal, settings)))
    proposal = merge(proposal, inherited)
    recipe = parse_recipe(merge(proposal, settings))
    check_sizes(recipe)
    if machine.ranks > 1:
        proposal["sharding"], reasons["sharding"] = choose_sharding(recipe, machine)
        recipe = parse_recipe(merge(proposal, settings))
    rounds = rounds_of(recipe, machine)
    if recipe.denoiser.text.kind != "none" and not pictures.captions:
        raise UserError(
            f"denoiser.text.kind is {recipe.denoiser.text.kind}, but none of the pictures has a caption; write them "
            f"into .txt files beside the pictures or into metadata.jsonl, or set it to none"
        )
    operations = UTILIZATION * machine.all_flops * budget
    notes, costs = costs_of(recipe, pictures, machine, rounds, budget)
    plan = Plan(
        recipe=recipe,
        device=str(machine),
        budget_seconds=budget,
        phases={leg: [(step.end, step.seconds) for step in steps] for leg, steps in costs.steps.items()},
        slices={leg: steps[-1].slices for leg, steps in costs.steps.items()},
        compiled=[leg for leg, steps in costs.steps.items() if steps[-1].compiled],
        rounds=rounds,
        flops={leg: mean_cost([(step.end, step.flops) for step in steps]) for leg, steps in costs.steps.items()},
        guidance_samples=MOST_GUIDANCE_SAMPLES if searches_guidance(recipe, settings, pictures) else 0,
        guidance_by_user=bool(of_guidance(settings.get("sampling", {}))),
        notes=[
            *notes,
            *(explain_start(start, recipe, pictures.classes, about) if start else ()),
            *pictures.notes,
            *bucket_notes(some_sizes(pictures), recipe.aspect_buckets, recipe.size, recipe.unit),
        ],
    )
    deadline = started + budget if machine.here else None
    allot(plan, costs, sets_of(recipe, pictures), deadline, proposing, operations)
    reasons |= reasons_of_legs(plan, pictures) | about
    plan.choices = explain(recipe, parse_recipe(proposal), pictures, reasons, start)
    plan.predicted["disk_bytes"] += unread_pixel_bytes(pictures, machine.memory) + (start.bytes if start else 0)
    plan.notes += memory_notes(plan, machine)
    return plan


def memory_notes(plan: Plan, machine: Machine) -> list[str]:
    """What is predicted for a machine that is not here may be more than it has: of one that is, the free memory is what
    was left when the pictures had been read."""
    peak = plan.predicted["peak_memory_bytes"]
    if machine.here or peak <= machine.memory:
        return []
    return [
        f"the plan needs about {gigabytes(peak)} of memory, but only {gigabytes(machine.memory)} are free; it may stop "
        f"for lack of memory"
    ]


def reasons_of_legs(plan: Plan, pictures: Pictures) -> dict[str, str]:
    """For the network of each leg and for dropout, by how many pictures the legs see. The laws that choose them take
    all of the budget for training at the speed of one layer, which is up to three times as many pictures."""
    images = plan.predicted["images"]
    reasons = {
        leg: f"the time allows about {seen:,} pictures of training with it"
        if leg in plan.paced
        else f"it is trained on {seen:,} pictures, as you set it"
        for leg, seen in images.items()
        if leg != "autoencoder"  # whose network is not chosen by them
    }
    epochs = images["denoiser"] / max(1, pictures.trained)
    law = f"0 up to {FEW_EPOCHS} epochs, then 0.1 more for each tenfold, as if all of the time were training"
    times = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.1f}"
    return reasons | {"dropout": f"{law}; this run has about {times} epochs"}


def costs_of(
    recipe: Recipe, pictures: Pictures, machine: Machine, rounds: Mapping[str, int], budget: float
) -> tuple[list[str], Costs]:
    """Measured where the machine is here, with what was noticed; else counted."""
    if not machine.here:
        return [PREDICTED], Counted(recipe, pictures, machine, rounds)
    if machine.ranks > 1 and recipe.sharding != "none":
        return [UNMEASURED], Counted(recipe, pictures, machine, rounds)
    legs = [leg for leg in recipe.legs if not leg.startswith("exposure")]
    shares = time_shares(legs, UTILIZATION * machine.all_flops * budget)
    long = [leg for leg in shares if shares[leg] * budget >= WORTH or recipe.legs[leg].images]
    costs = Measurement(recipe, pictures, machine, rounds, long if recipe.aspect_buckets == 1 else [])
    return costs.notes, costs


def sets_of(recipe: Recipe, pictures: Pictures) -> list[int]:
    """How many pictures the first stage has in each aspect bucket; in one set where all are squares."""
    if recipe.aspect_buckets == 1:
        return [pictures.total]
    return bucket_counts(pictures, bucket_sizes(recipe.aspect_buckets, recipe.size, recipe.unit))


def with_optimizers(proposal: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Those for the backbones that the user wants."""

    def learn(config: DiffusionConfig) -> dict[str, Any]:
        rate = learning_rate(config.backbone.kind, config.backbone.width)
        optimizer = "muon" if config.backbone.kind == "dit" else "adamw"
        return {"learn": {"optimizer": optimizer, "learning_rate": three_digits(rate)}}

    enlarge = {str(size): learn(recipe.enlarging(size)) for size in recipe.chain[1:]}
    return merge(proposal, {"denoiser": learn(recipe.denoiser), "enlarge": enlarge})


# -- The budget --------------------------------------------------------------------------------------------------------


def allot(
    plan: Plan, measured: Costs, sets: Sequence[int], deadline: float | None, proposing: float = 0.0,
    operations: float = 0.0,
) -> None:  # fmt: skip
    """Divides the time that is left until `deadline`, by the monotonic clock, among the steps of a run; None is for a
    machine that is not here, where it is not known how long planning takes: all of the budget is left.

    `sets` has the numbers of pictures in the sets of the first stage, `operations` are those of the whole run.
    `proposing` is how many seconds the proposal took, mostly for the priors of stages that enlarge: they are fitted
    again, to more pictures, before their legs.
    """
    recipe, a_picture, count = plan.recipe, sum(measured.sampling), sum(sets)
    left = plan.budget_seconds if deadline is None else deadline - time.monotonic()
    seconds = between_legs(plan, measured, count, left)
    if recipe.chain[1:] and deadline is not None:
        seconds["prepare"] = proposing
    samples = max(4.0, min(48.0, 0.04 * left / a_picture))
    plan.final_count = max(4, int(samples) // 6 * 6)
    seconds["samples"] = samples * a_picture + 1.0  # not of `final_count`, whose jumps would shorten the training
    seconds["previews"] = LAST_PREVIEWS * a_picture
    training = max(0.0, left - sum(seconds.values())) / (1 + OVERHEAD)
    if not training:
        over = sum(seconds.values()) - left
        plan.notes.append(f"the budget is too short: reading, measuring and sampling alone take {over:.0f} s more")
    costs = {leg: mean_cost(phases) for leg, phases in plan.phases.items()}
    plan.paced = [leg for leg, config in recipe.legs.items() if not config.images]
    images = divide(recipe, costs, training, operations)
    seconds |= {leg: images[leg] * costs[leg] * (1 + OVERHEAD) for leg in images}
    batches = {leg: config.batch for leg, config in recipe.legs.items()}
    plan.recipe = with_warmups(recipe, images).with_images(images)
    plan.predicted = {
        "parameters": measured.parameters(),
        "images": images,
        "steps": {leg: math.ceil(images[leg] / batches[leg]) for leg in images},
        "seconds_a_step": {leg: costs[leg] * batches[leg] for leg in images},
        "seconds": {step: seconds[step] for step in steps_of(recipe) if step in seconds},
        "peak_memory_bytes": measured.peak_memory(sets),
        "disk_bytes": disk_bytes(plan.recipe, measured, sets) + measured.captions[1],
    }


def steps_of(recipe: Recipe) -> list[str]:
    """All that a run may do, in order."""
    steps = ["captions", "autoencoder", "latents", "inspect", "fit", "denoiser", "guidance", "prepare"]
    for size in recipe.chain[1:]:
        steps += [leg_above(size), exposure_above(size), f"level-{size}"]
    return [*steps, "previews", "samples"]


def divide(recipe: Recipe, costs: dict[str, float], training: float, operations: float = 0.0) -> dict[str, int]:
    """How many images each leg sees in so many seconds: as the user has set it, the others by their shares."""
    legs = recipe.legs
    left = max(0.0, training - sum(config.images * costs[leg] for leg, config in legs.items()))
    shares = time_shares((leg for leg, config in legs.items() if not config.images), operations)
    return {
        leg: config.images or whole_batches(shares[leg] * left / costs[leg], config.batch)
        for leg, config in legs.items()
    }


def with_warmups(recipe: Recipe, images: dict[str, int]) -> Recipe:
    """A diffusion model starts as zero and needs some hundred steps of warm-up, however short the run is."""

    def learn(leg: str, config: DiffusionConfig) -> dict[str, Any]:
        default = OptimizerConfig().warmup
        if config.learn.warmup != default:
            return {}
        least, most = (steps * config.batch / images[leg] for steps in (WARMUP_STEPS, MOST_WARMUP_STEPS))
        return {"learn": {"warmup": min(most, max(default, min(LONGEST_WARMUP, least)))}}

    enlarge = {str(size): learn(leg_above(size), recipe.enlarging(size)) for size in recipe.chain[1:]}
    changes = {"denoiser": learn("denoiser", recipe.denoiser), "enlarge": enlarge}
    return parse_recipe(merge(recipe.model_dump(), changes))


def between_legs(plan: Plan, measured: Costs, count: int, left: float) -> dict[str, float]:
    """Seconds of captions, latents, inspection, prior, and of the search for augmentation levels in `level_crops`."""
    recipe = plan.recipe
    seconds = {"fit": measured.fit(count * fitted_sides(recipe))}
    if recipe.kind == "latent":
        encoded = count * (1 + recipe.flip + recipe.denoiser.views)
        seconds |= {"latents": measured.encode() * encoded, "inspect": measured.inspect()}
    if measured.captions[0]:
        seconds["captions"] = measured.captions[0]
    if plan.guidance_samples:
        of = partial(guidance_seconds, recipe, sampling=measured.sampling[0], feature=measured.feature)
        costs = {count: of(count) for count in range(1, plan.guidance_samples + 1)}
        affordable = [count for count, cost in costs.items() if cost <= GUIDANCE_SHARE * left]
        plan.guidance_samples = max(affordable, default=0)
        seconds["guidance"] = costs.get(plan.guidance_samples, 0.0)
    if plan.guidance_samples < FEWEST_GUIDANCE_SAMPLES:
        plan.guidance_samples = 0
        seconds.pop("guidance", None)
    for index, size in enumerate(recipe.chain[1:], 1):
        share = (judged_side(recipe, size) / size) ** 2
        below = sum(measured.sampling[:index])
        a_crop = below + LEVELS_TRIED * (share * measured.sampling[index] + measured.feature)
        crops = min(MOST_LEVEL_CROPS, int(LEVEL_SHARE * max(0.0, left) / a_crop))
        if crops < FEWEST_LEVEL_CROPS or not searches_level(recipe.enlarging(size)):
            crops = 0
        plan.level_crops[str(size)] = crops
        seconds[f"level-{size}"] = crops * a_crop
    return seconds


def guidance_seconds(recipe: Recipe, count: int, sampling: float, feature: float) -> float:
    """Of the search of a guidance scale with so many samples at each, and of the fit of epsilon scaling at each, from
    the seconds of a sample and of its features."""
    fitted = SCALING_PASSES * min(count, SCALED_SAMPLES) if recipe.kind == "latent" else 0
    return len(scales_tried(recipe.sampling)) * ((count + fitted) * sampling + count * feature)


def searches_guidance(recipe: Recipe, settings: dict[str, Any], pictures: Pictures) -> bool:
    """Whether the prior is the guide, the user has set nothing of guidance or epsilon scaling, and enough pictures are
    held out."""
    held_out = set(pictures.validation_indices.tolist()) - set(pictures.train_indices.tolist())
    by_prior = recipe.sampling.guide == "prior"
    return by_prior and not of_guidance(settings.get("sampling", {})) and len(held_out) >= FEWEST_HELD_OUT


def of_guidance(sampling: dict[str, Any]) -> dict[str, Any]:
    """Those of some sampling settings that the search would choose."""
    return {name: value for name, value in sampling.items() if name.startswith(("guid", "epsilon"))}


def searches_level(stage: EnlargeRecipe) -> bool:
    """Whether the stage was trained with augmentation, and the user has set nothing of it for sampling."""
    default = EnlargeRecipe().sampling.conditioning
    return stage.augmentation.share > 0 and (stage.sampling.augmentation, stage.sampling.conditioning) == (0.0, default)


def disk_bytes(recipe: Recipe, measured: Costs, sets: Sequence[int]) -> int:
    """At most: two checkpoints a leg and its milestones, the fitted priors, the model and its autoencoder, the latents,
    and the pictures' hashes.

    Besides, for a while, what is written before the old is removed: a third checkpoint with the best average weights,
    or a second model. An imported autoencoder that is not trained is in the model alone.
    """
    legs = [checkpoint_values(recipe, measured, leg) for leg in recipe.legs]
    model = sum(measured.parameters().values()) + measured.prior_values()
    spare = max([model, *(leg + leg // 4 for leg in legs)])
    values = KEPT_CHECKPOINTS * sum(legs) + spare + model + measured.constant_values()
    for leg, config in recipe.legs.items():
        if leg != "autoencoder":
            values += doublings(recipe.milestones, config.images) * checkpoint_values(recipe, measured, leg)
    values += measured.parameters().get("autoencoder", 0)
    return 4 * values + latent_bytes(recipe, sets).disk + HASH_BYTES * sum(sets)


def checkpoint_values(recipe: Recipe, measured: Costs, leg: str) -> int:
    """Weights, their average and two moments of each network; the autoencoder also as it was before its critic."""
    parameters = measured.parameters()
    values = parameters[network_of(leg)]
    if leg == "autoencoder" and recipe.autoencoder.losses.adversarial:
        values += measured.critic_parameters() + parameters["autoencoder"]
    return 4 * values
