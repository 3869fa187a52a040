"""A warm start: the networks of a new run begin as those of a finished one, where they fit.

What fits is decided by settings alone, so that a plan can say it before anything is built. A stage fits as a whole or
not at all, but for what depends on the pictures: label embeddings go by the names of the classes, a text encoder is
taken where it is the same, and the matrix of views where both have one. Closed forms, statistics of latents, optimizers
and schedules are always new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calotype.bounds import LARGEST_SEED
from calotype.build import build_space, initial_space
from calotype.data.folder import Pictures
from calotype.data.images import shown
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Stage
from calotype.nets.text import TextConditioned
from calotype.priors.prior import load_trained, trained_state
from calotype.recipe import DiffusionConfig, EnlargeRecipe, Recipe, RunSpace, leg_above
from calotype.run import Run
from calotype.spaces.latent import LatentSpace
from calotype.store import read_model
from calotype.tables import merge

START_FOLDER = "start"
"""In a run's folder until it is finished: a copy of the model that it starts from."""
OF_FIRST_STAGE = ("backbone", "schedule", "scaling", "prior")
OF_ENLARGER = ("backbone", "scaling", "prior", "augmentation", "objective", "critic", "crop")
"""Settings of a stage that a new run takes over; others are chosen for its pictures, time and machine."""
MUST_AGREE = ("backbone", "scaling", "prior", "objective")
"""Settings by which the networks of a stage fit."""


@dataclass(frozen=True)
class WarmStart:
    """A finished model, from whose networks a run starts; `name` is that of its run."""

    name: str
    recipe: Recipe
    stages: tuple[Stage, ...]
    classes: tuple[str, ...]
    again: dict[str, Any] | None = None
    """All settings, where it is the same run that goes on."""

    @property
    def bytes(self) -> int:
        """Of its model on the disk, about."""
        networks = [*(stage.denoiser for stage in self.stages), self.stages[0].space]
        modules = [network for network in networks if isinstance(network, nn.Module)]
        return sum(value.nbytes for network in modules for value in network.state_dict().values())

    # -- Settings --------------------------------------------------------------------------------------------------

    def settings(self, wanted: Mapping[str, Any], captioned: bool) -> dict[str, Any]:
        """Those to lay below what the user has `wanted`; `captioned`: whether any of the pictures has a caption."""
        if self.again is not None:
            return self.again
        source, chain = self.recipe.model_dump(mode="json"), self.recipe.chain
        stages = [*(wanted.get("stages") or chain)]
        below: dict[str, Any] = {
            "kind": self.recipe.kind,
            "size": self.recipe.size,
            "stages": stages,
            "aspect_buckets": self.recipe.aspect_buckets,
            "seed": next_seed(self.recipe),
            "denoiser": picked(source["denoiser"], OF_FIRST_STAGE),
            "enlarge": {
                str(size): picked(source["enlarge"][str(size)], OF_ENLARGER)
                for low_res, size in pairwise(chain)
                if (low_res, size) in pairwise(stages)
            },
        }
        if captioned and self.recipe.denoiser.text.kind != "none":
            below["denoiser"]["text"] = source["denoiser"]["text"]
        if self.recipe.kind == "latent":
            below["autoencoder"] = {"network": source["autoencoder"]["network"]}
            if self._keeps_space(merge(below, dict(wanted))):
                below["space"] = {"kind": "run"}
        return below

    def _keeps_space(self, settings: dict[str, Any]) -> bool:
        network = self.recipe.autoencoder.network.model_dump(mode="json")
        return bool(settings["autoencoder"]["network"] == network and settings["stages"][0] == self.recipe.chain[0])

    # -- What fits -------------------------------------------------------------------------------------------------

    def obstacle(self, recipe: Recipe, size: int) -> str:
        """Why the stage of this size starts anew; empty where it starts from the run."""
        config, low_res = config_of(recipe, size), low_res_of(recipe, size)
        if size not in self.recipe.chain or low_res_of(self.recipe, size) != low_res:
            return f"{shown(self.name)} has no stage from {'noise' if low_res is None else low_res} to {size} px"
        if low_res is None and recipe.kind == "latent" and not isinstance(recipe.space, RunSpace):
            return "its autoencoder is another one, and so are the latents"
        source = config_of(self.recipe, size)
        differ = [name for name in MUST_AGREE if setting(config, name) != setting(source, name)]
        return f"its {' and '.join(differ)} differ{'s' if len(differ) == 1 else ''}" if differ else ""

    def continued(self, recipe: Recipe) -> list[str]:
        """The legs of denoisers that go on with those of the run."""
        return [leg_of(recipe, size) for size in recipe.chain if not self.obstacle(recipe, size)]

    def notes(self, recipe: Recipe, classes: Sequence[str]) -> list[str]:
        """Sentences for the plan: what goes on, what starts anew and why, and what was dropped."""
        legs = {leg_of(recipe, size): self.obstacle(recipe, size) for size in recipe.chain}
        kept = ["autoencoder"] if isinstance(recipe.space, RunSpace) else []
        kept += self.continued(recipe)
        notes = [f"starts from {shown(self.name)}: its {' and '.join(kept) or 'settings'}"]
        notes += [f"the {leg} starts anew: {why}" for leg, why in legs.items() if why]
        if any(not why for why in legs.values()):
            notes += [*self._class_notes(classes), *self._text_notes(recipe)]
        return notes

    def _class_notes(self, classes: Sequence[str]) -> Iterator[str]:
        new, lost = (
            [shown(name) for name in here if name not in there]
            for here, there in ((classes, self.classes), (self.classes, classes))
        )
        if new:
            yield f"new classes start as pictures without a label do: {', '.join(new)}"
        if lost:
            yield f"classes of {shown(self.name)} that are not here are dropped: {', '.join(lost)}"

    def _text_notes(self, recipe: Recipe) -> Iterator[str]:
        before, now = self.recipe.denoiser.text, recipe.denoiser.text
        if before == now:
            return
        if now.kind == "none":
            yield f"{shown(self.name)} reads captions; here none are read, so its text encoder is dropped"
        elif before.kind == "none":
            yield f"{shown(self.name)} reads no captions: the text encoder, and the attention to it, start anew"
        else:
            yield f"the text encoder differs from that of {shown(self.name)}: it, and the attention to it, start anew"

    # -- Networks --------------------------------------------------------------------------------------------------

    def space(self, recipe: Recipe, device: torch.device) -> LatentSpace:
        """The autoencoder of the run, with an encoder that does not learn."""
        source, space = self.stages[0].space, build_space(recipe).to(device)
        assert isinstance(source, LatentSpace)
        space.load_state_dict(source.state_dict())
        space.vae.encoder.requires_grad_(False)
        return space

    def begin(self, stage: Stage, recipe: Recipe, classes: Sequence[str]) -> None:
        """Gives a new stage the weights of the run, where it fits; its prior stays."""
        size = stage.image_size
        if self.obstacle(recipe, size):
            return
        source = self.stages[self.recipe.chain.index(size)].denoiser
        same_text = self.recipe.denoiser.text == recipe.denoiser.text
        weights = trained_state(stage.denoiser) | fitting(source, stage.denoiser, same_text)
        weights["label.weight"] = label_rows(source.label.weight, self.classes, classes)
        load_trained(stage.denoiser, weights, shown(self.name))


