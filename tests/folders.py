"""Folders of autoencoders in the layout of diffusers, with random weights, as diffusers itself writes them."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderRAE, AutoencoderTiny

SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "sample_size": 16,
}


def autoencoder_kl(seed=0, **changes):
    """Small; with weights far from those that a new network has, so that nothing is hidden by zeros."""
    return shaken(AutoencoderKL, seed, **{**SMALL, **changes})


def shaken(network, seed=0, **arguments):
    """A network of diffusers, whose weights are far from those that a new one has."""
    torch.manual_seed(seed)
    network = network(**arguments).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


FLUX2 = {**SMALL, "layers_per_block": 1, "latent_channels": 8}
TINY = {
    "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1),
}  # fmt: skip
DC = {
    "latent_channels": 4, "attention_head_dim": 4, "decoder_norm_types": ("batch_norm", "rms_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "silu", "silu"),
} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {
        "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8, 16),
        "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), (5,)),
    }.items()
}  # fmt: skip
RAE = {
    "encoder_hidden_size": 64, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1, "encoder_input_size": 56,
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64, "patch_size": 4,
}  # fmt: skip
OTHERS = {
    "FLUX.2": (AutoencoderKLFlux2, FLUX2),
    "the small decoder of FLUX.2": (AutoencoderKLFlux2, {**FLUX2, "decoder_block_out_channels": (4, 8, 12)}),
    "tiny": (AutoencoderTiny, TINY),
    "deep compression": (AutoencoderDC, DC),
    "deep compression as in SANA": (
        AutoencoderDC,
        {**DC, "downsample_block_type": "conv", "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm"},
    ),
}
"""Classes of diffusers beside `AutoencoderKL`, with arguments; that which needs transformers is `rae`."""


def rae():
    """With statistics of its latents for each place."""
    generator = torch.Generator().manual_seed(1)
    mean, std = (torch.rand(64, 4, 4, generator=generator) + offset for offset in (-0.5, 0.5))
    return shaken(AutoencoderRAE, latents_mean=mean, latents_std=std, **RAE)


def write_autoencoder(folder, **changes):
    autoencoder_kl(**changes).save_pretrained(folder)
    return folder
