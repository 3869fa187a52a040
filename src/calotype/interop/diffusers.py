"""An autoencoder in the layout of diffusers: a folder of config.json and safetensors. Pickles are never read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor

from calotype.bounds import MAX_LEVELS, Channels
from calotype.files import read_json, write_json, write_tensors
from calotype.interop.folders import config_folder, read_parts, renamed, weights_files
from calotype.nets.kl import MOST_BLOCKS, Kl, KlConfig
from calotype.types import UserError

KL_WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = ("", ".fp32", ".fp16", ".bf16")
"""Of the weights' file, the first that is there is read: `diffusion_pytorch_model.fp16.safetensors`."""
FLUX2_CLASS = "AutoencoderKLFlux2"
FLUX2_STATISTICS = "bn."
"""Mean and variance of FLUX.2's latents, in patches: not read, since they are measured on the user's pictures."""
DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
KNOWN = "AutoencoderKL as in SD and FLUX, AutoencoderKLFlux2, AutoencoderDC, AutoencoderTiny and AutoencoderRAE"

DIFFUSERS_NAMES = (
    (".blocks.", ".resnets."),
    ("encoder.levels.", "encoder.down_blocks."),
    ("decoder.levels.", "decoder.up_blocks."),
    ("middle.0.", "mid_block.resnets.0."),
    ("middle.1.", "mid_block.attentions.0."),
    ("middle.2.", "mid_block.resnets.1."),
    ("coder.norm.", "coder.conv_norm_out."),
    (".skip.", ".conv_shortcut."),
    ("mix_moments.", "quant_conv."),
    ("mix_latents.", "post_quant_conv."),
)
"""Parts of our names for weights, and of theirs."""
ATTENTION_NAMES = {
    "norm": ("group_norm",),
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}
"""The same in attention, where old files have other names."""


