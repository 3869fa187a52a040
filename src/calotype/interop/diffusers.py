"""An autoencoder in the layout of diffusers: a folder of config.json and safetensors. Pickles are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calotype.files import read_json
from calotype.nets.kl import MOST_BLOCKS, MOST_LEVELS, Kl, KlConfig
from calotype.types import UserError

WEIGHTS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
LFS_POINTER = b"version https://git-lfs"
MOST_CHANNELS = 2**14

Width = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]

THEIRS = (
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
IN_ATTENTION = {
    "norm": ("group_norm",),
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}
"""The same in attention, where old files have other names."""


class TheirConfig(BaseModel):
    """What shapes the network in their config.json; defaults are theirs.

    Their `scaling_factor` and `shift_factor` do not: the latents' mean and spread are measured on the user's pictures.
    """

    class_name: Literal["AutoencoderKL"] = Field(default="AutoencoderKL", alias="_class_name")
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: tuple[DownBlock, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[UpBlock, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[Width, ...] = Field(default=(64,), min_length=1, max_length=MOST_LEVELS)
    layers_per_block: int = Field(default=1, ge=1, le=MOST_BLOCKS)
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: Width = 4
    norm_num_groups: Width = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def ours(self) -> KlConfig:
        return KlConfig(
            channels=self.latent_channels,
            widths=self.block_out_channels,
            blocks=self.layers_per_block,
            groups=self.norm_num_groups,
            attention=self.mid_block_add_attention,
            encoder_attention_levels=attentive(self.down_block_types),
            decoder_attention_levels=attentive(self.up_block_types[::-1]),
            mixes_moments=self.use_quant_conv,
            mixes_latents=self.use_post_quant_conv,
        )


def attentive(blocks: tuple[str, ...]) -> tuple[int, ...]:
    """The levels with attention."""
    return tuple(level for level, block in enumerate(blocks) if block.startswith("Attn"))


def find(path: Path) -> Path:
    """The folder of the autoencoder: `path` itself, or `vae` in the folder of a pipeline."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"--space: {path} {what}; expected one with config.json and {WEIGHTS}, as diffusers writes it")
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"--space: no config.json in {path}; expected the folder of an AutoencoderKL, as diffusers has it")


def read_config(path: Path) -> KlConfig:
    """Raises `UserError` where this is not the autoencoder of one of the known kinds."""
    file = find(path) / "config.json"
    try:
        theirs = TheirConfig.model_validate(read_json(file))
        for name, blocks in (("down_block_types", theirs.down_block_types), ("up_block_types", theirs.up_block_types)):
            if len(blocks) != len(theirs.block_out_channels):
                raise UserError(
                    f"{file}: {name} has {len(blocks)} entries, but block_out_channels has "
                    f"{len(theirs.block_out_channels)}; each level needs one of both"
                )
        return theirs.ours()
    except ValidationError as error:
        raise UserError(f"{file}: {wrong(error)}") from None


def wrong(error: ValidationError) -> str:
    """The first thing, in a line."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "the whole"
    got: Any = first.get("input")
    shown = f" (got {got!r:.80})" if isinstance(got, str | int | float | bool) else ""
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{shown}; only AutoencoderKL as in SD and FLUX is known"


def read_weights(path: Path, config: KlConfig) -> dict[str, Tensor]:
    """By our names, in float32. Raises `UserError` if they are not there, damaged, or not of this network."""
    file = weights_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            names = matched(file, config, set(opened.keys()))
            check_shapes(
                file, names, {ours: opened.get_slice(name).get_shape() for ours, name in names.items()}, config
            )
            weights = {ours: opened.get_tensor(name).float() for ours, name in names.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged, or is not safetensors ({error}); copy it again") from None
    for ours, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{file}: {names[ours]} has values that are not numbers; take another copy of the weights")
    expected = blueprint(config)
    return {ours: value.reshape(expected[ours]) for ours, value in weights.items()}


def weights_file(path: Path) -> Path:
    """Raises `UserError` where there are none that can be read."""
    file = find(path) / WEIGHTS
    if not file.is_file():
        if file.with_name(PICKLED).exists():
            raise UserError(
                f"{file.with_name(PICKLED)} is a pickle, which can run code, and is never read; convert it to {WEIGHTS}"
            )
        raise UserError(f"{file} is missing; expected the weights of the autoencoder beside its config.json")
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{file} is a Git LFS pointer and not the weights; fetch them with: git lfs pull")
    return file


def blueprint(config: KlConfig) -> dict[str, torch.Size]:
    """Shapes of all weights by our names, without taking the memory."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Kl(config).state_dict().items()}


def matched(file: Path, config: KlConfig, found: set[str]) -> dict[str, str]:
    """Their name of each of our weights. Raises `UserError` if one is missing, or if there are others."""
    names = {}
    for ours in blueprint(config):
        candidates = their_names(ours)
        present = [name for name in candidates if name in found]
        if not present:
            raise UserError(f"{file} has no {candidates[0]}, which its config.json asks for; take both from one place")
        names[ours] = present[0]
    if more := sorted(found - set(names.values())):
        raise UserError(
            f"{file} has {len(more)} weights that its config.json does not ask for, such as {more[0]:.80}; "
            f"take both from one place"
        )
    return names


def their_names(ours: str) -> list[str]:
    """What a weight may be called there: `encoder.middle.0.conv1.bias` is `encoder.mid_block.resnets.0.conv1.bias`."""
    name = ours.replace(".resize.", ".downsamplers.0." if ours.startswith("encoder.") else ".upsamplers.0.")
    for one, other in THEIRS:
        name = name.replace(one, other)
    head, attention, tail = name.partition(".attentions.")
    if not attention:
        return [name]
    index, part, kind = tail.split(".")
    return [f"{head}.attentions.{index}.{theirs}.{kind}" for theirs in IN_ATTENTION[part]]


def check_shapes(file: Path, names: dict[str, str], found: dict[str, list[int]], config: KlConfig) -> None:
    """Old files have attention as 1x1 convolutions."""
    for ours, expected in blueprint(config).items():
        got = found[ours]
        squeezed = got[:2] if ".attentions." in names[ours] and got[2:] == [1, 1] else got
        if squeezed != list(expected):
            raise UserError(
                f"{file}: {names[ours]} is {got}, but its config.json makes it {list(expected)}; "
                f"take both from one place"
            )
