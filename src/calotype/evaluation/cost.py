"""What a run has cost to train, and what its model costs to keep and to use.

Training is read from the run's files: the plan has counted the operations of a step of each leg, and the pipeline those
of what is done once. Sampling is counted here, and timed in a process of its own (`footprint.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import generate
from calotype.evaluation.candidate import Candidate, usual_text
from calotype.evaluation.counting import counted
from calotype.evaluation.footprint import footprint
from calotype.nets.frozen import Frozen, Projected, encode_all
from calotype.nets.vae import Vae
from calotype.priors.prior import constant_count
from calotype.recipe import leg_above
from calotype.run import Run
from calotype.spaces.latent import LatentSpace
from calotype.tables import number
from calotype.types import NULL_LABEL, Rng

PARAMETER_KINDS = ("trained", "fitted", "text_encoder")
ONCE = ("captions", "latents", "prepare", "fit")
"""What is done once, besides a search (`level-SIZE`) for each stage that enlarges."""
NOT_COUNTED = "a run of an earlier version, which did not count it"


# -- To keep -----------------------------------------------------------------------------------------------------------


def deployment_cost(one: Candidate) -> dict[str, Any]:
    """All that must be set up to make pictures, a text encoder outside of the model's folder too.

    `sequential_bytes` are those of the largest network: each can be loaded when its turn has come.
    """
    files = sorted(file for file in (one.run.folder / "model").iterdir() if file.is_file())
    networks = {name: parameters_by_kind(network) for name, network in networks_of(one).items()}
    sizes = [all_bytes(network) for network in networks_of(one).values()]
    kinds = {kind: sum(network[kind] for network in networks.values()) for kind in PARAMETER_KINDS}
    return {
        "networks": networks,
        "count": len(networks),
        "parameters": {**kinds, "sum": sum(kinds.values())},
        "widths_by_user": widths_by_user(one),
        "resident_bytes": sum(sizes),
        "sequential_bytes": max(sizes),
        "bytes": sum(file.stat().st_size for file in files),
        "files": [file.name for file in files],
    }


def networks_of(one: Candidate) -> dict[str, nn.Module]:
    base, *above = one.model.stages
    frozen = frozen_encoder(one)
    return {
        **({"autoencoder": base.space} if isinstance(base.space, LatentSpace) else {}),
        "denoiser": base.denoiser,
        **{leg_above(stage.image_size): stage.denoiser for stage in above},
        **({"text encoder": frozen.reader.network} if frozen is not None else {}),
    }


def frozen_encoder(one: Candidate) -> Frozen | None:
    """The text encoder that is not trained here."""
    reader = one.model.text_encoder
    return reader.frozen if isinstance(reader, Projected) else None


def parameters_by_kind(network: nn.Module) -> dict[str, int]:
    """Trained, fitted in closed form (priors, an autoencoder's linear path, statistics of latents), or of a frozen
    text encoder.
    """
    kind, fitted = "trained", constant_count(network)
    if isinstance(network, LatentSpace):
        fitted += network.mean.numel() + network.spread.numel()
        if isinstance(vae := network.vae, Vae):
            fitted += all_numbers(vae.linear_in) + all_numbers(vae.linear_out)
    elif not isinstance(network, Denoiser):
        kind = "text_encoder"
    whole = all_numbers(network)
    return {**dict.fromkeys(PARAMETER_KINDS, 0), kind: whole - fitted, "fitted": fitted, "sum": whole}


def all_numbers(network: nn.Module) -> int:
    return sum(value.numel() for value in network.state_dict().values())


def all_bytes(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def widths_by_user(one: Candidate) -> bool:
    """Whether no denoiser has the width that the plan would choose."""
    choices = {choice["what"]: choice.get("by_user", False) for choice in one.run.plan.get("choices", [])}
    stages = ["denoiser", *(f"enlarge to {size}" for size in one.recipe.chain[1:])]
    return all(choices.get(stage, False) for stage in stages)


# -- To train and to use -----------------------------------------------------------------------------------------------


def run_cost(one: Candidate) -> dict[str, Any]:
    return {
        "flops_a_picture": sampling_flops(one),
        "sampling": footprint(one),
        "training": training_cost(one.run),
        "clock": clock(one.run),
    }


def training_cost(run: Run) -> dict[str, Any]:
    """Of each leg (forward and backward), and of what was done once; None, with the reason, where nobody counted."""
    rows = [*(leg_cost(run, leg) for leg in run.state.legs), *once(run)]
    unknown = [row["part"] for row in rows if row["flops"] is None]
    total = {"parts": rows, "seconds": sum(row["seconds"] for row in rows)}
    if unknown:
        return {**total, "flops": None, "reason": f"{', '.join(unknown)}: {NOT_COUNTED}"}
    return {**total, "flops": sum(row["flops"] for row in rows)}


def leg_cost(run: Run, leg: str) -> dict[str, Any]:
    a_picture = number(run.plan.get("flops", {}).get(leg))
    seen = number(run.latest("step", leg).get("images_seen")) or 0.0
    return part_cost(run, leg, None if a_picture is None else a_picture * seen) | {"images_seen": seen}


def once(run: Run) -> list[dict[str, Any]]:
    done = [part for part in run.state.seconds if part in ONCE or part.startswith("level-")]
    return [part_cost(run, part, number(run.state.operations.get(part))) for part in done]


def part_cost(run: Run, part: str, flops: float | None) -> dict[str, Any]:
    row = {"part": part, "flops": flops, "seconds": run.state.seconds.get(part, 0.0)}
    return row if flops is not None else {**row, "reason": NOT_COUNTED}


def clock(run: Run) -> dict[str, Any]:
    """All seconds of a run; `other` is what no part has: starts, reports, work that was lost."""
    parts, whole = run.state.seconds, run.state.wall_seconds
    if not whole:
        return {"parts": parts, "seconds": None, "other": None, "reason": NOT_COUNTED}
    return {"parts": parts, "seconds": whole, "other": whole - sum(parts.values())}


def sampling_flops(one: Candidate) -> int:
    """Of one picture through all stages, its prompt's encoding included."""
    model, text, frozen = one.model, usual_text(one.model, 1), frozen_encoder(one)
    reading = 0
    if text is not None and frozen is not None:
        frozen(text.prompts)  # it keeps what it has read
        reading = counted(lambda: encode_all(frozen.reader, text.prompts))
    label = torch.tensor([0 if model.classes else NULL_LABEL], device=model.device)
    return reading + counted(lambda: generate(model.stages, label, model.samplings, [Rng(("cost",))], text=text))