class DiffusersConfig(BaseModel):
    """What shapes the network in config.json of diffusers, with its defaults.

    `scaling_factor` and `shift_factor` do not: the latents' mean and spread are measured on the user's pictures.
    """

    class_name: Literal["AutoencoderKL", "AutoencoderKLFlux2"] = Field(default="AutoencoderKL", alias="_class_name")
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: tuple[DownBlock, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[UpBlock, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[Channels, ...] = Field(default=(64,), min_length=1, max_length=MAX_LEVELS)
    decoder_block_out_channels: tuple[Channels, ...] | None = None
    layers_per_block: int = Field(default=1, ge=1, le=MOST_BLOCKS)
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Channels = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _levels(self) -> DiffusersConfig:
        for name in ("down_block_types", "up_block_types", "decoder_block_out_channels"):
            entries = getattr(self, name)
            if entries is not None and (count := len(entries)) != (levels := len(self.block_out_channels)):
                raise ValueError(
                    f"{name} has {count} entries, but block_out_channels has {levels}; each level needs one of both"
                )
        return self

    def kl_config(self) -> KlConfig:
        return KlConfig(
            channels=self.latent_channels,
            widths=self.block_out_channels,
            decoder_widths=self.decoder_block_out_channels or (),
            blocks=self.layers_per_block,
            groups=self.norm_num_groups,
            attention=self.mid_block_add_attention,
            encoder_attention_levels=attention_levels(self.down_block_types),
            decoder_attention_levels=attention_levels(self.up_block_types[::-1]),
            mixes_moments=self.use_quant_conv,
            mixes_latents=self.use_post_quant_conv,
        )


def attention_levels(blocks: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(level for level, block in enumerate(blocks) if block.startswith("Attn"))


def autoencoder_folder(path: Path) -> Path:
    """`path` itself, or `vae` in the folder of a pipeline."""
    return config_folder("--space", path, f"{KL_WEIGHTS}, as diffusers writes it", inside=["vae"])


def read_kl_config(path: Path) -> KlConfig:
    """Raises `UserError` where this is not an `AutoencoderKL` as in Stable Diffusion and FLUX, or that of FLUX.2."""
    file = autoencoder_folder(path) / "config.json"
    try:
        return DiffusersConfig.model_validate(read_json(file)).kl_config()
    except ValidationError as error:
        raise wrong_setting(file, error) from None


def wrong_setting(file: Path, error: ValidationError) -> UserError:
    """The first setting of a config.json that is wrong, in one line."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or ("levels" if first["type"] == "value_error" else "the whole")
    got = first.get("input")
    shown = f" (got {got!r:.80})" if isinstance(got, str | int | float | bool) else ""
    message = first["msg"].removeprefix("Value error, ")
    return UserError(f"{file}: {key}: {message}{shown}; known are {KNOWN}")


def weights_file(path: Path) -> Path:
    """Of an autoencoder, the first of `VARIANTS`. Raises `UserError` where there is none that can be read."""
    stem, ending = KL_WEIGHTS.removesuffix(".safetensors"), ".safetensors"
    pattern = rf"{stem}({'|'.join(map(re.escape, VARIANTS))}){re.escape(ending)}"
    files = {file.name: file for file in weights_files(autoencoder_folder(path), KL_WEIGHTS, pattern)}
    return next(files[name] for variant in VARIANTS if (name := f"{stem}{variant}{ending}") in files)


def read_kl_weights(path: Path, config: KlConfig) -> dict[str, Tensor]:
    """By our names, in float32. Raises `UserError` if they are not there, damaged, or not of this network."""
    file = weights_file(path)
    tensors = {name: value for name, value in read_parts([file]).items() if not name.startswith(FLUX2_STATISTICS)}
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in Kl(config).state_dict().items()}
    names = matched_names(file, list(shapes), set(tensors))
    weights = {}
    for ours, theirs in names.items():
        value, expected = tensors[theirs], shapes[ours]
        got = list(value.shape)
        squeezed = got[:2] if ".attentions." in theirs and got[2:] == [1, 1] else got  # 1x1 convolutions in old files
        if squeezed != expected:
            raise UserError(
                f"{file}: {theirs} is {got}, but its config.json makes it {expected}; take both from one place"
            )
        if not value.isfinite().all():
            raise UserError(f"{file}: {theirs} has values that are not numbers; take another copy of the weights")
        weights[ours] = value.float().reshape(expected)
    return weights


def matched_names(file: Path, expected: list[str], present: set[str]) -> dict[str, str]:
    """The name in the file of each of our weights. Raises `UserError` if one is missing, or if there are others."""
    names = {}
    for ours in expected:
        candidates = diffusers_names(ours)
        if not (matches := [name for name in candidates if name in present]):
            raise UserError(f"{file} has no {candidates[0]}, which its config.json asks for; take both from one place")
        names[ours] = matches[0]
    if more := sorted(present - set(names.values())):
        raise UserError(
            f"{file} has {len(more)} weights that its config.json does not ask for, such as {more[0]:.80}; "
            f"take both from one place"
        )
    return names


def diffusers_names(ours: str) -> list[str]:
    """What a weight may be called there: `encoder.middle.0.conv1.bias` is `encoder.mid_block.resnets.0.conv1.bias`."""
    resize = ".downsamplers.0." if ours.startswith("encoder.") else ".upsamplers.0."
    name = renamed(ours, ((".resize.", resize), *DIFFUSERS_NAMES))
    head, attention, tail = name.partition(".attentions.")
    if not attention:
        return [name]
    index, part, kind = tail.split(".")
    return [f"{head}.attentions.{index}.{theirs}.{kind}" for theirs in ATTENTION_NAMES[part]]


# -- Writing -----------------------------------------------------------------------------------------------------------


def write_autoencoder(folder: Path, kl: Kl, mean: Tensor, spread: Tensor) -> str:
    """As diffusers reads it, and the name of its class there; with mean and deviation of its latents, a channel."""
    config = kl.config
    levels = range(len(config.widths))
    down = ["AttnDownEncoderBlock2D" if level in config.encoder_attention_levels else DOWN for level in levels]
    up = ["AttnUpDecoderBlock2D" if level in config.decoder_attention_levels else UP for level in reversed(levels)]
    about = {
        "_class_name": FLUX2_CLASS if config.decoder_widths else "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "latent_channels": config.channels,
        "norm_num_groups": config.groups,
        "use_quant_conv": config.mixes_moments,
        "use_post_quant_conv": config.mixes_latents,
        "mid_block_add_attention": config.attention,
    }
    weights = {diffusers_names(name)[0]: value for name, value in kl.state_dict().items()}
    if config.decoder_widths:
        about["decoder_block_out_channels"] = list(config.decoder_widths)
        weights |= flux2_statistics(mean, spread)
    else:
        about["scaling_factor"] = 1 / float(spread.square().mean().sqrt())
    write_json(folder / "config.json", about)
    write_tensors(folder / KL_WEIGHTS, weights, {"format": "pt"})
    return str(about["_class_name"])


def flux2_statistics(mean: Tensor, spread: Tensor) -> dict[str, Tensor]:
    """Buffers of its batch norm over patches of 2 x 2 latents, whose channels stand before their places."""
    values = {"running_mean": mean, "running_var": spread.square()}
    buffers = {name: value.flatten().repeat_interleave(4).contiguous() for name, value in values.items()}
    return {f"{FLUX2_STATISTICS}{name}": value for name, value in buffers.items()} | {
        f"{FLUX2_STATISTICS}num_batches_tracked": torch.tensor(0)
    }
