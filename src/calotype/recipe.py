"""The recipe: all settings of a run in one TOML file. It gathers the config classes, and says where a file is wrong."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import warnings
from collections.abc import Iterable
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from calotype.data.split import SplitConfig
from calotype.diffusion.augmentation import Augmentation, NoiseAugmentation
from calotype.diffusion.denoiser import ScalingName
from calotype.diffusion.schedules import Flow, Karras, Schedule
from calotype.diffusion.stage import Sampling
from calotype.nets.blocks import Precision
from calotype.nets.critic import CriticConfig
from calotype.nets.dit import DitConfig
from calotype.nets.frozen import FolderConfig, FrozenConfig
from calotype.nets.kl import KlConfig
from calotype.nets.text import BytesConfig, NoText
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import VaeConfig
from calotype.tables import all_keys, at_path, line_of, merge, read_value, value_at, without
from calotype.types import Config, UserError

Backbone = Annotated[UnetConfig | DitConfig, Field(discriminator="kind")]
Beta = Annotated[float, Field(ge=0, lt=1)]
StartName = Literal["gaussian", "nothing"]
TextConfig = Annotated[NoText | BytesConfig | FrozenConfig, Field(discriminator="kind")]


class OwnSpace(Config):
    """The autoencoder is trained here, from nothing."""

    kind: Literal["own"] = "own"


class ImportedSpace(Config):
    """The autoencoder is there already: `AutoencoderKL` in the layout of diffusers."""

    kind: Literal["diffusers"] = "diffusers"
    path: str
    """Its folder, or that of a pipeline with a folder `vae`."""
    finetune: bool = False
    """Train it further on these pictures, before the denoiser."""


class OptimizerConfig(Config):
    learning_rate: PositiveFloat = 1e-3
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the run in which the learning rate rises from 0."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the run, at its end, in which the learning rate falls to 0."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: PositiveFloat = 1.0
    """The gradient is scaled down where its norm is above this."""
    average: float = Field(default=0.05, gt=0, lt=0.28)
    """Width of the average of the weights, as a fraction of the run so far."""


class AutoencoderLossConfig(Config):
    """Weights of the three losses, and when the critic plays. Fractions are of the run, never steps."""

    edges: float = Field(default=0.5, ge=0)
    """Of the L1 distance of neighbouring pixels' differences, beside the L1 distance of the pixels, which has 1."""
    perceptual: float = Field(default=0.02, ge=0)
    perceptual_start: float = Field(default=0.5, ge=0, le=1)
    """From this fraction of the run on: large shapes first, and half of the run at half the cost."""
    perceptual_share: float = Field(default=0.25, gt=0, le=1)
    """Fraction of each batch that the perceptual distance looks at: it costs more than the autoencoder."""
    kl: float = Field(default=1e-5, ge=0)
    adversarial: float = Field(default=0.1, ge=0)
    """Gradient of the critic's loss at the picture, relative to the reconstruction's. 0: no critic at all."""
    adversarial_cap: float = Field(default=1.0, gt=0)
    """The most that the critic's loss may be multiplied by to reach that."""
    critic_start: float = Field(default=0.6, ge=0, le=1)
    """The critic learns from here on, at first alone,"""
    critic_used: float = Field(default=0.75, ge=0, le=1)
    """and the autoencoder listens to it from here on."""
    critic_share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of each batch that the critic looks at."""


class ConditionDropout(Config):
    """Classifier-free dropout of label and caption (arXiv 2207.12598, section 3.2), in probabilities.

    Of a picture that has both, training gives neither, the caption alone, the label alone, or both, which is the rest.
    """

    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Neither: so that the model can be guided away from what it makes without them."""
    caption_alone: float = Field(default=0.4, ge=0, le=1)
    """The caption without its label, as prompts are."""
    label_alone: float = Field(default=0.1, ge=0, le=1)
    """The label without its caption."""
    phrase_dropout: float = Field(default=0.5, ge=0, le=1)
    """How often only a part of a caption is given, as prompts do; what it leaves out is open then, not denied."""

    @model_validator(mode="after")
    def _sum(self) -> ConditionDropout:
        total = self.label_dropout + self.caption_alone + self.label_alone
        if total > 1 + 1e-6:
            raise ValueError(
                f"label_dropout {self.label_dropout:g}, caption_alone {self.caption_alone:g} and label_alone "
                f"{self.label_alone:g} sum to {total:g}, but are shares of the same pictures and expected to sum to at "
                f"most 1; lower caption_alone or label_alone"
            )
        return self


