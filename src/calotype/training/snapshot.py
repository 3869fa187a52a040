"""The model of a run that is not finished: the averaged weights of its newest checkpoints. Nothing is written."""

from __future__ import annotations

from pathlib import Path

import torch

from calotype.build import build_enlarger, build_frozen, build_space, build_stage
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Stage
from calotype.files import damage, is_whole, listed, read_as, read_tensors, whole_folder, write_tensors
from calotype.model import Model, load
from calotype.nets.frozen import FrozenEncoder
from calotype.nets.weights import check_tensors, load_file_into
from calotype.priors.prior import load_trained
from calotype.recipe import Recipe, exposure_above, leg_above
from calotype.run import Run
from calotype.settings import parse_recipe, read_recipe
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.training.checkpoint import SavedState, checkpoints
from calotype.training.fitting import read_constants
from calotype.training.levels import with_searched
from calotype.training.pieces import read_pieces
from calotype.training.state import under
from calotype.types import UserError

SPACE, SPACE_FILE = "space", "space.safetensors"
"""Among the constants of a run: its autoencoder, with the statistics of the latents that the denoiser learns."""
TRIES = 3
"""A run that is training removes its older checkpoints as it writes new ones."""


def snapshot(folder: Path, device: torch.device, chosen: str | None = None) -> tuple[Model, str]:
    """The model of a run as it is now, and how far it is, in words; of a finished one, its model, also
    where it has gone on and its first stage has no new checkpoint yet.

    With the name of a checkpoint, such as `denoiser-0000016384`, its stage is as it was then. Stages above that have
    no checkpoint yet are left out. Raises `UserError` where there is none to be had, none is whole, or there is no such
    checkpoint.
    """
    run = Run.open(folder)
    if chosen is not None:
        require_checkpoint(run, chosen)
    elif run.state.status == "finished":
        return load(folder, str(device)), "the finished model"
    recipe = with_searched(parse_recipe(read_recipe(run.folder / "recipe.toml")), run.state)
    frozen, stages, words = build_frozen(recipe.denoiser.text), list[Stage](), list[str]()
    for size in recipe.chain:
        if checkpoint_of(run, recipe, size, chosen) is None:
            break
        stages.append(stage := empty_stage(run, recipe, size, frozen))
        words.append(load_average(run, recipe, stage, chosen))
        stage.denoiser.to(device).eval().requires_grad_(False)
    if not stages:
        require_none_damaged(run)
        if chosen is None and (folder / "model" / "model.json").is_file():  # a finished run that goes on
            return load(folder, str(device)), "the model before it went on"
        raise UserError(
            f"the denoiser of {folder} has no checkpoint yet; it gets its first a minute after its leg has begun, so "
            f"try again later, or look into {folder / 'previews'}"
        )
    return Model(recipe, tuple(stages), recipe.samplings[: len(stages)], tuple(run.state.classes), device), words[-1]


# -- Stages ------------------------------------------------------------------------------------------------------------


def empty_stage(run: Run, recipe: Recipe, size: int, frozen: FrozenEncoder | None) -> Stage:
    """With its closed form; its network is new."""
    classes, folder = len(run.state.classes), run.folder / "constants"
    if size == recipe.chain[0]:
        prior = read_constants(folder / "denoiser")["mixture"] if recipe.denoiser.prior == "gaussian" else None
        return build_stage(recipe, stored_space(run, recipe), classes, prior, frozen)
    stage = build_enlarger(recipe, size, classes, frozen)
    if stage.denoiser.prior is not None:
        stage.denoiser.prior.load_state_dict(read_constants(folder / leg_above(size))["local"].state_dict())
    return stage


def write_space(run: Run, space: LatentSpace) -> None:
    """Keeps the space of the first stage in the folder of a run, for previews."""
    with whole_folder(run.folder / "constants" / SPACE) as path:
        write_tensors(path / SPACE_FILE, space.state_dict())


