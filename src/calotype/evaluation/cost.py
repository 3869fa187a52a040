"""What a run has cost to train, and what its model costs to keep and to use.

Training is read from the run's files: the plan has counted the operations of a step of each leg, and the pipeline those
of what is done once. Operations of sampling are counted here. Its time and memory are measured in a process of its own
that holds nothing but the model: `python -m calotype.evaluation.cost MODEL DEVICE THREADS` prints one line of JSON.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import generate
from calotype.evaluation.candidate import Candidate, usual_text
from calotype.evaluation.comparison_results import (
    BatchCost,
    Cost,
    Deployment,
    ParameterCounts,
    PartCost,
    SamplingCost,
    TrainingCost,
    WallClock,
)
from calotype.evaluation.counting import counted, most_memory
from calotype.machine import free_memory, timed
from calotype.model import Model, load
from calotype.nets.frozen import FrozenEncoder, ProjectedEncoder, encode_all
from calotype.nets.vae import Vae
from calotype.priors.prior import constant_count
from calotype.recipe import leg_above
from calotype.run import Run
from calotype.spaces.latent import LatentSpace
from calotype.tables import number
from calotype.types import Rng

ONCE = ("captions", "latents", "prepare", "fit", "guidance")
"""Parts that are done once, besides a search (`level-SIZE`) for each stage that enlarges."""
NOT_COUNTED = "a run of an earlier version, which did not count it"
BATCH_SIZES = (1, 4, 16)
"""Pictures at once. They rise, so the peak memory so far is that of the last batch."""
MOST_SECONDS = 60.0
"""Batches that are predicted to take longer are left out."""


def run_cost(candidate: Candidate) -> Cost:
    return Cost(
        flops_a_picture=sampling_flops(candidate),
        sampling=sampling_cost(candidate),
        training=training_cost(candidate.run),
        clock=wall_clock(candidate.run),
    )


# -- To keep -----------------------------------------------------------------------------------------------------------


def deployment_cost(candidate: Candidate) -> Deployment:
    files = sorted(file for file in (candidate.run.folder / "model").iterdir() if file.is_file())
    networks = networks_of(candidate)
    parameters = {name: parameter_counts(network) for name, network in networks.items()}
    sizes = [sum(value.nbytes for value in network.state_dict().values()) for network in networks.values()]
    return Deployment(
        networks=parameters,
        count=len(networks),
        parameters=ParameterCounts(**{
            kind: sum(getattr(counts, kind) for counts in parameters.values()) for kind in ParameterCounts.model_fields
        }),
        widths_by_user=widths_by_user(candidate),
        resident_bytes=sum(sizes),
        sequential_bytes=max(sizes),
        bytes=sum(file.stat().st_size for file in files),
        files=[file.name for file in files],
    )  # fmt: skip


def networks_of(candidate: Candidate) -> dict[str, nn.Module]:
    base, *above = candidate.model.stages
    frozen = frozen_encoder(candidate)
    return {
        **({"autoencoder": base.space} if isinstance(base.space, LatentSpace) else {}),
        "denoiser": base.denoiser,
        **{leg_above(stage.image_size): stage.denoiser for stage in above},
        **({"text encoder": frozen.pretrained.network} if frozen is not None else {}),
    }


def frozen_encoder(candidate: Candidate) -> FrozenEncoder | None:
    """The text encoder that is not trained here."""
    encoder = candidate.model.text_encoder
    return encoder.frozen if isinstance(encoder, ProjectedEncoder) else None


def parameter_counts(network: nn.Module) -> ParameterCounts:
    """Fitted in closed form are priors, the linear path of an autoencoder, and the statistics of its latents."""
    total, fitted = number_count(network), constant_count(network)
    if isinstance(network, LatentSpace):
        fitted += network.mean.numel() + network.spread.numel()
        if isinstance(vae := network.vae, Vae):
            fitted += number_count(vae.linear_in) + number_count(vae.linear_out)
    is_trained = isinstance(network, LatentSpace | Denoiser)
    own, encoder = (total - fitted, 0) if is_trained else (0, total - fitted)
    return ParameterCounts(trained=own, fitted=fitted, text_encoder=encoder, sum=total)


def number_count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.state_dict().values())


def widths_by_user(candidate: Candidate) -> bool:
    choices = {choice["what"]: choice.get("by_user", False) for choice in candidate.run.plan.get("choices", [])}
    stages = ["denoiser", *(f"enlarge to {size}" for size in candidate.recipe.chain[1:])]
    return all(choices.get(stage, False) for stage in stages)


# -- To train ----------------------------------------------------------------------------------------------------------


def training_cost(run: Run) -> TrainingCost:
    """Of each leg (forward and backward), and of what was done once; None, with the reason, where nobody counted."""
    once = [part for part in run.state.seconds if part in ONCE or part.startswith("level-")]
    parts = [leg_cost(run, leg) for leg in run.state.legs]
    parts += [part_cost(run, part, number(run.state.operations.get(part))) for part in once]
    seconds, unknown = sum(part.seconds for part in parts), [part.part for part in parts if part.flops is None]
    if unknown:
        return TrainingCost(parts=parts, seconds=seconds, flops=None, reason=f"{', '.join(unknown)}: {NOT_COUNTED}")
    return TrainingCost(parts=parts, seconds=seconds, flops=sum(part.flops or 0 for part in parts))


def leg_cost(run: Run, leg: str) -> PartCost:
    a_picture, seen = number(run.plan.get("flops", {}).get(leg)), number(run.latest("step", leg).get("images_seen"))
    flops = None if a_picture is None else a_picture * (seen or 0.0)
    cost = part_cost(run, leg, flops)
    cost.images_seen = seen or 0.0
    return cost


def part_cost(run: Run, part: str, flops: float | None) -> PartCost:
    cost = PartCost(part=part, flops=flops, seconds=run.state.seconds.get(part, 0.0))
    if flops is None:
        cost.reason = NOT_COUNTED
    return cost


def wall_clock(run: Run) -> WallClock:
    parts, whole = run.state.seconds, run.state.wall_seconds
    if not whole:
        return WallClock(parts=parts, seconds=None, other=None, reason=NOT_COUNTED)
    return WallClock(parts=parts, seconds=whole, other=whole - sum(parts.values()))


# -- To sample ---------------------------------------------------------------------------------------------------------


def sampling_flops(candidate: Candidate) -> int:
    """Of one picture through all stages, its prompt's encoding included."""
    model, text, frozen = candidate.model, usual_text(candidate.model, 1), frozen_encoder(candidate)
    encoding = 0
    if text is not None and frozen is not None:
        frozen(text.prompts)  # it keeps what it has encoded, so that sampling does not count it again
        encoding = counted(lambda: encode_all(frozen.pretrained, text.prompts))
    label = torch.tensor(model.labels(1), device=model.device)
    return encoding + counted(lambda: generate(model.stages, label, model.samplings, [Rng(("cost",))], text=text))


