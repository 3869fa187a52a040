"""Pretrained autoencoders whose encoder gives latents, and no posterior: networks of the package diffusers.

Each configuration has the arguments of a class of diffusers by their own names, as far as they shape the network;
`interop/autoencoders.py` makes the network of them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from calotype.bounds import MAX_LEVELS, Channels, Depth, HeadCount, PatchSide, Side
from calotype.nets.blocks import Precision, autocast
from calotype.nets.vae import Moments
from calotype.types import Config, Images, Latents

LOG_VARIANCE = -30.0
"""Of the posterior: a standard deviation of 3e-7, so a draw is the mean."""

Widths = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=MAX_LEVELS)]
LevelBlocks = Annotated[int, Field(strict=True, ge=0, le=32)]
Activation = Literal["relu", "relu6", "silu", "swish", "gelu", "mish"]
DcNorm = Literal["rms_norm", "batch_norm"]
DcBlock = Literal["ResBlock", "EfficientViTBlock"]
Scales = tuple[Annotated[int, Field(strict=True, gt=0, le=15)], ...]


class ImportedNetwork(Config):
    """Arguments of a class of diffusers, read from config.json in its folder."""

    class_name: ClassVar[str]
    unit_range: ClassVar[bool] = False
    """Whether its images are in [0, 1]; else they are in [-1, 1]."""

    @property
    def image_side(self) -> int | None:
        """Of the only images that it takes; None if it takes all that are multiples of `reduction`."""
        return None

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude={"kind"})

    def require_possible(self, size: int, aspect_buckets: int, finetuned: bool) -> None:
        """Raises `ValueError` where it cannot do what a recipe asks of it."""
        if finetuned:
            raise ValueError(
                f"space.finetune is true, but {self.class_name} is used as it is; only AutoencoderKL can be "
                f"fine-tuned, so leave it out"
            )
        side = self.image_side
        if side is not None and (size != side or aspect_buckets > 1):
            raise ValueError(
                f"the first stage is {size} px, but this {self.class_name} takes squares of {side} px alone; set "
                f"size={side}, and aspect_buckets=1"
            )


class LevelledNetwork(ImportedNetwork):
    """Each level of the encoder but the first halves the image."""

    latent_channels: Channels
    encoder_block_out_channels: Widths

    @property
    def channels(self) -> int:
        return self.latent_channels

    @property
    def reduction(self) -> int:
        return int(2 ** (len(self.encoder_block_out_channels) - 1))


class TinyConfig(LevelledNetwork):
    """`AutoencoderTiny`: TAESD and its kin, distilled from larger autoencoders."""

    class_name = "AutoencoderTiny"

    kind: Literal["tiny"] = "tiny"
    latent_channels: Channels = 4
    encoder_block_out_channels: Widths = (64, 64, 64, 64)
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    num_encoder_blocks: tuple[LevelBlocks, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[LevelBlocks, ...] = (3, 3, 3, 1)
    act_fn: Activation = "relu"
    upsample_fn: Literal["nearest", "bilinear", "bicubic"] = "nearest"

    @model_validator(mode="after")
    def _levels(self) -> TinyConfig:
        per_level = ("decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks")
        require_levels(self, len(self.encoder_block_out_channels), per_level)
        return self


class DcConfig(LevelledNetwork):
    """`AutoencoderDC`: the deep compression autoencoder (arXiv 2410.10733), of SANA."""

    class_name = "AutoencoderDC"

    kind: Literal["dc"] = "dc"
    latent_channels: Channels = 32
    attention_head_dim: Channels = 32
    encoder_block_types: DcBlock | tuple[DcBlock, ...] = "ResBlock"
    decoder_block_types: DcBlock | tuple[DcBlock, ...] = "ResBlock"
    encoder_block_out_channels: Widths = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Widths = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[LevelBlocks, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[LevelBlocks, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[Scales, ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[Scales, ...] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "conv", "Conv"] = "pixel_unshuffle"
    decoder_norm_types: DcNorm | tuple[DcNorm, ...] = "rms_norm"
    decoder_act_fns: Activation | tuple[Activation, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: Activation = "relu"

    @model_validator(mode="after")
    def _levels(self) -> DcConfig:
        names = [name for name in type(self).model_fields if isinstance(getattr(self, name), tuple)]
        require_levels(self, len(self.encoder_block_out_channels), names)
        return self


class RaeConfig(ImportedNetwork):
    """`AutoencoderRAE`: a frozen image encoder, and a transformer that decodes its tokens (arXiv 2510.11690).

    It takes images of one size, and needs the package transformers.
    """

    class_name = "AutoencoderRAE"
    unit_range = True

    kind: Literal["rae"] = "rae"
    encoder_type: Literal["dinov2", "siglip2", "mae"] = "dinov2"
    encoder_hidden_size: Channels = 768
    encoder_patch_size: PatchSide = 14
    encoder_num_hidden_layers: Depth = 12
    decoder_hidden_size: Channels = 512
    decoder_num_hidden_layers: Depth = 8
    decoder_num_attention_heads: HeadCount = 16
    decoder_intermediate_size: Annotated[int, Field(strict=True, gt=0, le=2**16)] = 2048
    patch_size: PatchSide = 16
    encoder_input_size: Side = 224
    statistics: tuple[Channels, ...] = Field(default=(), max_length=4)
    """Shape of the mean and the deviation of its latents, which lie beside its weights; (): it has none."""

    @property
    def channels(self) -> int:
        return self.encoder_hidden_size

    @property
    def reduction(self) -> int:
        return self.patch_size

    @property
    def image_side(self) -> int:
        return self.patch_size * (self.encoder_input_size // self.encoder_patch_size)

    def arguments(self) -> dict[str, Any]:
        shaped = {"latents_mean": np.zeros(self.statistics).tolist(), "latents_std": np.ones(self.statistics).tolist()}
        return self.model_dump(exclude={"kind", "statistics"}) | (shaped if self.statistics else {})


DeterministicConfig = TinyConfig | DcConfig | RaeConfig


def require_levels(config: Config, levels: int, names: list[str] | tuple[str, ...]) -> None:
    """Raises `ValueError` where one of these settings has another number of entries."""
    for name in names:
        if (count := len(getattr(config, name))) != levels:
            raise ValueError(
                f"{name} has {count} entries, but encoder_block_out_channels has {levels}; each level needs one of both"
            )


class DeterministicAutoencoder(nn.Module):
    """Images in [-1, 1] (batch, 3, height, width) <-> latents `reduction` times smaller. It is never trained here."""

    network: Any  # of diffusers

    def __init__(self, config: DeterministicConfig, network: nn.Module, precision: Precision = "float32") -> None:
        super().__init__()
        self.config, self.network, self.precision = config, network, precision
        self.train()

    def train(self, mode: bool = True) -> DeterministicAutoencoder:
        """Stays in evaluation mode: its batch norms have the statistics of its own training."""
        return super().train(False)

    def encode(self, images: Images) -> Moments:
        with autocast(images.device, self.precision):
            given = (images + 1) / 2 if self.config.unit_range else images
            latents = self.network.encode(given, return_dict=False)[0].float()
        return Moments(latents, torch.full_like(latents, LOG_VARIANCE))

    def decode(self, latents: Latents) -> Images:
        with autocast(latents.device, self.precision):
            images = self.network.decode(latents, return_dict=False)[0].float()
        return 2 * images - 1 if self.config.unit_range else images
