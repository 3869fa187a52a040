"""A finished run that takes part in a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch

from calotype.data.folder import Pictures
from calotype.files import read_json
from calotype.model import Model, load
from calotype.recipe import Recipe
from calotype.report.folder import Run, read_run
from calotype.settings import parse_recipe, upgraded
from calotype.tables import within
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
        """`latent`, `cascade`, `hybrid` (latents, then pixels) or `pixels` (a cascade of one)."""
        if len(self.recipe.chain) == 1:
            return "latent" if self.recipe.kind == "latent" else "pixels"
        return "hybrid" if self.recipe.kind == "latent" else "cascade"

    def labels(self, pictures: Pictures, chosen: torch.Tensor) -> Labels:
        """The classes of these pictures; not told to a model that was trained with other classes."""
        known = self.model.classes == pictures.classes
        labels = pictures.labels[chosen] if known else torch.full((len(chosen),), NULL_LABEL)
        return labels.to(self.model.device)

    def text(self, pictures: Pictures, chosen: torch.Tensor) -> Text | None:
        """The captions of these pictures, for a model that reads."""
        if self.model.reader is None or pictures.captions is None:
            return None
        return pictures.captions.first(chosen.tolist())


def open_all(folders: Sequence[Path], device: str) -> list[Candidate]:
    """Raises `UserError` for fewer than two, for one that is no finished run, and for sizes that differ."""
    if len(folders) < 2:
        raise UserError(f"compare got {len(folders)} run, but needs at least 2; try: calotype compare RUN_A RUN_B")
    if len(folders) > len(ascii_uppercase):
        raise UserError(f"compare got {len(folders)} runs, but takes at most {len(ascii_uppercase)}; leave some out")
    found = [open_one(key, folder, device) for key, folder in zip(ascii_uppercase, folders, strict=False)]
    sizes = {one.size for one in found}
    if len(sizes) > 1:
        shown = ", ".join(f"{one.run.folder} has {one.size} px" for one in found)
        raise UserError(f"the runs make pictures of different sizes ({shown}); compare runs of one size")
    return found


def open_one(key: str, folder: Path, device: str) -> Candidate:
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no run.json; give what `calotype train` wrote")
    run = read_run(folder)
    if run.facts.get("status") != "finished":
        state = run.facts.get("status") or "damaged"
        raise UserError(f"{folder} is {state}, but must be finished; try: calotype resume {folder}")
    model = load(folder, device)
    settings = read_json(folder / "model" / "model.json")["recipe"]
    recipe = parse_recipe(upgraded(settings), lambda key: f"{folder}/model/model.json")
    return Candidate(key, run, model, recipe)


def data_of(competitors: Sequence[Candidate], wanted: Path | None) -> str:
    """Where the pictures are: as wanted, else where the first run found its own."""
    return str(wanted) if wanted is not None else str(competitors[0].run.facts.get("data") or "portraits")


def without_seed(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings but for its seed and what the clock has decided: equal for runs of one kind."""

    def kept(value: Any, *path: str) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: kept(one, *path, key) for key, one in value.items() if not by_clock(*path, key)}

    return dict(kept(recipe.model_dump(mode="json")))


def by_clock(*path: str) -> bool:
    return path[-1] in ("images", "seed", "warmup") or path[-2:] == ("sampling", "augmentation")


def usual_text(model: Model, count: int) -> Text | None:
    """What costs are counted with: as much to read as most prompts have."""
    return None if model.reader is None else model.text(count, PROMPT)


def seconds_of(run: Run) -> dict[str, float]:
    return {name: float(value) for name, value in within(run.facts, "seconds").items()}
