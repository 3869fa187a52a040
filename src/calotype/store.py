"""The folder of a model: all that sampling needs, written at the end of training and read by `load`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from calotype.build import build_enlarger, build_frozen, build_space, build_stage
from calotype.diffusion.stage import Sampling, Stage
from calotype.files import (
    checked,
    damage,
    listed,
    read_json,
    read_manifest,
    read_tensors,
    whole_folder,
    write_json,
    write_tensors,
)
from calotype.nets.frozen import FolderConfig, FrozenEncoder
from calotype.nets.weights import load_file_into
from calotype.priors.stored import PriorDescription, described, description, prior_in
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
    about, own = read_json(folder / "model.json"), {*read_manifest(folder), "manifest.json"}
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
    if wrong := damage(folder):
        raise UserError(f"the model in {folder} is damaged ({wrong}); copy it again")
    about = read_description(listed(folder, "model.json"))
    recipe = with_encoder(folder, parse_recipe(upgraded(about.recipe), lambda key: f"{folder}/model.json"))
    frozen = build_frozen(recipe.denoiser.text)
    stages = [read_first_stage(folder, recipe, about, frozen)]
    for size in recipe.chain[1:]:
        make = partial(build_enlarger, recipe, size, len(about.classes), frozen)
        stages.append(load_file_into(listed(folder, denoiser_file(size, recipe)), make, lambda stage: stage.denoiser))
    for network in (*(stage.denoiser for stage in stages), stages[0].space):
        if isinstance(network, torch.nn.Module):
            network.to(device).eval().requires_grad_(False)
    return recipe, tuple(stages), about.classes


class ModelDescription(BaseModel):
    """`model.json`; `priors` is None in version 0.1, which did not store their kinds and shapes."""

    format: int
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    priors: dict[str, PriorDescription] | None = None


def read_description(file: Path) -> ModelDescription:
    """Raises `UserError`, also for a format of another version of calotype."""
    stored = read_json(file)
    known = isinstance(stored, dict) and "format" in stored
    if known and stored["format"] not in READABLE_FORMATS:
        raise UserError(
            f"{file.parent} has format {stored['format']!r:.40}, but this version of calotype reads "
            f"{' and '.join(map(str, READABLE_FORMATS))}; update one of the two"
        )
    return checked(stored, ModelDescription, file)


def read_first_stage(folder: Path, recipe: Recipe, about: ModelDescription, frozen: FrozenEncoder | None) -> Stage:
    space: Space = PixelSpace()
    if recipe.kind == "latent":
        space = load_file_into(listed(folder, AUTOENCODER), lambda: build_space(recipe), lambda space: space)
    size = recipe.chain[0]
    file = listed(folder, denoiser_file(size, recipe))
    kept = prior_in(read_tensors(file), source=str(file)) if about.priors is None else None

    def make() -> Stage:
        prior = (
            described(about.priors[str(size)], f"{folder}/model.json")
            if about.priors and str(size) in about.priors
            else kept
        )
        return build_stage(recipe, space, len(about.classes), prior, frozen)

    return load_file_into(file, make, lambda stage: stage.denoiser)


def with_encoder(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with the path where a text encoder lies now: in the model's folder, or as before.

    Raises `UserError` where it is in neither.
    """
    text, inner = recipe.denoiser.text, folder / ENCODER_FOLDER
    if not isinstance(text, FolderConfig):
        return recipe
    if not inner.is_dir() and not Path(text.path).is_dir():
        raise UserError(
            f"the model in {folder} reads prompts with a text encoder (sha256 {text.digest[:12]}) that was in "
            f"{text.path} and is gone; put it, or a link to it, at {inner}"
        )
    text = text.model_copy(update={"path": str(inner) if inner.is_dir() else text.path})
    return recipe.model_copy(update={"denoiser": recipe.denoiser.model_copy(update={"text": text})})


def denoiser_file(size: int, recipe: Recipe) -> str:
    return f"{'denoiser' if size == recipe.chain[0] else leg_above(size)}.safetensors"
