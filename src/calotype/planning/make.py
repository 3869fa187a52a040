"""Makes the plan of a run from pictures, machine, budget and the user's settings."""

from __future__ import annotations

import time
from typing import Any

from calotype.data.buckets import bucket_notes, original_sizes
from calotype.data.folder import Pictures
from calotype.machine import Machine
from calotype.planning.budget import allot
from calotype.planning.choose import learning_rate, propose
from calotype.planning.explain import explain
from calotype.planning.measure import Measurement
from calotype.planning.plan import Plan
from calotype.planning.sizes import check_sizes
from calotype.recipe import DiffusionConfig, Recipe
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.types import UserError


def make_plan(pictures: Pictures, machine: Machine, budget: float, started: float, settings: dict[str, Any]) -> Plan:
    """For a run that ends `budget` seconds after `started`, a time since the epoch; planning takes some of them.

    `settings`, those of a recipe file and of `--set`, override what is proposed. Raises `UserError` where they do not
    fit the pictures or one another.
    """
    began = time.time()
    proposal, reasons = propose(pictures, machine, budget, settings)
    proposing = time.time() - began
    proposal = with_learning_rates(proposal, parse_recipe(merge(proposal, settings)), machine.batch_factor)
    recipe = parse_recipe(merge(proposal, settings))
    check_sizes(recipe)
    check_captions(recipe, pictures)
    measured = Measurement(recipe, pictures, machine.device)
    plan = Plan(
        recipe=recipe,
        device=str(machine),
        budget_seconds=budget,
        choices=explain(recipe, parse_recipe(proposal), pictures, reasons),
        phases=measured.phases(),
        flops=measured.flops(),
        notes=[
            *pictures.notes,
            *bucket_notes(original_sizes(pictures), recipe.aspect_buckets, recipe.size, recipe.unit),
        ],
    )
    allot(plan, measured, len(pictures), started + budget, proposing)
    return plan


def with_learning_rates(proposal: dict[str, Any], recipe: Recipe, batch_factor: int) -> dict[str, Any]:
    """Those for the backbones that the user wants; larger batches take larger steps, up to twice as large."""

    def learn(config: DiffusionConfig) -> dict[str, Any]:
        return {"learn": {"learning_rate": learning_rate(config.backbone) * min(2.0, batch_factor**0.5)}}

    enlarge = {str(size): learn(recipe.enlarger(size)) for size in recipe.chain[1:]}
    return merge(proposal, {"denoiser": learn(recipe.denoiser), "enlarge": enlarge})


def check_captions(recipe: Recipe, pictures: Pictures) -> None:
    """Raises `UserError` for a text encoder without captions."""
    if recipe.denoiser.text.kind != "none" and not pictures.captions:
        raise UserError(
            f"denoiser.text.kind is {recipe.denoiser.text.kind}, but none of the pictures has a caption; write them "
            f"into .txt files beside the pictures or into metadata.jsonl, or set it to none"
        )