def restore_statistics(run: Run, space: LatentSpace) -> bool:
    """Gives a space mean and spread of the latents with which the denoiser of a run was trained, in place of those of
    the pictures that it has now; False where it has none, or they are missing or damaged. Raises `UserError` for others
    than those of such a space."""
    folder = run.folder / "constants" / SPACE
    begun = run.state.legs.get("denoiser") == "finished" or checkpoints(run.folder / "checkpoints", "denoiser")
    if not begun or not is_whole(folder):
        return False
    file, own = listed(folder, SPACE_FILE), {"mean": space.mean, "spread": space.spread}
    kept = {name: value for name, value in read_tensors(file).items() if name in own}
    check_tensors(kept, own, str(file))
    for name, value in own.items():
        value.copy_(kept[name])
    return True


def stored_space(run: Run, recipe: Recipe) -> Space:
    """Raises `UserError` where it is damaged, or an earlier version has not kept it."""
    folder = run.folder / "constants" / SPACE
    if recipe.kind == "cascade":
        return PixelSpace()
    if not folder.is_dir():
        raise UserError(
            f"{run.folder} has no {SPACE} among its constants, as runs of earlier versions have not; resume it, and "
            f"try again once its denoiser is trained"
        )
    return load_file_into(listed(folder, SPACE_FILE), lambda: build_space(recipe), lambda space: space)


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def require_checkpoint(run: Run, chosen: str) -> None:
    """Raises `UserError` where no denoiser has a checkpoint of this name, or it is damaged."""
    legs = [leg for leg in run.state.legs if leg != "autoencoder"]
    names = [path.name for leg in legs for path in checkpoints(run.folder / "checkpoints", leg)]
    if chosen not in names:
        known = f"one of {', '.join(names)}" if names else "one, but there is none yet"
        raise UserError(f"{run.folder} has no checkpoint {chosen!r:.80}; expected {known}")
    if wrong := damage(run.folder / "checkpoints" / chosen):
        others = ", ".join(name for name in names if name != chosen) or "none"
        raise UserError(
            f"checkpoint {chosen} of {run.folder} is damaged ({wrong}); copy it again; the others there are: {others}"
        )


def require_none_damaged(run: Run) -> None:
    """Raises `UserError` where checkpoints of the denoiser are damaged; for where none is whole."""
    found = {path.name: damage(path) for path in checkpoints(run.folder / "checkpoints", "denoiser")}
    if damaged := [f"{name} ({wrong})" for name, wrong in found.items() if wrong]:
        raise UserError(
            f"no checkpoint of the denoiser of {run.folder} is whole: {', '.join(damaged)}; put a copy back, or try "
            f"again where the run is training"
        )


def checkpoint_of(run: Run, recipe: Recipe, size: int, chosen: str | None = None) -> Path | None:
    """The chosen checkpoint, where it is of this stage; else its newest whole one: of its exposure fine-tuning, or of
    its own leg."""
    legs = ["denoiser"] if size == recipe.chain[0] else [exposure_above(size), leg_above(size)]
    if chosen is not None and chosen.rpartition("-")[0] in legs:
        return run.folder / "checkpoints" / chosen
    paths = [path for leg in legs for path in reversed(checkpoints(run.folder / "checkpoints", leg))]
    return next((path for path in paths if is_whole(path)), None)


def load_average(run: Run, recipe: Recipe, stage: Stage, chosen: str | None = None) -> str:
    """Gives a stage the averaged weights of its checkpoint; returns how far that is, in words."""
    for tried in range(TRIES):
        path = checkpoint_of(run, recipe, stage.image_size, chosen)
        try:
            if path is not None:
                return _load(path, stage.denoiser)
        except UserError:
            if tried == TRIES - 1:
                raise
    raise UserError(f"the checkpoints of {run.folder} are being replaced; try again")


def _load(path: Path, denoiser: Denoiser) -> str:
    state = read_as(listed(path, "state.json"), SavedState)
    average = under("average.", read_pieces(path, "denoiser").items())
    load_trained(denoiser, average, str(path / "denoiser.safetensors"))
    leg, clock = path.name.rpartition("-")[0], state.clock
    return f"the {leg} after {clock.images_seen:,} of about {clock.total:,} images"
