"""The autoencoder of Stable Diffusion, SDXL, FLUX and FLUX.2 (arXiv 2112.10752, appendix G), for pretrained weights.

Its arithmetic is that of diffusers' `AutoencoderKL`; `interop/diffusers.py` brings weights from there. What we train
from scratch is `nets/vae.py`: with group norms and attention the receptive field is global, so tiles are not exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from calotype.bounds import MAX_LEVELS, Channels, Level
from calotype.nets.blocks import Precision, Recoloured, Resized, Upsample, autocast
from calotype.nets.deterministic import DeterministicAutoencoder
from calotype.nets.vae import Moments, Vae
from calotype.types import Config, Images, Latents

MOST_BLOCKS = 16


class KlConfig(Config):
    """Levels are counted from the image down."""

    kind: Literal["kl"] = "kl"
    channels: Channels = Field(default=4, description="Channels of the latents.")
    widths: tuple[Channels, ...] = Field(default=(128, 256, 512, 512), min_length=1, max_length=MAX_LEVELS)
    """Channels at each level."""
    decoder_widths: tuple[Channels, ...] = Field(default=(), description="As in FLUX.2; empty: the encoder's.")
    blocks: int = Field(
        default=2, strict=True, ge=1, le=MOST_BLOCKS, description="Blocks per level; the decoder has one more."
    )
    groups: Channels = Field(default=32, description="Groups of channels that are normalised together.")
    attention: bool = Field(default=True, description="Attention in the middle, where the image is smallest.")
    encoder_attention_levels: tuple[Level, ...] = Field(
        default=(), description="Levels with attention; 0 is the first."
    )
    decoder_attention_levels: tuple[Level, ...] = Field(default=(), description="The same for the decoder.")
    mixes_moments: bool = Field(
        default=True, description="Whether a 1x1 convolution follows the encoder (`quant_conv`)."
    )
    mixes_latents: bool = Field(default=True, description="Whether one precedes the decoder (`post_quant_conv`).")

    @model_validator(mode="after")
    def _groups(self) -> KlConfig:
        if len(self.decoder_widths) not in (0, len(self.widths)):
            raise ValueError(f"decoder_widths has {len(self.decoder_widths)} levels, but widths has {len(self.widths)}")
        if odd := [width for width in (*self.widths, *self.decoder_widths) if width % self.groups]:
            raise ValueError(f"a level is {odd[0]} channels wide, but must be a multiple of its {self.groups} groups")
        return self

    @property
    def reduction(self) -> int:
        return int(2 ** (len(self.widths) - 1))


class Kl(nn.Module):
    """Images (batch, 3, height, width) <-> latents (batch, channels, height / reduction, width / reduction)."""

    def __init__(self, config: KlConfig, precision: Precision = "float32") -> None:
        super().__init__()
        self.config, self.precision = config, precision
        moments = 2 * config.channels
        self.encoder, self.decoder = KlEncoder(config), KlDecoder(config)
        self.mix_moments = nn.Conv2d(moments, moments, 1) if config.mixes_moments else nn.Identity()
        self.mix_latents = nn.Conv2d(config.channels, config.channels, 1) if config.mixes_latents else nn.Identity()

    def encode(self, images: Images) -> Moments:
        with autocast(images.device, self.precision):
            mean, log_variance = self.mix_moments(self.encoder(images)).float().chunk(2, 1)
        return Moments(mean, log_variance.clamp(-30, 20))

    def decode(self, latents: Latents) -> Images:
        with autocast(latents.device, self.precision):
            return self.decoder(self.mix_latents(latents)).float()


Autoencoder = Vae | Kl | DeterministicAutoencoder


class KlEncoder(nn.Module):
    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        attention = [level in config.encoder_attention_levels for level in range(len(config.widths))]
        self.conv_in = nn.Conv2d(3, config.widths[0], 3, padding=1)
        self.levels = kl_levels(config, config.widths, config.blocks, attention, KlDownsample)
        self.middle = kl_middle(config, config.widths[-1])
        self.norm = group_norm(config, config.widths[-1])
        self.conv_out = nn.Conv2d(config.widths[-1], 2 * config.channels, 3, padding=1)

    def forward(self, images: Images) -> Resized:
        return self.conv_out(F.silu(self.norm(self.middle(self.levels(self.conv_in(images))))))


class KlDecoder(nn.Module):
    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        upwards = (config.decoder_widths or config.widths)[::-1]
        attention = [level in config.decoder_attention_levels for level in reversed(range(len(upwards)))]
        self.conv_in = nn.Conv2d(config.channels, upwards[0], 3, padding=1)
        self.middle = kl_middle(config, upwards[0])
        self.levels = kl_levels(config, upwards, config.blocks + 1, attention, Upsample)
        self.norm = group_norm(config, upwards[-1])
        self.conv_out = nn.Conv2d(upwards[-1], 3, 3, padding=1)

    def forward(self, latents: Latents) -> Resized:
        return self.conv_out(F.silu(self.norm(self.levels(self.middle(self.conv_in(latents))))))


def kl_levels(
    config: KlConfig, widths: Sequence[int], blocks: int, attention: Sequence[bool], resize: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Levels of these widths, with attention or without; all but the last end with a step to the next size."""
    steps = [*(resize(width) for width in widths[:-1]), nn.Identity()]
    levels = zip((widths[0], *widths[:-1]), widths, attention, steps, strict=True)
    return nn.Sequential(*(KlLevel(config, blocks, *level) for level in levels))


class KlLevel(nn.Module):
    """Blocks of one size, each followed by attention where there is any, and the step to the next size."""

    def __init__(
        self, config: KlConfig, count: int, channels: int, width: int, attention: bool, resize: nn.Module
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(KlBlock(config, width if index else channels, width) for index in range(count))
        self.attentions = nn.ModuleList(
            KlAttention(config, width) if attention else nn.Identity() for _ in range(count)
        )
        self.resize = resize

    def forward(self, image: Latents) -> Resized:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            image = attention(block(image))
        return self.resize(image)


def kl_middle(config: KlConfig, width: int) -> nn.Sequential:
    attention = KlAttention(config, width) if config.attention else nn.Identity()
    return nn.Sequential(KlBlock(config, width, width), attention, KlBlock(config, width, width))


def group_norm(config: KlConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, channels, eps=1e-6)


class KlBlock(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, config: KlConfig, channels: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(config, channels), group_norm(config, width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, image: Latents) -> Recoloured:
        inner = self.conv1(F.silu(self.norm1(image)))
        return self.skip(image) + self.conv2(F.silu(self.norm2(inner)))


class KlAttention(nn.Module):
    """Self-attention over pixels with one head."""

    def __init__(self, config: KlConfig, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(config, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, image: Latents) -> Latents:
        pixels = self.norm(image).flatten(2).transpose(1, 2)[:, None]
        mixed = F.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        return image + self.out(mixed)[:, 0].transpose(1, 2).reshape(image.shape)


class KlDownsample(nn.Module):
    """Half the side; zero padding at the end of rows and columns alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, image: Latents) -> Resized:
        return self.conv(F.pad(image, (0, 1, 0, 1)))
