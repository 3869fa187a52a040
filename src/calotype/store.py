"""The folder of a model: all that sampling needs, written at the end of training and read by `load`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from calotype.build import build_enlarger, build_frozen, build_space, build_stage
from calotype.diffusion.stage import Sampling, Stage
from calotype.files import is_whole, read_json, whole_folder, write_json, write_tensors
from calotype.nets.frozen import Frozen
from calotype.priors.stored import described, description, prior_in
from calotype.recipe import ImportedSpace, Recipe, leg_above
from calotype.settings import parse_recipe, upgraded
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.types import UserError

MODEL_FORMAT, READABLE_FORMATS = 6, (5, 6)
"""Of `model.json`. Format 5, of version 0.1, has other names in its recipe: see `upgraded`."""
AUTOENCODER = "autoencoder.safetensors"
ENCODER_FOLDER = "encoder"
"""Where in a model's folder its text encoder is looked for first; it is not put there, for its size and its licence."""


def save_model(folder: Path, recipe: Recipe, stages: Sequence[Stage], classes: Sequence[str]) -> None:
    """Writes one file of weights for each network, and one of settings."""
    with whole_folder(folder) as path:
        if isinstance(stages[0].space, LatentSpace):
            write_tensors(path / AUTOENCODER, stages[0].space.state_dict())
        for stage in stages:
            write_tensors(path / denoiser_file(stage.image_size, recipe), stage.denoiser.state_dict())
        if isinstance(recipe.space, ImportedSpace):  # it lies in the model's folder now
            recipe = recipe.model_copy(update={"space": recipe.space.model_copy(update={"path": AUTOENCODER})})
        priors = {str(stage.image_size): description(prior) for stage in stages if (prior := stage.denoiser.prior)}
        about = {"format": MODEL_FORMAT, "classes": list(classes), "priors": priors}
        write_json(path / "model.json", {**about, "recipe": recipe.model_dump(mode="json")})


def store_sampling(folder: Path, sampling: Sampling) -> None:
    """Makes this the first stage's sampling in a model folder, which is replaced as a whole; other files stay in it."""
    about, own = read_json(folder / "model.json"), {*read_json(folder / "manifest.json"), "manifest.json"}
    about["recipe"]["sampling"] = sampling.model_dump(mode="json")

    def manifest(place: str, names: list[str]) -> set[str]:
        return {"manifest.json"} if Path(place) == folder else set()

    with whole_folder(folder, {file.name for file in folder.iterdir()} - own) as path:
        shutil.copytree(folder, path, symlinks=True, ignore=manifest, dirs_exist_ok=True)
        write_json(path / "model.json", about)


def read_model(path: Path, device: torch.device) -> tuple[Recipe, tuple[Stage, ...], tuple[str, ...]]:
    """Recipe, frozen stages and classes of a model, or of the `model` folder in a run, also of version 0.1.

    Raises `UserError` if there is no finished model or it is damaged.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "model.json").exists():
        hint = f"its training is not finished; try: calotype resume {path}" if (path / "run.json").exists() else (
            "expected the folder of a run, or the model folder inside it"
        )  # fmt: skip
        raise UserError(f"no model in {path}: {hint}")
    if not is_whole(folder):
        raise UserError(f"the model in {folder} is damaged: its files are not what manifest.json says; copy it again")
    about = read_json(folder / "model.json")
    if about.get("format") not in READABLE_FORMATS:
        raise UserError(
            f"{folder} has format {about.get('format')}, but this version of calotype reads "
            f"{' and '.join(map(str, READABLE_FORMATS))}; update one of the two"
        )
    locate_encoder(folder, about["recipe"]["denoiser"]["text"])
    recipe = parse_recipe(upgraded(about["recipe"]), lambda key: f"{folder}/model.json")
    frozen = build_frozen(recipe.denoiser.text)
    stages = [read_first_stage(folder, recipe, about, frozen)]
    for size in recipe.chain[1:]:
        stages.append(build_enlarger(recipe, size, len(about["classes"]), frozen))
        stages[-1].denoiser.load_state_dict(load_file(folder / denoiser_file(size, recipe)))
    for network in (*(stage.denoiser for stage in stages), stages[0].space):
        if isinstance(network, torch.nn.Module):
            network.to(device).eval().requires_grad_(False)
    return recipe, tuple(stages), tuple(about["classes"])


def read_first_stage(folder: Path, recipe: Recipe, about: dict[str, Any], frozen: Frozen | None) -> Stage:
    space: Space = PixelSpace()
    if recipe.kind == "latent":
        space = build_space(recipe)
        space.load_state_dict(load_file(folder / AUTOENCODER))
    size, weights = recipe.chain[0], load_file(folder / denoiser_file(recipe.chain[0], recipe))
    if "priors" in about:
        prior = described(about["priors"][str(size)]) if str(size) in about["priors"] else None
    else:
        prior = prior_in(weights)  # version 0.1 did not store its kind and shape
    stage = build_stage(recipe, space, len(about["classes"]), prior, frozen)
    stage.denoiser.load_state_dict(weights)
    return stage


def locate_encoder(folder: Path, text: dict[str, Any]) -> None:
    """Sets the path of a text encoder in its settings to where it lies now: in the model's folder, or as before.

    Raises `UserError` where it is in neither.
    """
    if text.get("kind") != "folder":
        return
    inside = folder / ENCODER_FOLDER
    if inside.is_dir():
        text["path"] = str(inside)
    elif not Path(text["path"]).is_dir():
        raise UserError(
            f"the model in {folder} reads prompts with a text encoder (sha256 {text['digest'][:12]}) that was in "
            f"{text['path']} and is gone; put it, or a link to it, at {inside}"
        )


def denoiser_file(size: int, recipe: Recipe) -> str:
    return f"{'denoiser' if size == recipe.chain[0] else leg_above(size)}.safetensors"
