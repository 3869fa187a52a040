"""The networks of a model that Calotype has trained, for diffusers.

What follows is Calotype's own source (Apache-2.0), as far as sampling needs it, in one file; at its end stands
`CalotypeStages`, which diffusers opens. Annotations are for readers: the shapes that they name are not defined here.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Config:
    """Settings with defaults, which were checked when they were written."""

    def __init__(self, **values):
        self.__dict__.update(values)


def Field(default=None, **rules):  # noqa: N802
    return default


def model_validator(mode):
    return lambda method: method


# -- What Calotype's modules have to do with sampling -----------------------------------------------------------------

from calotype.data.captions import clean
from calotype.diffusion.augmentation import BlurAugmentation, NoiseAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.samplers import SAMPLERS
from calotype.diffusion.schedules import Cosine, DdpmTable, Flow, Karras
from calotype.diffusion.stage import Sampling, Stage, generate
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.text import BytesConfig, BytesEncoder, TextConditioned
from calotype.nets.unet import Unet, UnetConfig
from calotype.nets.vae import Vae, VaeConfig
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace
from calotype.types import Rng, Text

SCHEDULES = {"ddpm": DdpmTable, "cosine": Cosine, "karras": Karras, "flow": Flow}
AUGMENTATIONS = {"noise": NoiseAugmentation, "blur": BlurAugmentation}
PRIORS = {"mixture": GaussianMixture, "conditional mixture": CaptionedMixture.sized, "local Gaussians": PatchPrior}


class GivenSpace(nn.Module):
    """The latents of an autoencoder of diffusers, with the mean and the spread that were measured for this model."""

    def __init__(self, channels, reduction, unit_range=False):
        super().__init__()
        self.channels, self.reduction, self.unit_range, self.vae = channels, reduction, unit_range, None
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, channels, 1, 1))

    def decode(self, latents):
        images = self.vae[0].decode(latents * self.spread + self.mean).sample
        return (2 * images - 1 if self.unit_range else images).clamp(-1, 1)


class CalotypeStages(ModelMixin, ConfigMixin):
    """All stages of a model: one for latent diffusion, several for a cascade."""

    @register_to_config
    def __init__(self, classes, stages, space=None, text=None):
        super().__init__()
        self.first_space = PixelSpace() if space is None else first_space(**space)
        self.denoisers = nn.ModuleList(denoiser_of(stage, len(classes), text) for stage in stages)

    def chain(self, vae=None):
        """The stages with their sampling settings; `vae` is the autoencoder of diffusers, where it is one."""
        if isinstance(self.first_space, GivenSpace):
            self.first_space.vae = [vae]  # in a list: no part of this module
        spaces = [self.first_space, *(PixelSpace() for _ in self.denoisers[1:])]
        for denoiser, space, about in zip(self.denoisers, spaces, self.config.stages, strict=True):
            augmentation = AUGMENTATIONS[about["augmentation"]["kind"]](**about["augmentation"])
            schedule = SCHEDULES[about["schedule"]["kind"]](**about["schedule"])
            yield Stage(denoiser, space, schedule, about["size"], about["low_res_size"], augmentation)

    def samplings(self, **changes):
        """Settings of each stage: `changes` are those of the first one, and its sampler is that of all."""
        if (steps := changes.get("steps", 1)) < 1:
            raise ValueError(f"the number of steps is {steps}, but must be at least 1")
        if (name := changes.get("sampler", "euler")) not in SAMPLERS:
            raise ValueError(f"sampler {name!r} is unknown; expected one of {', '.join(SAMPLERS)}")
        first, *others = (about["sampling"] for about in self.config.stages)
        sampler = {name: value for name, value in changes.items() if name == "sampler"}
        return [Sampling(**{**first, **changes}), *(Sampling(**{**other, **sampler}) for other in others)]

    @torch.no_grad()
    def images(self, labels, prompts, negatives, seed=0, vae=None, **changes):
        """Images (count, 3, size, size) in [-1, 1], one for each label; equal seeds give equal images."""
        prompts, negatives = tuple(map(clean, prompts)), tuple(map(clean, negatives))
        text = Text(prompts, negatives if any(negatives) else ()) if any(prompts + negatives) else None
        rngs = [Rng((seed, "sample", index)) for index in range(len(labels))]
        labels = torch.tensor(labels, device=self.device)
        return generate(list(self.chain(vae)), labels, self.samplings(**changes), rngs, text=text)


def first_space(kind, channels, reduction, network=None, unit_range=False):
    return LatentSpace(Vae(VaeConfig(**network))) if kind == "vae" else GivenSpace(channels, reduction, unit_range)


def denoiser_of(about, classes, text):
    """The denoiser of a stage, whose weights are still to be loaded."""
    config = (UnetConfig if about["backbone"]["kind"] == "unet" else DitConfig)(**about["backbone"])
    network = Unet if about["backbone"]["kind"] == "unet" else Dit
    context = 0 if text is None else text["width"]
    backbone = network(config, about["inputs"] * about["channels"], about["channels"], context)
    if text is not None:
        backbone = TextConditioned(backbone, BytesEncoder(BytesConfig(**text)), config.width)
    prior = about["prior"] and PRIORS[about["prior"]["kind"]](**about["prior"]["shape"])
    return Denoiser(
        backbone, config.width, classes, about["scaling"], "float32", about["sigma_data"], prior, about["views"]
    )
