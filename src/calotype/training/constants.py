"""The priors of a run: fitted once, stored in its folder, and read from there by whatever resumes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from calotype.files import is_whole, read_json, sha256, whole_folder, write_json, write_tensors
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.priors.prior import Prior
from calotype.priors.stored import described, description, prior_in
from calotype.run import Run
from calotype.training.checkpoint import checkpoints
from calotype.types import UserError

Constants = dict[str, Prior]
"""What is fitted for a leg, by its name in the denoiser; `unseen-0` and so on are its cross-fitted forms."""
Fit = Callable[[], Constants]
Keep = Callable[[Fit], Constants]
"""From what fits the constants to the constants."""


def fit_now(fit: Fit) -> Constants:
    """Where there is no run to store them in."""
    return fit()


def keep(run: Run, leg: str, fit: Fit) -> Constants:
    """The constants of a leg on the CPU, from the run's folder; fitted and written there if the leg has not begun.

    Raises `UserError` where they are missing or damaged, and checkpoints were trained with them.
    """
    folder, hashes = run.folder / "constants" / leg, run.state.constants
    if not is_kept(folder, hashes.get(leg)):
        write_constants(folder, fitted_late(run, leg, fit) if has_begun(run, leg) else fitted_first(run, leg, fit))
    hashes[leg] = sha256(folder / "manifest.json")
    run.save()
    return read_constants(folder)


def is_kept(folder: Path, expected: str | None) -> bool:
    """Whether the folder is whole, and the one that was written; before its hash is known, any whole one is."""
    return is_whole(folder) and expected in (None, sha256(folder / "manifest.json"))


def has_begun(run: Run, leg: str) -> bool:
    return bool(checkpoints(run.folder / "checkpoints", leg)) or run.state.legs.get(leg) == "finished"


def fitted_first(run: Run, leg: str, fit: Fit) -> Constants:
    if leg in run.state.constants:
        text = f"{leg}: {run.folder / 'constants' / leg} was missing or damaged, and no checkpoint needs what it held"
        run.log("note", text=f"{text}: it was fitted again")
    return fit()


def fitted_late(run: Run, leg: str, fit: Fit) -> Constants:
    """Checkpoints of earlier versions hold their constants, but not their cross-fitted forms."""
    older = None if leg in run.state.constants else in_checkpoint(run, leg)
    if older:
        return {**fit(), **older}
    finished = run.state.legs.get(leg) == "finished"
    again = "start a new run" if finished else f"remove checkpoints/{leg}-* to train the {leg} from its start"
    raise UserError(
        f"{run.folder / 'constants' / leg} is missing or damaged, but checkpoints of the {leg} were trained with it: "
        f"put it back from a copy, or {again}"
    )


def in_checkpoint(run: Run, leg: str) -> Constants | None:
    path = next((path for path in reversed(checkpoints(run.folder / "checkpoints", leg)) if is_whole(path)), None)
    tensors = load_file(path / "denoiser.safetensors") if path else {}
    prior = prior_in(tensors, "network.")
    return None if prior is None else {"local" if isinstance(prior, PatchPrior) else "mixture": prior}


def write_constants(folder: Path, constants: Constants) -> None:
    about = {name: description(prior) for name, prior in constants.items()}
    with whole_folder(folder) as path:
        write_json(path / "constants.json", about)
        for name, prior in constants.items():
            write_tensors(path / f"{name}.safetensors", prior.state_dict())


def read_constants(folder: Path) -> Constants:
    constants = {name: described(about) for name, about in read_json(folder / "constants.json").items()}
    for name, prior in constants.items():
        prior.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return constants


def as_constants(mixture: Prior, cross_fitted: CrossFitted | None) -> Constants:
    folds = cross_fitted.mixtures if cross_fitted else ()
    return {"mixture": mixture, **{f"unseen-{fold}": prior for fold, prior in enumerate(folds)}}


def from_constants(
    constants: Constants, device: torch.device
) -> tuple[GaussianMixture | CaptionedMixture, CrossFitted | None]:
    mixture = constants["mixture"]
    assert isinstance(mixture, GaussianMixture | CaptionedMixture)
    stored = (constants.get(f"unseen-{fold}") for fold in range(len(constants)))
    folds = tuple(prior.to(device) for prior in stored if isinstance(prior, GaussianMixture))
    return mixture, CrossFitted(folds) if folds else None