def sampling_cost(candidate: Candidate) -> SamplingCost:
    """Time and memory for each of `BATCH_SIZES`, or the reason why there are none."""
    model, threads = (candidate.run.folder / "model").resolve(), str(torch.get_num_threads())
    command = [sys.executable, "-P", "-m", "calotype.evaluation.cost", str(model), str(candidate.model.device), threads]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return SamplingCost.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValidationError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason = f"the process that samples ended with code {done.returncode}: {last}"
        counts = [not_measured(count, reason) for count in BATCH_SIZES]
        return SamplingCost(loaded_bytes=None, counts=counts, reason=reason)


def not_measured(count: int, reason: str) -> BatchCost:
    return BatchCost(count=count, seconds_a_picture=None, bytes=None, reason=reason)


def batch_costs(model: Model) -> Iterator[BatchCost]:
    sample_batch(model, 1, steps=1)  # to warm up
    loaded, seconds, rise = most_memory(model.device), 0.0, 0
    for count in BATCH_SIZES:
        if reason := too_much(count, seconds, rise, free_memory(model.device)):
            yield not_measured(count, reason)
            continue
        spent, most = timed(partial(sample_batch, model, count), model.device), most_memory(model.device)
        if count == BATCH_SIZES[0]:
            seconds, rise = spent / count, most - loaded
        yield BatchCost(count=count, seconds_a_picture=spent / count, bytes=most)


def too_much(count: int, seconds: float, rise: int, free: int) -> str:
    """Why so many are not tried; empty if they are. `seconds` and `rise` (in bytes) are those of one picture."""
    if count * seconds > MOST_SECONDS:
        return f"left out: {count} pictures would take about {count * seconds:,.0f} s at {seconds:,.1f} s for one"
    if count * rise > 0.8 * free:
        return f"left out: {count} pictures would need about {count * rise / 1e9:,.1f} GB, {free / 1e9:,.1f} are free"
    return ""


def sample_batch(model: Model, count: int, steps: int | None = None) -> None:
    samplings = [sampling.model_copy(update={"steps": steps or sampling.steps}) for sampling in model.samplings]
    labels = torch.tensor(model.labels(count), device=model.device)
    rngs = [Rng(("cost", index)) for index in range(count)]
    generate(model.stages, labels, samplings, rngs, text=usual_text(model, count))


def print_sampling_cost(folder: str, device: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model = load(Path(folder), device)
    loaded = most_memory(model.device)
    print(SamplingCost(loaded_bytes=loaded, counts=list(batch_costs(model))).model_dump_json(exclude_unset=True))


if __name__ == "__main__":
    print_sampling_cost(*sys.argv[1:])
