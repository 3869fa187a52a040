"""A finished run that is evaluated or takes part in a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import torch

from calotype.data.folder import Pictures
from calotype.files import read_json
from calotype.model import Model, load
from calotype.recipe import Recipe
from calotype.run import Run
from calotype.settings import parse_recipe, upgraded
from calotype.types import NULL_LABEL, Labels, Text, UserError

PROMPT = "a person with short dark hair and a red shirt, smiling"


@dataclass(frozen=True)
class Candidate:
    key: str
    """A, B, C ... in the order in which they were given."""
    run: Run
    model: Model
    recipe: Recipe

    @property
    def size(self) -> int:
        return self.recipe.size

    @property
    def kind(self) -> str:
        """`latent`, `cascade`, `hybrid` (latents, then pixels) or `pixels` (a cascade of one stage)."""
        if len(self.recipe.chain) == 1:
            return "latent" if self.recipe.kind == "latent" else "pixels"
        return "hybrid" if self.recipe.kind == "latent" else "cascade"

    @property
    def has_prior(self) -> bool:
        return any(stage.denoiser.has_prior for stage in self.model.stages)

    def labels(self, pictures: Pictures, chosen: torch.Tensor) -> Labels:
        """The classes of these pictures; null labels for a model that was trained with other classes."""
        known = self.model.classes == pictures.classes
        labels = pictures.labels[chosen] if known else torch.full((len(chosen),), NULL_LABEL)
        return labels.to(self.model.device)

    def text(self, pictures: Pictures, chosen: torch.Tensor) -> Text | None:
        """The captions of these pictures, for a model that is conditioned on text."""
        if self.model.text_encoder is None or pictures.captions is None:
            return None
        return pictures.captions.first(chosen.tolist())


def open_all(folders: Sequence[Path], device: str) -> list[Candidate]:
    """Raises `UserError` for fewer than two, for one that is no finished run, and for sizes that differ."""
    if not 2 <= len(folders) <= len(ascii_uppercase):
        raise UserError(
            f"compare got {len(folders)} {'run' if len(folders) == 1 else 'runs'}, but needs at least 2 and takes at "
            f"most {len(ascii_uppercase)}; try: calotype compare RUN_A RUN_B"
        )
    runs = [open_one(key, folder, device) for key, folder in zip(ascii_uppercase, folders, strict=False)]
    if len({one.size for one in runs}) > 1:
        shown = ", ".join(f"{one.run.folder} has {one.size} px" for one in runs)
        raise UserError(f"the runs make pictures of different sizes ({shown}); compare runs of one size")
    return runs


def open_one(key: str, folder: Path, device: str) -> Candidate:
    run = Run.open(folder)
    if run.state.status != "finished":
        raise UserError(f"{folder} is {run.state.status}, but must be finished; try: calotype resume {folder}")
    model = load(folder, device)
    settings = read_json(folder / "model" / "model.json")["recipe"]
    return Candidate(key, run, model, parse_recipe(upgraded(settings), lambda key: f"{folder}/model/model.json"))


def usual_text(model: Model, count: int) -> Text | None:
    """A prompt of usual length, with which costs are counted."""
    return None if model.text_encoder is None else model.text(count, PROMPT)
