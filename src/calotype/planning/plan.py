"""The plan of a run: its recipe, the reasons for it in words, and what it will cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from calotype.bounds import MAX_SAMPLES
from calotype.data.captions import Captions
from calotype.data.folder import Pictures
from calotype.data.images import shown
from calotype.data.listing import MOST_NAMED, first_names
from calotype.files import checked, read_json
from calotype.nets.dit import DitConfig
from calotype.nets.frozen import FolderConfig, MiniLmConfig
from calotype.nets.text import BytesConfig, NoText
from calotype.nets.vae import VaeConfig
from calotype.recipe import Backbone, ImportedSpace, Recipe, RunSpace, leg_above
from calotype.run import renamed_legs
from calotype.training.control import TimeBudget
from calotype.training.warm_start import WarmStart
from calotype.types import UserError


class Choice(BaseModel):
    what: str
    value: str
    why: str
    by_user: bool = False


class Plan(TimeBudget):
    """As stored in `plan.json`, but for the recipe, which is stored in `recipe.toml`."""

    recipe: Recipe = Field(exclude=True)
    device: str
    choices: list[Choice] = Field(default_factory=list)
    flops: dict[str, float] = Field(default_factory=dict)
    """Floating-point operations of an image in each leg, forward and backward; plans of version 0.1 have none."""
    final_count: Annotated[int, Field(gt=0, le=MAX_SAMPLES)] = 16
    """Samples to make at the end."""
    notes: list[str] = Field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.recipe.kind, "size": self.recipe.size, **self.model_dump(mode="json")}

    @classmethod
    def read(cls, file: Path, recipe: Recipe) -> Plan:
        """Of a run. Raises `UserError` where the file is damaged, or does not plan the legs of the recipe."""
        stored = checked(read_json(file, renamed_legs), dict[str, Any], file)
        plan: Plan = checked({**stored, "recipe": recipe}, cls, file)
        for leg in recipe.legs:
            if leg not in plan.predicted.get("seconds", {}) or (leg in plan.paced and leg not in plan.phases):
                raise UserError(f"{file} is damaged: it has no costs of the {leg}, which recipe.toml has")
        return plan

    def parameters(self, leg: str) -> int:
        """Number of parameters of the network that a leg trains, without the critic."""
        return int(self.predicted["parameters"][network_of(leg)])


def network_of(leg: str) -> str:
    """Which network a leg trains, by the leg that trains it first."""
    return leg.replace("exposure", "enlarge")


# -- Reasons -----------------------------------------------------------------------------------------------------------


def explain(
    recipe: Recipe, proposed: Recipe, pictures: Pictures, reasons: dict[str, str], start: WarmStart | None = None
) -> list[Choice]:
    """Each choice with its reason, or as set by the user where `recipe` differs from what was `proposed`."""
    if start is not None:
        kept = ["patches"] if isinstance(recipe.space, RunSpace) else []
        reasons = reasons | dict.fromkeys([*kept, *start.continued(recipe)], f"as in {shown(start.name)}")
    denoiser, other, choices = recipe.denoiser, proposed.denoiser, explain_space(recipe, proposed, reasons, start)
    if len(recipe.chain) > 1:
        choices.append(choice(
            "stages", " -> ".join(f"{size} px" for size in recipe.chain), recipe.chain == proposed.chain,
            "each enlarges the picture of the one before; the first is small enough to get the composition right",
        ))  # fmt: skip
    backbone = denoiser.backbone
    choices.append(choice("denoiser", describe_backbone(backbone), backbone == other.backbone, reasons["denoiser"]))
    for size in recipe.chain[1:]:
        enlarger = recipe.enlarging(size)
        choices.append(choice(
            f"enlarge to {size}", describe_backbone(enlarger.backbone),
            enlarger.backbone == proposed.enlarging(size).backbone,
            f"no attention, so crops of {enlarger.crop or size} px are enough; {reasons[leg_above(size)]}",
        ))  # fmt: skip
    choices += [
        choice(
            "prior", denoiser.prior, denoiser.prior == other.prior,
            "Gaussians in closed form are a denoiser without training; the network learns the residual",
        ),
        choice("schedule", denoiser.schedule.kind, denoiser.schedule == other.schedule, "rectified flow"),
        choice(
            "precision", recipe.precision, recipe.precision == proposed.precision,
            reasons["precision"],
        ),
        Choice(
            what="labels", value=first_names(pictures.classes, MOST_NAMED) or "none",
            why=f"{'' if pictures.classes else 'no '}class subfolders; {pictures.trained:,} pictures to train on",
        ),
    ]  # fmt: skip
    if "sharding" in reasons:
        as_proposed = recipe.sharding == proposed.sharding
        choices.append(choice("sharding", recipe.sharding, as_proposed, reasons["sharding"]))
    if pictures.captions:
        why = reason_for_text(pictures.captions)
        choices.append(choice("text", describe_text(recipe), denoiser.text == other.text, why))
    mirrored = "half of the pictures" if recipe.flip else "none"
    choices.append(choice("mirrored", mirrored, recipe.flip == proposed.flip, reasons["flip"]))
    value = f"{denoiser.views} of each picture" if denoiser.views else "none"
    choices.append(choice("crops", value, denoiser.views == other.views, reasons["views"]))
    as_proposed = backbone.dropout == other.backbone.dropout
    return [*choices, choice("dropout", f"{backbone.dropout:g}", as_proposed, reasons["dropout"])]


def choice(what: str, value: str, as_proposed: bool, why: str) -> Choice:
    return Choice(what=what, value=value, why=why if as_proposed else "as you set it", by_user=not as_proposed)


def explain_space(recipe: Recipe, proposed: Recipe, reasons: dict[str, str], start: WarmStart | None) -> list[Choice]:
    """The autoencoder and its latents; nothing in pixels."""
    network, wanted, choices = recipe.autoencoder.network, proposed.autoencoder.network, list[Choice]()
    if isinstance(recipe.space, ImportedSpace):
        choices.append(explain_import(recipe.space))
    if isinstance(recipe.space, RunSpace) and start is not None:
        choices.append(explain_kept(recipe.space, start, reasons.get("autoencoder", "as you set it")))
    if recipe.kind == "latent":
        side = recipe.chain[0] // network.reduction
        as_proposed = (network.reduction, network.channels) == (wanted.reduction, wanted.channels)
        value = f"{side} x {side} x {network.channels} (f{network.reduction})"
        latents = choice("latents", value, as_proposed, "few latents, so that the denoiser is cheap")
        if isinstance(recipe.space, ImportedSpace):
            latents.why = "as imported; mean and standard deviation of each channel are measured on these pictures"
        choices.append(latents)
        if isinstance(network, VaeConfig):
            as_proposed = isinstance(wanted, VaeConfig) and network.lapped == wanted.lapped
            value = "overlapping" if network.lapped else "squares"
            choices.append(choice("patches", value, as_proposed, reasons.get("patches", "")))
    return choices


def explain_import(space: ImportedSpace) -> Choice:
    value = f"imported from {space.path}"
    if space.finetune:
        return Choice(what="autoencoder", value=f"{value}, and fine-tuned", why="as you set it")
    why = "it is trained already, so its leg is left out; --set space.finetune=true trains it further"
    return Choice(what="autoencoder", value=value, why=why)


def explain_kept(space: RunSpace, start: WarmStart, why: str) -> Choice:
    value = f"that of {shown(start.name)}{', its decoder trained further' if space.finetune else ''}"
    return Choice(what="autoencoder", value=value, why=why)


def describe_backbone(backbone: Backbone) -> str:
    if isinstance(backbone, DitConfig):
        return f"DiT of {backbone.depth} layers, width {backbone.width}, patches of {backbone.patch}"
    levels = f"{len(backbone.multiples)} levels of {backbone.blocks} blocks"
    return f"UNet of width {backbone.width}, {levels}, patches of {backbone.patch}"


def describe_text(recipe: Recipe) -> str:
    match recipe.denoiser.text:
        case NoText():
            return "none"
        case BytesConfig() as text:
            return f"bytes, width {text.width}, depth {text.depth}, up to {text.words} words"
        case MiniLmConfig() as text:
            return f"MiniLM (English), frozen, up to {text.words} tokens"
        case FolderConfig() as text:
            return f"{text.path} (sha256 {text.digest[:12]}), frozen, up to {text.words} tokens"


def reason_for_text(captions: Captions) -> str:
    if captions.optional:
        return "labels are learned sooner than these captions; --set denoiser.text.kind=bytes reads the captions"
    return (
        f"{captions.captioned:,} of {len(captions.of):,} pictures have captions; the encoder learns with the denoiser"
    )
