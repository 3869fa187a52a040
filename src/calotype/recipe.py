"""The recipe: all settings of a run in one TOML file. It gathers the config classes, and says where a file is wrong."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from calotype.bounds import (
    MAX_STAGES,
    BatchSize,
    BucketCount,
    ChannelWeighting,
    CropSide,
    Fraction,
    GradientNorm,
    ImageCount,
    LearningRate,
    LossWeight,
    OpenFraction,
    PictureCount,
    PositiveFraction,
    SeedNumber,
    Side,
    SigmaData,
    ViewCount,
    WeightDecay,
)
from calotype.data.split import SplitConfig
from calotype.diffusion.augmentation import Augmentation, NoiseAugmentation
from calotype.diffusion.scalings import ScalingName
from calotype.diffusion.schedules import Flow, Karras, Schedule
from calotype.diffusion.stage import Sampling
from calotype.nets.blocks import Precision
from calotype.nets.critic import CriticConfig
from calotype.nets.deterministic import DcConfig, DeterministicConfig, RaeConfig, TinyConfig
from calotype.nets.dit import DitConfig
from calotype.nets.frozen import FrozenConfig
from calotype.nets.kl import KlConfig
from calotype.nets.text import BytesConfig, NoText
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import VaeConfig
from calotype.tables import at_path, merge
from calotype.types import Config

Backbone = Annotated[UnetConfig | DitConfig, Field(discriminator="kind")]
Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]
PriorName = Literal["gaussian", "none"]
Sharding = Literal["none", "full", "hybrid"]
TextConfig = Annotated[NoText | BytesConfig | FrozenConfig, Field(discriminator="kind")]


class OwnSpace(Config):
    """The autoencoder is trained here, from scratch."""

    kind: Literal["own"] = "own"


class ImportedSpace(Config):
    """An existing autoencoder, in the layout of diffusers."""

    kind: Literal["diffusers"] = "diffusers"
    path: str
    """Folder of the autoencoder, or of a pipeline with a folder `vae`."""
    finetune: bool = False
    """Train it further on these pictures, before the denoiser."""


class RunSpace(Config):
    """The autoencoder of the run that this one starts from: its encoder is unchanged, so latents keep their meaning."""

    kind: Literal["run"] = "run"
    finetune: bool = False
    """Train its decoder further on these pictures, before the denoiser."""


class OptimizerConfig(Config):
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer of the matrices in the blocks of a DiT; AdamW updates all other weights."""
    learning_rate: LearningRate = Field(default=1e-3, description="Highest learning rate, after the warm-up.")
    warmup: float = Field(default=0.05, strict=True, ge=0, lt=1)
    """Fraction of the leg in which the learning rate rises from 0."""
    decay: Fraction = 0.5
    """Fraction of the leg, at its end, in which the learning rate falls to 0."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="Decay rates of the moments of AdamW.")
    weight_decay: WeightDecay = Field(default=0.0, description="Weight decay, decoupled from the gradient as in AdamW.")
    clip: GradientNorm = Field(default=1.0, description="A gradient with a larger norm is scaled down to this norm.")
    average: float = Field(default=0.05, strict=True, gt=0, lt=0.28)
    """Width of the average of the weights, as a fraction of the leg so far."""


class AdversarialLossConfig(Config):
    """Weights of the losses, and when each is switched on. Times are fractions of the leg, never steps."""

    edges: LossWeight = 0.5
    """Weight of the L1 distance of image gradients; the L1 distance of the pixels has weight 1."""
    perceptual: LossWeight = Field(default=0.02, description="Weight of the perceptual distance.")
    perceptual_start: Fraction = 0.5
    """Fraction of the leg from which it is used: large shapes come first, and steps without it are cheaper."""
    perceptual_share: PositiveFraction = 0.25
    """Fraction of each batch on which it is computed, because it costs more than the autoencoder."""
    adversarial: LossWeight = 0.1
    """Size of the gradient of the critic's loss at the picture, relative to the reconstruction's; 0: no critic."""
    adversarial_cap: float = Field(default=1.0, strict=True, gt=0, le=1e9)
    """Largest factor by which the critic's loss may be multiplied to reach that size."""
    critic_start: Fraction = Field(default=0.6, description="Fraction of the leg from which the critic learns.")
    critic_used: Fraction = 0.75
    """Fraction of the leg from which the critic's loss trains the autoencoder."""
    critic_share: PositiveFraction = 0.5
    """Fraction of each batch that the critic sees."""

    @property
    def phase_ends(self) -> list[float]:
        """Fractions of the leg at which the cost of a step changes, with the last one, 1."""
        ends = {1.0}
        if self.perceptual:
            ends |= {self.perceptual_start}
        if self.adversarial:
            ends |= {self.critic_start, max(self.critic_start, self.critic_used)}
        return sorted(ends - {0.0})