class LegConfig(Config):
    """How long one leg of a run trains, and on how much at once."""

    images: int = Field(default=0, ge=0)
    """Pictures to see in all, repeats counted; 0: as many as the budget allows."""
    batch: PositiveInt = 16


class AutoencoderRecipe(LegConfig):
    batch: PositiveInt = 8
    network: Annotated[VaeConfig | KlConfig, Field(discriminator="kind")] = VaeConfig()
    critic: CriticConfig = CriticConfig()
    losses: AutoencoderLossConfig = AutoencoderLossConfig()
    crop: int = Field(default=0, ge=0)
    """Side of the random crops to train on; 0: whole pictures."""
    learn: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    critic_learn: OptimizerConfig = OptimizerConfig(learning_rate=4e-4, betas=(0.5, 0.9))


class DiffusionConfig(LegConfig, ConditionDropout):
    """What the diffusion models of all stages have."""

    backbone: Backbone
    schedule: Schedule
    scaling: ScalingName
    spread: PositiveFloat
    learn: OptimizerConfig = OptimizerConfig()


class DenoiserRecipe(DiffusionConfig):
    """The first stage's."""

    batch: PositiveInt = 32
    backbone: Backbone = DitConfig()
    schedule: Schedule = Flow()
    scaling: ScalingName = "flow"
    spread: PositiveFloat = 1.0
    """Standard deviation of what is to be made: 1 in latents, about 0.5 in pixels."""
    start: StartName = "gaussian"
    """What stands beside the network before it has learned: the best linear denoiser of the data, or nothing."""
    text: TextConfig = NoText()
    """How captions and prompts are read, in all stages; in each, what learns of it learns with its denoiser."""


class ExposureConfig(Config):
    """Exposure fine-tuning: a last leg on training pictures that the stage below has redrawn, with its artefacts."""

    images: int = Field(default=0, ge=0)
    """Crops to see; 0: no such leg."""
    pictures: PositiveInt = 256
    """How many pictures the stage below redraws."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of the steps of sampling that are done again: near 0 leaves them as they are, near 1 keeps nothing of them."""


class EnlargeRecipe(DiffusionConfig):
    """A stage that looks at the picture of the stage before it, and works in pixels."""

    backbone: Backbone = UnetConfig(patch=4, width=64, multiples=(1, 2, 2), attention_levels=())
    schedule: Schedule = Karras()
    scaling: ScalingName = "edm"
    spread: float = Field(default=0.0, ge=0)
    """Standard deviation of pictures about the smaller one, enlarged, beside what the Gaussians say: 0 with them.

    The plan measures it where it starts from nothing. Models of format 5 were trained with that of plain areas here.
    """
    start: StartName = "gaussian"
    """What stands beside the network before it has learned: Gaussians of each kind of place, or nothing."""
    augmentation: Augmentation = NoiseAugmentation()
    crop: int = Field(default=0, ge=0)
    """Side of the random crops to train on; 0: whole pictures."""
    exposure: ExposureConfig = ExposureConfig()
    sampling: Sampling = Sampling(steps=12, guidance=1.0)

    @model_validator(mode="after")
    def _spread(self) -> EnlargeRecipe:
        if self.start == "nothing" and not self.spread:
            raise ValueError(
                "spread is 0, but a stage that starts from nothing needs one above 0; leave it to the plan"
            )
        return self


