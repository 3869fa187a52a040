"""Folders of autoencoders in the layout of diffusers, with random weights, as diffusers itself writes them."""

import torch
from diffusers import AutoencoderKL

SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "sample_size": 16,
}


def autoencoder_kl(seed=0, **changes):
    """Small; with weights far from those that a new network has, so that nothing is hidden by zeros."""
    torch.manual_seed(seed)
    network = AutoencoderKL(**{**SMALL, **changes}).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def write_autoencoder(folder, **changes):
    autoencoder_kl(**changes).save_pretrained(folder)
    return folder