class AutoencoderLossConfig(AdversarialLossConfig):
    kl: LossWeight = Field(default=1e-5, description="Weight of the KL divergence of the latents.")


class ConditionDropout(Config):
    """Classifier-free dropout of label and caption (arXiv 2207.12598, section 3.2), in probabilities.

    For a picture that has both, training uses neither, only the caption, only the label, or (in all other cases) both.
    """

    label_dropout: Fraction = 0.1
    """Share of pictures trained without label and caption (dropout for classifier-free guidance)."""
    caption_alone: Fraction = 0.4
    """Share of pictures trained with the caption but without the label, as when sampling with a prompt."""
    label_alone: Fraction = 0.1
    """Share of pictures trained with the label but without the caption."""
    caption_dropout: Fraction = 0.5
    """Share of captions that are shortened to some of their phrases, so that a prompt may leave attributes open."""

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
    """How long one leg of a run trains, and its batch size."""

    images: ImageCount = 0
    """Number of pictures to see, including repeats; 0: as many as the budget allows."""
    batch: BatchSize = Field(default=16, description="Pictures per step.")


AutoencoderNetwork = VaeConfig | KlConfig | TinyConfig | DcConfig | RaeConfig
CRITIC_LEARN = OptimizerConfig(learning_rate=4e-4, betas=(0.5, 0.9))


class AutoencoderRecipe(LegConfig):
    batch: BatchSize = Field(default=8, description="Pictures per step.")
    network: Annotated[AutoencoderNetwork, Field(discriminator="kind", description="The network.")] = VaeConfig()
    critic: CriticConfig = CriticConfig()
    losses: AutoencoderLossConfig = AutoencoderLossConfig()
    crop: CropSide = Field(default=0, description="Side of the random crops to train on; 0: whole pictures.")
    learn: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    critic_learn: OptimizerConfig = CRITIC_LEARN


class DiffusionConfig(LegConfig, ConditionDropout):
    """Settings that the diffusion models of all stages have."""

    backbone: Backbone
    schedule: Schedule
    scaling: ScalingName
    sigma_data: SigmaData
    learn: OptimizerConfig = OptimizerConfig()


class DenoiserRecipe(DiffusionConfig):
    """The denoiser of the first stage."""

    batch: BatchSize = Field(default=32, description="Pictures per step.")
    backbone: Backbone = Field(default=DitConfig(), description="The network.")
    schedule: Schedule = Field(default=Flow(), description="Noise levels in training and sampling.")
    scaling: ScalingName = Field(default="flow", description="What the network predicts.")
    sigma_data: SigmaData = 1.0
    """Standard deviation of the data: 1 for latents, about 0.5 for pixels."""
    prior: PriorName = "gaussian"
    """The closed-form denoiser beside the network: a mixture of Gaussians fitted to the latents, or none."""
    channel_weighting: ChannelWeighting = 0.0
    """Weight of each latent channel in the loss: its effect on the picture, to this power; 0: equal weights."""
    views: ViewCount = 0
    """Crops of each picture to train on, with their position as a condition, so that samples stay whole pictures."""
    text: TextConfig = NoText()
    """Text encoder of all stages; its trainable part is trained with the denoiser of each stage."""


class ExposureConfig(Config):
    """Exposure fine-tuning: a last leg on training pictures that the stage below has redrawn with its artefacts."""

    images: ImageCount = Field(default=0, description="Crops to see in exposure fine-tuning; 0: none.")
    pictures: PictureCount = Field(default=256, description="Training pictures that the stage below redraws for it.")
    share: OpenFraction = 0.5
    """Fraction of the sampler's steps that are repeated: near 0 nothing changes, near 1 nothing is kept."""