class Recipe(Config):
    kind: Literal["latent", "cascade"] = "latent"
    """What the first stage works in: the latents of an autoencoder, or pixels."""
    size: PositiveInt = 64
    """Side of the pictures in pixels; each is cropped to a square around its middle, or see `shapes`."""
    stages: tuple[PositiveInt, ...] = ()
    """Side of the pictures after each stage; none: one stage of `size`."""
    shapes: PositiveInt = 1
    """Shapes to train on, from 1:2 to 2:1, each about as large as the square, which is always one; 1: only that."""
    seed: int = 0
    split: SplitConfig = SplitConfig()
    """How many pictures are kept from training, for validation and test."""
    flip: bool = False
    """Also train on mirror images."""
    precision: Precision = "float32"
    space: Annotated[OwnSpace | ImportedSpace, Field(discriminator="kind")] = OwnSpace()
    """Where the autoencoder comes from."""
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    sampling: Sampling = Sampling()
    enlarge: dict[str, EnlargeRecipe] = Field(default_factory=dict)
    """Of each stage after the first, by its size: `--set enlarge.256.images=10000`."""

    @model_validator(mode="after")
    def _chain(self) -> Recipe:
        for low_res, larger in pairwise(self.chain):
            if larger % low_res or larger <= low_res:
                raise ValueError(f"stages are {list(self.chain)}, but each must be a whole multiple of the one before")
        if self.chain[-1] != self.size:
            raise ValueError(f"stages end at {self.chain[-1]}, but size is {self.size}; the last stage makes that size")
        above = {str(size) for size in self.chain[1:]}
        if unknown := set(self.enlarge) - above:
            raise ValueError(
                f"enlarge.{min(unknown)} is set, but the stages are {list(self.chain)}; add it to them or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _guided(self) -> Recipe:
        starts = {"": self.denoiser.start, **{f"enlarge.{size}.": self.enlarger(size).start for size in self.chain[1:]}}
        for (place, start), sampling in zip(starts.items(), self.samplings, strict=True):
            if sampling.guide == "prior" and start == "nothing":
                key = "denoiser.start" if not place else f"{place}start"
                raise ValueError(
                    f"{place}sampling.guide is prior, but {key} is nothing, so there is no closed form to guide away "
                    f"from; set the guide to unconditional"
                )
        return self

    @model_validator(mode="after")
    def _imported(self) -> Recipe:
        if self.space.kind == "own":
            return self
        if self.kind == "cascade":
            raise ValueError("space is imported, but a cascade works in pixels; leave one of both out")
        if self.autoencoder.network.kind != "kl":
            raise ValueError("space is imported, but autoencoder.network is set to another one; leave that out")
        return self

    @property
    def trains_space(self) -> bool:
        """An imported one is taken as it is."""
        return self.kind == "latent" and (isinstance(self.space, OwnSpace) or self.space.finetune)

    @property
    def chain(self) -> tuple[int, ...]:
        return self.stages or (self.size,)

    def enlarger(self, size: int) -> EnlargeRecipe:
        return self.enlarge.get(str(size), EnlargeRecipe())

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """Of each stage."""
        return self.sampling, *(self.enlarger(size).sampling for size in self.chain[1:])

    @property
    def units(self) -> tuple[int, ...]:
        """What the sides of each stage's pictures must be multiples of."""
        base = unit_of(self.denoiser.backbone) * (self.autoencoder.network.reduction if self.kind == "latent" else 1)
        steps = pairwise(self.chain)
        return base, *(math.lcm(unit_of(self.enlarger(larger).backbone), larger // small) for small, larger in steps)

    @property
    def unit(self) -> int:
        """What the sides of finished pictures must be multiples of."""
        return math.lcm(*(self.size // size * unit for size, unit in zip(self.chain, self.units, strict=True)))

    @property
    def legs(self) -> dict[str, LegConfig]:
        """All that is trained, in order."""
        first: dict[str, LegConfig] = {"autoencoder": self.autoencoder} if self.trains_space else {}
        legs = {**first, "denoiser": self.denoiser}
        for size in self.chain[1:]:
            legs[leg_above(size)] = above = self.enlarger(size)
            if above.exposure.images:
                legs[exposure_above(size)] = LegConfig(images=above.exposure.images, batch=above.batch)
        return legs

    def with_images(self, images: dict[str, int]) -> Recipe:
        """The same, with the number of pictures that each leg sees."""
        settings: dict[str, Any] = {}
        for leg, number in images.items():
            name, _, size = leg.partition("-")
            path = {"enlarge": ["enlarge", size], "exposure": ["enlarge", size, "exposure"]}.get(name, [name])
            settings = merge(settings, at_path(path, {"images": number}))
        return check(merge(self.model_dump(), settings))


def unit_of(backbone: Backbone) -> int:
    """What the sides of a backbone's picture must be multiples of."""
    return backbone.patch * (1 if isinstance(backbone, DitConfig) else 2 ** (len(backbone.multiples) - 1))


def leg_above(size: int) -> str:
    """The name of the leg that learns to enlarge to this size."""
    return f"enlarge-{size}"


def exposure_above(size: int) -> str:
    """The name of its exposure fine-tuning."""
    return f"exposure-{size}"


def to_toml(recipe: Recipe) -> str:
    """All settings; a cascade has no autoencoder."""
    latent = {"autoencoder", "space"}
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude=latent if recipe.kind == "cascade" else set()))


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a file, checked against the schema. Raises `UserError` with file and line.

    Warns where the file sets what is gone, which is left out.
    """
    try:
        text = path.read_text()
        settings = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"recipe {path} does not exist") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from None
    for key in filter(lambda key: is_set(value_at(settings, key)), GONE):
        warnings.warn(f"{path} sets {key}, but it is gone: {GONE[key]}; it is left out", stacklevel=2)
    settings = of_this_version(settings)
    check_layer(settings, {}, lambda key: f"{path}, line {line_of(text, key)}")
    return settings


GONE = {
    "joint": "the same time in the legs before it makes better pictures",
    "autoencoder.losses.equivariance": "it cost 1.6 dB of the reconstruction and gained nothing",
    "autoencoder.losses.latent_noise": "it cost detail and made no better samples",
}
"""Settings of earlier versions that measurement did not bear out. They changed no network: its weights open."""


def is_set(value: Any) -> bool:
    """Whether an earlier version did anything for it: a leg of no images was none."""
    return bool(value.get("images") if isinstance(value, dict) else value)


def of_this_version(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an earlier version, as this one has them.

    What is gone is left out. Where `label_dropout` leaves no room for the usual shares of a caption or a label alone,
    these are smaller.
    """
    changed = settings
    for key in GONE:
        changed = without(changed, key)
    if isinstance(table := changed.get("denoiser"), dict):
        changed = {**changed, "denoiser": with_room(table)}
    if isinstance(above := changed.get("enlarge"), dict):
        changed = {**changed, "enlarge": {size: stage_of_this_version(one) for size, one in above.items()}}
    return changed


def stage_of_this_version(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    return with_room({"exposure" if key == "mistakes" else key: value for key, value in table.items()})


def with_room(table: dict[str, Any]) -> dict[str, Any]:
    dropped, usual = table.get("label_dropout"), ConditionDropout()
    if not isinstance(dropped, float | int) or not 0 <= dropped <= 1 or {"caption_alone", "label_alone"} & {*table}:
        return table
    caption = min(usual.caption_alone, 1 - dropped)
    return {**table, "caption_alone": caption, "label_alone": min(usual.label_alone, max(0.0, 1 - dropped - caption))}


def read_overrides(overrides: Iterable[str], below: dict[str, Any] | None = None) -> dict[str, Any]:
    """`["a.b=1", "a.c=x"]` as nested settings; values are TOML where they can be read as such, else text.

    `below` are the settings that they go over, which say what kind of backbone and schedule is meant.
    """
    settings: dict[str, Any] = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {override}: expected key=value, as in --set denoiser.backbone.width=384")
        *tables, key = path.strip().split(".")
        table = settings
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {override}: {name} has been given a value already")
        table[key] = read_value(value)
    check_layer(settings, below or {}, lambda key: f"--set {key}")
    return settings


def check(settings: dict[str, Any], place: Any = lambda key: f"recipe: {key}") -> Recipe:
    """The recipe that the settings make over the defaults. Raises `UserError`: place, what is wrong, what to do."""
    try:
        return Recipe.model_validate(over_defaults(settings))
    except ValidationError as error:
        raise mistake(error.errors()[0], place) from None


def read_split(settings: dict[str, Any]) -> SplitConfig:
    """How the pictures are to be split, which is needed before the plan makes a recipe of all settings."""
    return check({"split": settings.get("split", {})}).split


def over_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings, those of each stage that enlarges too."""
    above = settings.get("enlarge")
    stages = {"enlarge": {size: EnlargeRecipe().model_dump() for size in above}} if isinstance(above, dict) else {}
    return merge(Recipe().model_dump(), stages, settings)


def check_layer(settings: dict[str, Any], below: dict[str, Any], place: Any) -> None:
    """As `check`, but of keys and values alone: whether they fit together shows when all layers are there."""
    try:
        Recipe.model_validate(over_defaults(merge(below, settings)))
    except ValidationError as error:
        for one in error.errors():
            if one["type"] != "value_error":
                raise mistake(one, place) from None


KINDS = (
    "dit", "unet", "flow", "ddpm", "cosine", "karras", "noise", "blur", "vae", "kl", "own", "diffusers",
    "bytes", "minilm", "folder", "none",
)  # fmt: skip
"""What tells settings of one place apart; it stands in no key."""


def mistake(error: Any, place: Any) -> UserError:
    key = ".".join(str(part) for part in error["loc"] if part not in KINDS)
    if not error["loc"]:  # of the recipe as a whole
        return UserError(f"{place('').rstrip(': ')}: {error['msg'].removeprefix('Value error, ')}")
    return UserError(f"{place(key)}: {explain(error, key)}")


def explain(error: Any, key: str) -> str:
    if key in GONE:
        return f"{key} is gone: {GONE[key]}; leave it out"
    if error["type"] != "extra_forbidden":
        got = error.get("input")
        shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
        return f"{key}: {error['msg'].removeprefix('Value error, ')}{shown}"
    backbones = [f"denoiser.backbone.{name}" for kind in (UnetConfig, DitConfig) for name in kind.model_fields]
    backbones += [f"denoiser.text.{name}" for kind in (BytesConfig, FolderConfig) for name in kind.model_fields]
    if (above := re.match(r"enlarge\.\d+\.", key)) is not None:
        backbones += all_keys(EnlargeRecipe().model_dump(), above[0])
    known = sorted({*all_keys(Recipe().model_dump()), *backbones})
    table, last = key.rpartition(".")[0], key.rpartition(".")[2]
    if key in known:
        return f"{key} belongs to another kind; set {table}.kind with it"
    near = {name.rpartition(".")[2]: name for name in sorted(known, key=lambda name: common(name, table))}
    by_last = [near[name] for name in difflib.get_close_matches(last, near, 1, 0.6)]
    close = difflib.get_close_matches(key, known, 1, 0.75) or by_last or difflib.get_close_matches(key, known, 1, 0.5)
    return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")


def common(name: str, table: str) -> int:
    """How many letters two keys share at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(name, table, strict=False)))
