"""What a plan chose, and why, for people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from calotype.data.captions import Captions
from calotype.data.folder import Pictures
from calotype.nets.dit import DitConfig
from calotype.nets.frozen import FolderConfig, MiniLmConfig
from calotype.nets.text import BytesConfig, NoText
from calotype.planning.choose import FEW_PICTURES
from calotype.planning.plan import Choice
from calotype.recipe import Backbone, ImportedSpace, Recipe, leg_above


def explain(recipe: Recipe, proposed: Recipe, pictures: Pictures, reasons: dict[str, str]) -> list[Choice]:
    """Each choice with its reason, or as set by the user where `recipe` differs from what was `proposed`."""

    def choice(what: str, value: str, of: Callable[[Recipe], object], why: str) -> Choice:
        if of(recipe) == of(proposed):
            return Choice(what=what, value=value, why=why)
        return Choice(what=what, value=value, why="as you set it", by_user=True)

    denoiser, network = recipe.denoiser, recipe.autoencoder.network
    choices: list[Choice] = []
    if isinstance(recipe.space, ImportedSpace):
        choices.append(explain_import(recipe.space))
    if recipe.kind == "latent":
        side = recipe.chain[0] // network.reduction
        latents = choice(
            "latents", f"{side} x {side} x {network.channels} (f{network.reduction})",
            lambda one: one.autoencoder.network, "few positions, so that the denoiser is cheap",
        )  # fmt: skip
        if isinstance(recipe.space, ImportedSpace):
            latents.why = "as imported; mean and standard deviation of each channel are measured on these pictures"
        choices.append(latents)
    if len(recipe.chain) > 1:
        choices.append(choice(
            "stages", " -> ".join(f"{size} px" for size in recipe.chain), lambda one: one.chain,
            "each enlarges the picture of the one before; the first is small enough to get the composition right",
        ))  # fmt: skip
    choices.append(choice(
        "denoiser", describe_backbone(denoiser.backbone), lambda one: one.denoiser.backbone, reasons["denoiser"]
    ))  # fmt: skip
    for size in recipe.chain[1:]:
        enlarger = recipe.enlarger(size)
        choices.append(choice(
            f"enlarge to {size}", describe_backbone(enlarger.backbone),
            partial(backbone_of, size),
            f"no attention, so crops of {enlarger.crop or size} px are enough; {reasons[leg_above(size)]}",
        ))  # fmt: skip
    choices += [
        choice(
            "prior", denoiser.prior, lambda one: one.denoiser.prior,
            "Gaussians in closed form are the best denoiser without training; the network learns what is left",
        ),
        choice("schedule", denoiser.schedule.kind, lambda one: one.denoiser.schedule, "straight paths"),
        choice("precision", recipe.precision, lambda one: one.precision, "both were timed here; this is faster"),
        Choice(
            what="labels", value=", ".join(pictures.classes) or "none",
            why=f"class subfolders; {len(pictures.train_indices):,} pictures to train on",
        ),
    ]  # fmt: skip
    if pictures.captions:
        why = reason_for_text(pictures.captions)
        choices.append(choice("text", describe_text(recipe), lambda one: one.denoiser.text, why))
    why = f"{FEW_PICTURES:,} pictures and more need none"
    dropout = f"{denoiser.backbone.dropout:g}"
    return [*choices, choice("dropout", dropout, lambda one: one.denoiser.backbone.dropout, why)]


def backbone_of(size: int, recipe: Recipe) -> Backbone:
    return recipe.enlarger(size).backbone


def explain_import(space: ImportedSpace) -> Choice:
    value = f"imported from {space.path}"
    if space.finetune:
        return Choice(what="autoencoder", value=f"{value}, and fine-tuned", why="as you set it")
    why = "it is trained already, so its leg is left out; --set space.finetune=true trains it further"
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