class EnlargeRecipe(DiffusionConfig):
    """A stage in pixels that is conditioned on the low-resolution picture of the stage before it."""

    backbone: Backbone = UnetConfig(patch=4, width=64, multiples=(1, 2, 2), attention_levels=())
    """The network."""
    schedule: Schedule = Field(default=Karras(), description="Noise levels in training and sampling.")
    scaling: ScalingName = Field(default="edm", description="What the network predicts.")
    sigma_data: float = Field(default=0.0, strict=True, ge=0, le=1e3)
    """Standard deviation of pictures about the enlarged low-resolution picture; 0 with a prior, which has its own.

    Without a prior, the plan measures it. Models of format 5 were trained with that of plain areas.
    """
    prior: PriorName = "gaussian"
    """The closed-form denoiser beside the network: Gaussians of high-resolution patches, or none."""
    augmentation: Augmentation = Field(default=NoiseAugmentation(), description="Low-resolution augmentation.")
    crop: CropSide = 0
    """Side of the random crops to train on; 0: whole pictures."""
    exposure: ExposureConfig = ExposureConfig()
    objective: Literal["denoising", "one_step"] = "denoising"
    """`denoising`: the denoising loss, for several sampling steps. `one_step`: one step, with autoencoder losses."""
    losses: AdversarialLossConfig = AdversarialLossConfig()
    """Losses for `one_step`, with its `critic` and `critic_learn`."""
    critic: CriticConfig = CriticConfig()
    critic_learn: OptimizerConfig = CRITIC_LEARN
    sampling: Sampling = Sampling(steps=12, guidance=1.0)

    @model_validator(mode="after")
    def _sigma_data(self) -> EnlargeRecipe:
        if self.prior == "none" and not self.sigma_data:
            raise ValueError("sigma_data is 0, but must be above 0 for a stage without a prior; leave it to the plan")
        return self

    @model_validator(mode="after")
    def _one_step(self) -> EnlargeRecipe:
        own = self.sampling
        expected = {"steps": 1, "guidance": 1.0, "epsilon_scaling": 0.0, "final_denoising": 0.0}
        for name, value in expected.items() if self.objective == "one_step" else ():
            if (got := getattr(own, name)) != value:
                raise ValueError(f"objective is one_step, but sampling.{name} is {got:g}; set it to {value:g}")
        return self