def fitting(source: Denoiser, target: Denoiser, same_text: bool) -> dict[str, Tensor]:
    """The weights of `source` by their names in `target`; those that read texts only where the encoder is the same."""
    into, out = (backbone_prefix(denoiser) for denoiser in (target, source))
    known, weights = trained_state(target), dict[str, Tensor]()
    for name, value in trained_state(source).items():
        shared = into + name.removeprefix(out) if name.startswith(out) else name
        if shared in known and (same_text or not reads_text(name)):
            weights[shared] = value
    return weights


def reads_text(name: str) -> bool:
    """Whether a weight of a denoiser is of its text encoder, or of the attention to it."""
    return name.startswith(("backbone.encoder.", "backbone.pooled_projection.")) or ".text_attention." in name


def backbone_prefix(denoiser: Denoiser) -> str:
    """Of the names of the weights of what is conditioned on text, or of the backbone without any."""
    return "backbone.backbone." if isinstance(denoiser.backbone, TextConditioned) else "backbone."


def label_rows(weights: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """Label embeddings by the names of the classes; a new one starts as the null label, the last row."""
    rows = [before.index(name) if name in before else len(before) for name in now]
    return weights[[*rows, len(before)]].clone()


def first_space(recipe: Recipe, pictures: Pictures, device: torch.device, start: WarmStart | None) -> LatentSpace:
    """An autoencoder before its training: that of the run that this one starts from, imported, or a new one."""
    if not isinstance(recipe.space, RunSpace):
        return initial_space(recipe, pictures, device)
    assert start is not None, "space.kind is run, but there is no run to start from"
    return start.space(recipe, device)


def read_start(folder: Path, name: str, device: torch.device) -> WarmStart:
    """From the folder of a model. Raises `UserError` where it is missing or damaged."""
    return WarmStart(name, *read_model(folder, device))


def start_of(run: Run, device: torch.device) -> WarmStart | None:
    """What a run starts from, of the copy in its folder; None where it starts from nothing."""
    origin = run.state.origin
    return None if origin is None else read_start(run.folder / START_FOLDER, origin.run, device)


def next_seed(recipe: Recipe) -> int:
    """Another one, so that the draws are not those that the networks have seen."""
    return recipe.seed + 1 if recipe.seed < LARGEST_SEED else 0


# -- Settings of a stage -----------------------------------------------------------------------------------------------


def config_of(recipe: Recipe, size: int) -> DiffusionConfig:
    return recipe.denoiser if size == recipe.chain[0] else recipe.enlarging(size)


def leg_of(recipe: Recipe, size: int) -> str:
    return "denoiser" if size == recipe.chain[0] else leg_above(size)


def low_res_of(recipe: Recipe, size: int) -> int | None:
    """The size of the pictures that the stage of this size enlarges; None for the first."""
    index = recipe.chain.index(size)
    return recipe.chain[index - 1] if index else None


def setting(config: DiffusionConfig, name: str) -> Any:
    """A setting; dropout changes no weights."""
    value = getattr(config, name, EnlargeRecipe.model_fields[name].default)
    return value.model_copy(update={"dropout": 0.0}) if name == "backbone" else value


def picked(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Some settings, without the dropout, chosen for the number of pictures, and the first step of sampling."""
    own = {name: settings[name] for name in names}
    for name, chosen in (("backbone", "dropout"), ("schedule", "first_step")):
        if name in own:
            own[name] = {key: value for key, value in own[name].items() if key != chosen}
    return own
