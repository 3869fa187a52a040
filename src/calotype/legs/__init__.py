"""The legs of a run: what each trains, on what, and how it is looked at. The plan shares these lines."""

from calotype.legs.constants import keep
from calotype.legs.diffusion import DenoiserLeg, denoiser_leg
from calotype.legs.enlarging import LEVELS_TRIED, enlarger_leg, mistakes_leg, search_levels
from calotype.legs.examples import (
    Examples,
    Form,
    as_read,
    crop_examples,
    latent_examples,
    picture_examples,
    picture_source,
)
from calotype.legs.first import autoencoder_leg, start_linear, start_space
from calotype.legs.looks import each_class, held_out_images, held_out_prompts, look_count, reconstructions, unseen_first

__all__ = [
    "LEVELS_TRIED",
    "DenoiserLeg",
    "Examples",
    "Form",
    "as_read",
    "autoencoder_leg",
    "crop_examples",
    "denoiser_leg",
    "each_class",
    "enlarger_leg",
    "held_out_images",
    "held_out_prompts",
    "keep",
    "latent_examples",
    "look_count",
    "mistakes_leg",
    "picture_examples",
    "picture_source",
    "reconstructions",
    "search_levels",
    "start_linear",
    "start_space",
    "unseen_first",
]