class Recipe(Config):
    kind: Literal["latent", "cascade"] = "latent"
    """The space of the first stage: the latents of an autoencoder, or pixels."""
    size: Side = 64
    """Side of the pictures in pixels; each is cropped to its central square, unless `aspect_buckets` is above 1."""
    stages: tuple[Side, ...] = Field(default=(), max_length=MAX_STAGES)
    """Side of the pictures after each stage; empty: one stage of `size`."""
    aspect_buckets: BucketCount = 1
    """Number of aspect ratios to train on, from 1:2 to 2:1, with about equal areas; 1: only squares."""
    seed: SeedNumber = Field(default=0, description="Random seed of training.")
    split: SplitConfig = SplitConfig()
    """How many pictures are kept from training, for validation and test."""
    flip: bool = False
    """Also train on mirror images."""
    milestones: ImageCount = 0
    """Keep checkpoints of denoisers for good at this many images seen, at twice as many, and so on; 0: keep none."""
    precision: Precision = Field(default="float32", description="Precision of the networks in training and sampling.")
    sharding: Sharding = "none"
    """What each of several ranks holds of a denoiser: a replica ("none", DDP), or a shard of its weights, gradients,
    moments and averages, divided among all ranks ("full", FSDP) or among those of its node ("hybrid", HSDP)."""
    space: Annotated[OwnSpace | ImportedSpace | RunSpace, Field(discriminator="kind")] = OwnSpace()
    """Where the autoencoder comes from."""
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    sampling: Sampling = Sampling()
    enlarge: dict[str, EnlargeRecipe] = Field(default_factory=dict)
    """Settings of each stage after the first, by its size: `--set enlarge.256.images=10000`."""

    @model_validator(mode="after")
    def _chain(self) -> Recipe:
        for low_res, larger in pairwise(self.chain):
            if larger % low_res or larger <= low_res:
                raise ValueError(f"stages are {list(self.chain)}, but each must be a whole multiple of the one before")
        if self.chain[-1] != self.size:
            raise ValueError(f"stages end at {self.chain[-1]}, but size is {self.size}; the last stage makes that size")
        if unknown := set(self.enlarge) - {str(size) for size in self.chain[1:]}:
            raise ValueError(
                f"enlarge.{min(unknown)} is set, but the stages are {list(self.chain)}; add it to them or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _guided(self) -> Recipe:
        above = {f"enlarge.{size}.": self.enlarging(size).prior for size in self.chain[1:]}
        for (place, prior), sampling in zip({"": self.denoiser.prior, **above}.items(), self.samplings, strict=True):
            if sampling.guide == "prior" and prior == "none":
                key = "denoiser.prior" if not place else f"{place}prior"
                raise ValueError(
                    f"{place}sampling.guide is prior, but {key} is none, so there is no closed form to guide away "
                    f"from; set the guide to unconditional"
                )
        return self

    @model_validator(mode="after")
    def _imported(self) -> Recipe:
        if self.kind == "cascade" and self.denoiser.views:
            raise ValueError(f"denoiser.views is {self.denoiser.views}, but views are of latents; leave it out")
        if self.space.kind == "own":
            return self
        if self.kind == "cascade":
            taken = "imported" if isinstance(self.space, ImportedSpace) else "that of a run"
            raise ValueError(f"space is {taken}, but a cascade works in pixels; leave one of both out")
        network = self.autoencoder.network
        if isinstance(self.space, ImportedSpace) and isinstance(network, VaeConfig):
            raise ValueError("space is imported, but autoencoder.network is set to another one; leave that out")
        if isinstance(network, DeterministicConfig):
            network.require_possible(self.chain[0], self.aspect_buckets, self.trains_space)
        return self

    @property
    def trains_space(self) -> bool:
        """One that is there already is taken as it is, unless it is fine-tuned."""
        return self.kind == "latent" and (isinstance(self.space, OwnSpace) or self.space.finetune)

    @property
    def chain(self) -> tuple[int, ...]:
        return self.stages or (self.size,)

    def enlarging(self, size: int) -> EnlargeRecipe:
        """The settings of the stage that makes pictures of this size from smaller ones."""
        return self.enlarge.get(str(size), EnlargeRecipe())

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        return self.sampling, *(self.enlarging(size).sampling for size in self.chain[1:])

    @property
    def units(self) -> tuple[int, ...]:
        """Numbers of which the sides of each stage's pictures must be multiples."""
        base = unit_of(self.denoiser.backbone) * (self.autoencoder.network.reduction if self.kind == "latent" else 1)
        steps = pairwise(self.chain)
        return base, *(math.lcm(unit_of(self.enlarging(larger).backbone), larger // small) for small, larger in steps)

    @property
    def unit(self) -> int:
        """The number of which the sides of finished pictures must be multiples."""
        return math.lcm(*(self.size // size * unit for size, unit in zip(self.chain, self.units, strict=True)))

    @property
    def legs(self) -> dict[str, LegConfig]:
        """All that is trained, in order."""
        first: dict[str, LegConfig] = {"autoencoder": self.autoencoder} if self.trains_space else {}
        legs = {**first, "denoiser": self.denoiser}
        for size in self.chain[1:]:
            legs[leg_above(size)] = above = self.enlarging(size)
            if above.exposure.images:
                legs[exposure_above(size)] = LegConfig(images=above.exposure.images, batch=above.batch)
        return legs

    def learning(self, leg: str, network: str) -> OptimizerConfig:
        config: AutoencoderRecipe | DenoiserRecipe | EnlargeRecipe = self.denoiser
        if leg == "autoencoder":
            config = self.autoencoder
        elif leg != "denoiser":
            config = self.enlarging(int(leg.rpartition("-")[2]))
        if network == "critic" and not isinstance(config, DenoiserRecipe):
            return config.critic_learn
        return config.learn

    def with_images(self, images: dict[str, int]) -> Recipe:
        """The same, with the number of pictures that each leg sees."""
        settings: dict[str, Any] = {}
        for leg, number in images.items():
            name, _, size = leg.partition("-")
            path = {"enlarge": ["enlarge", size], "exposure": ["enlarge", size, "exposure"]}.get(name, [name])
            settings = merge(settings, at_path(path, {"images": number}))
        return Recipe.model_validate(merge(self.model_dump(), settings))


def unit_of(backbone: Backbone) -> int:
    """The number of which the sides of a backbone's input must be multiples."""
    return backbone.patch * (1 if isinstance(backbone, DitConfig) else 2 ** (len(backbone.multiples) - 1))


def leg_above(size: int) -> str:
    """The name of the leg that learns to enlarge to this size."""
    return f"enlarge-{size}"


def exposure_above(size: int) -> str:
    """The name of its exposure fine-tuning."""
    return f"exposure-{size}"
