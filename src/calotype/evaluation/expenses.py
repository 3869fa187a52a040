"""What a run has cost to train, and what it costs to keep and to use."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from calotype.data.folder import Pictures
from calotype.diffusion.stage import Stage, shrunk
from calotype.evaluation.candidate import Candidate, seconds_of, usual_text
from calotype.evaluation.counting import counted
from calotype.evaluation.preparations import (
    NO_RECORD,
    frozen_encoder,
    preparations,
    reading_flops,
    sampling_flops,
)
from calotype.nets.vae import Vae
from calotype.planning.measurement import phase_ends
from calotype.priors.prior import constant_count
from calotype.recipe import OptimizerConfig, exposure_above, leg_above
from calotype.report.folder import Run
from calotype.spaces.latent import LatentSpace
from calotype.tables import number
from calotype.training.budget import mean_cost
from calotype.training.legs import autoencoder_objective
from calotype.training.loop import TrainProgress, train_step
from calotype.training.objectives import DenoisingObjective, Objective
from calotype.training.state import TrainState
from calotype.types import NULL_LABEL, Batch, Rng

COUNTS = (1, 4, 16)
KINDS = ("trained", "fitted", "text_encoder")
Flops = dict[str, float]
Network = TypeVar("Network", bound=nn.Module)


def deployment(one: Candidate) -> dict[str, Any]:
    """What must be set up to make pictures: all numbers, those of a text encoder outside the folder too."""
    folder = one.run.folder / "model"
    files = sorted(file for file in folder.iterdir() if file.is_file())
    networks = numbers_of(one)
    kinds = {kind: sum(numbers[kind] for numbers in networks.values()) for kind in KINDS}
    return {
        "networks": networks,
        "count": len(networks),
        "parameters": {**kinds, "sum": sum(kinds.values())},
        "bytes": sum(file.stat().st_size for file in files),
        "files": [file.name for file in files],
    }


def numbers_of(one: Candidate) -> dict[str, dict[str, int]]:
    """Of each network, how many numbers are trained, fitted in closed form, or those of a frozen text encoder."""
    base, *above = one.model.stages
    found = {"autoencoder": numbers_in(base.space)} if isinstance(base.space, LatentSpace) else {}
    found["denoiser"] = numbers_in(base.denoiser)
    found |= {leg_above(stage.image_size): numbers_in(stage.denoiser) for stage in above}
    if (frozen := frozen_encoder(one)) is not None:
        found["text encoder"] = kinds_of(text_encoder=all_numbers(frozen.reader.network))
    return found


def numbers_in(network: nn.Module) -> dict[str, int]:
    """Fitted are a closed form, the linear path of an autoencoder, and the statistics of its latents."""
    fitted = constant_count(network)
    if isinstance(network, LatentSpace):
        fitted += network.mean.numel() + network.spread.numel()
        if isinstance(vae := network.vae, Vae):
            fitted += all_numbers(vae.linear_in) + all_numbers(vae.linear_out)
    return kinds_of(trained=all_numbers(network) - fitted, fitted=fitted)


def kinds_of(**numbers: int) -> dict[str, int]:
    found = {kind: numbers.get(kind, 0) for kind in KINDS}
    return {**found, "sum": sum(found.values())}


def all_numbers(network: nn.Module) -> int:
    return sum(value.numel() for value in network.state_dict().values())


def cost(one: Candidate, pictures: Pictures) -> dict[str, Any]:
    """In floating-point operations (counted), seconds and bytes (measured); `pictures` were encoded before training."""
    frozen, prompt = frozen_encoder(one), usual_text(one.model, 1)
    reading = reading_flops(frozen, list(prompt.prompts)) if frozen and prompt else 0
    return {
        "flops_a_picture": sampling_flops(one, one.model.stages, one.model.samplings) + reading,
        "sampling": in_a_process_of_its_own(one),
        "training": training_cost(one, pictures),
        "clock": clock(one.run),
    }


def training_cost(one: Candidate, pictures: Pictures) -> dict[str, Any]:
    """Legs and preparations; these are spread over the pictures that the denoiser has seen."""
    legs, others = list(legs_cost(one, len(pictures))), list(preparations(one, pictures))
    found = {"legs": legs, "preparations": others, "seconds": sum(row["seconds"] for row in [*legs, *others])}
    unknown = [row["part"] for row in others if row["flops"] is None]
    if unknown:
        return {**found, "flops": None, "flops_a_picture": None, "reason": f"{', '.join(unknown)}: {NO_RECORD}"}
    once, seen = sum(row["flops"] for row in others), max(1.0, images_seen(one, "denoiser"))
    return {
        **found,
        "flops": sum(leg["flops"] for leg in legs) + once,
        "flops_a_picture": sum(leg["flops_a_picture"] for leg in legs) + once / seen,
    }


def clock(run: Run) -> dict[str, Any]:
    """What the whole run took, and its parts; `other` is what none of them has: starts, reports, work that was lost."""
    parts, whole = seconds_of(run), number(run.facts.get("wall_seconds"))
    if whole is None:
        reason = "the run was made by a version that did not time it as a whole"
        return {"parts": parts, "seconds": None, "other": None, "reason": reason}
    return {"parts": parts, "seconds": whole, "other": whole - sum(parts.values())}


def images_seen(one: Candidate, leg: str) -> float:
    return number(one.run.latest("step", leg).get("images_seen")) or 0.0


def legs_cost(one: Candidate, pictures: int) -> Iterator[dict[str, Any]]:
    """Of each leg; encoding all pictures for the denoiser counts as one, between the autoencoder and the denoiser."""
    spent, flops = seconds_of(one.run), training_flops(one)
    for leg, a_picture in flops.items():
        images = float(pictures * (2 if one.recipe.flip else 1)) if leg == "latents" else images_seen(one, leg)
        yield {
            "leg": leg,
            "flops_a_picture": a_picture,
            "images_seen": images,
            "flops": a_picture * images,
            "seconds": spent.get(leg, 0.0),
        }


def training_flops(one: Candidate) -> Flops:
    """Of a picture in each leg: one real step, forward and backward, by its batch."""
    recipe, (base, *above), found = one.recipe, one.model.stages, Flops()
    if isinstance(base.space, LatentSpace):
        if recipe.trains_space:
            found["autoencoder"] = autoencoder_flops(one, base.space)
        image = torch.zeros(1, 3, base.image_size, base.image_size, device=one.model.device)
        found["latents"] = float(counted(lambda: base.space.moments(image)))
    found["denoiser"] = denoiser_flops(one, base, recipe.denoiser.batch, base.image_size)
    for stage in above:
        config = recipe.enlarger(stage.image_size)
        found[leg_above(stage.image_size)] = denoiser_flops(one, stage, config.batch, config.crop or stage.image_size)
        if config.exposure.images:
            found[exposure_above(stage.image_size)] = found[leg_above(stage.image_size)]
    assert set(recipe.legs) <= set(found)
    return found


def autoencoder_flops(one: Candidate, space: LatentSpace) -> float:
    """Averaged over the leg, whose steps grow dearer when the perceptual loss and the critic come in."""
    config = one.recipe.autoencoder
    objective = autoencoder_objective(one.recipe, learning(space.vae))
    objective.critic.to(one.model.device)
    objective.features.to(one.model.device)
    side = config.crop or one.recipe.chain[0]
    batch = Batch(*noise(one, config.batch, 3, side))
    ends = phase_ends(config.losses)
    return mean_cost([(end, step_flops(objective, batch, end - 1e-6)) for end in ends])


def denoiser_flops(one: Candidate, stage: Stage, count: int, side: int) -> float:
    clean, labels = noise(one, count, 3, side)
    low_res = shrunk(clean, stage.factor) if stage.low_res_size else None
    if isinstance(stage.space, LatentSpace):
        clean = torch.cat([noise(one, count, stage.space.channels, stage.shape[-1])[0] for _ in range(2)], 1)
    objective = DenoisingObjective(replace(stage, denoiser=learning(stage.denoiser)), one.recipe.denoiser)
    return step_flops(objective, Batch(clean, labels, low_res, text=usual_text(one.model, count)), 0.0)


def noise(one: Candidate, count: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    clean = 0.1 * Rng(("cost", side)).normal(count, channels, side, side).to(one.model.device)
    return clean, torch.full((count,), NULL_LABEL, device=one.model.device)


def learning(network: Network) -> Network:
    return copy.deepcopy(network).train().requires_grad_(True)


def step_flops(objective: Objective, batch: Batch, progress: float) -> float:
    players = {name: TrainState(network, OptimizerConfig()) for name, network in objective.networks.items()}
    clock = TrainProgress(total=10**6, batch=len(batch), seed=0)
    work = counted(lambda: train_step(players, objective.losses(batch, progress, clock.rng()), clock))
    return work / len(batch)


def in_a_process_of_its_own(one: Candidate) -> dict[str, Any]:
    """Seconds and memory of sampling, with nothing in memory but what sampling needs."""
    model, threads = (one.run.folder / "model").resolve(), str(torch.get_num_threads())
    command = [sys.executable, "-m", "calotype.evaluation.deployed", str(model), str(one.model.device), threads]
    done = subprocess.run(command + [str(count) for count in COUNTS], capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        reason = f"the process that samples ended with code {done.returncode}: {last}"
        rows = [{"count": count, "seconds_a_picture": None, "bytes": None, "reason": reason} for count in COUNTS]
        return {"loaded_bytes": None, "counts": rows, "reason": reason}
