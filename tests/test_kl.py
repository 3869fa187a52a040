import json
import shutil

import pytest
import torch
from folders import autoencoder_kl, write_autoencoder
from safetensors.torch import load_file, save_file

from calotype.interop import diffusers
from calotype.nets.kl import Kl
from calotype.types import Rng, UserError

STABLE_DIFFUSION = {"layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215}
CONFIGS = {
    "as SD": STABLE_DIFFUSION,
    "as SDXL": {**STABLE_DIFFUSION, "scaling_factor": 0.13025, "force_upcast": False},
    "as FLUX": {
        "layers_per_block": 2, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 0.3611, "shift_factor": 0.1159,
    },
    "four levels": {
        "block_out_channels": (4, 8, 8, 12), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "one level": {
        "block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)
    },
    "no attention": {"mid_block_add_attention": False},
    "attention at some levels": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "one mixing": {"use_quant_conv": False, "norm_num_groups": 1, "act_fn": "swish"},
}  # fmt: skip


def imported(folder):
    config = diffusers.read_kl_config(folder)
    network = Kl(config).eval()
    network.load_state_dict(diffusers.read_kl_weights(folder, config))
    return network


@torch.no_grad()
def same(ours, theirs, height=24, width=16):
    images = Rng(("pictures",)).uniform(2, 3, height, width) * 2 - 1
    posterior = theirs.encode(images).latent_dist
    moments = ours.encode(images)
    assert torch.allclose(moments.mean, posterior.mean, atol=1e-5)
    assert torch.allclose(moments.log_variance, posterior.logvar, atol=1e-5)
    difference = ours.decode(moments.mean) - theirs.decode(posterior.mean).sample
    assert difference.abs().max() < 1e-5 < theirs.decode(posterior.mean).sample.std()


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_reconstruction_is_that_of_diffusers(tmp_path, changes):
    theirs = autoencoder_kl(**changes)
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path)
    same(ours, theirs)
    assert ours.config.reduction == 2 ** (len(theirs.config.block_out_channels) - 1)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("convolutions", [False, True])
def test_names_of_old_files_are_read(tmp_path, convolutions):
    theirs = autoencoder_kl()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / diffusers.KL_WEIGHTS)
    for new, old in OLD.items():
        for name in [name for name in weights if f".{new}." in name]:
            value = weights.pop(name)
            wide = convolutions and value.ndim == 2
            weights[name.replace(new, old)] = value[:, :, None, None].contiguous() if wide else value
    save_file(weights, tmp_path / diffusers.KL_WEIGHTS)
    same(imported(tmp_path), theirs)


def test_halves_become_float32_and_a_pipeline_is_searched(tmp_path):
    theirs = autoencoder_kl().half()
    theirs.save_pretrained(tmp_path / "vae")
    same(imported(tmp_path), theirs.float())


def change(**changes):
    def do(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return do


def change_weights(work):
    def do(folder):
        weights = load_file(folder / diffusers.KL_WEIGHTS)
        work(weights)
        save_file(weights, folder / diffusers.KL_WEIGHTS)

    return do


def as_pickle(folder):
    (folder / diffusers.KL_WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643268\n"
WRONG = {
    "a block of another kind": (
        change(down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "CrossAttnDownBlock2D"]),
        "down_block_types.2",
    ),
    "blocks and levels": (change(up_block_types=["UpDecoderBlock2D"]), "up_block_types has 1 entries, but"),
    "another network": (change(_class_name="AutoencoderTiny"), "_class_name"),
    "another activation": (change(act_fn="mish"), "act_fn"),
    "grey pictures": (change(in_channels=1), "in_channels"),
    "no levels": (change(block_out_channels=[]), "block_out_channels"),
    "huge levels": (change(block_out_channels=[10**12] * 3), "block_out_channels.0"),
    "many blocks": (change(layers_per_block=10**9), "layers_per_block"),
    "groups that do not fit": (change(norm_num_groups=5), "8 channels wide, but must be a multiple of its 5 groups"),
    "other widths": (change(block_out_channels=[8, 16, 32]), "conv_shortcut.weight, which its config.json asks for"),
    "fewer blocks": (change(layers_per_block=2), "which its config.json asks for"),
    "more than asked for": (change(use_quant_conv=False), "weights that its config.json does not ask for"),
    "a list": (lambda folder: (folder / "config.json").write_text("[1, 2]"), "the whole"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "no weights": (lambda folder: (folder / diffusers.KL_WEIGHTS).unlink(), "is missing"),
    "a pickle": (as_pickle, "convert it to diffusion_pytorch_model.safetensors"),
    "a pointer": (lambda folder: (folder / diffusers.KL_WEIGHTS).write_text(POINTER), "git lfs pull"),
    "cut short": (
        lambda folder: (folder / diffusers.KL_WEIGHTS).write_bytes((folder / diffusers.KL_WEIGHTS).read_bytes()[:-100]),
        "is damaged",
    ),
    "empty": (lambda folder: (folder / diffusers.KL_WEIGHTS).write_bytes(b""), "is damaged"),
    "a missing weight": (
        change_weights(lambda weights: weights.pop("decoder.mid_block.attentions.0.to_k.weight")),
        "has no decoder.mid_block.attentions.0.to_k.weight",
    ),
    "another shape": (
        change_weights(lambda weights: weights.update({"quant_conv.bias": torch.zeros(3)})),
        "quant_conv.bias is [3], but its config.json makes it [8]",
    ),
    "not a number": (
        change_weights(lambda weights: weights["encoder.conv_in.weight"].fill_(float("nan"))),
        "encoder.conv_in.weight has values that are not numbers",
    ),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("healthy"))


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_reported_in_one_line(tmp_path, healthy, spoil, message):
    folder = shutil.copytree(healthy, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(UserError) as error:
        imported(folder)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1 and str(folder) in str(error.value)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_a_place_without_an_autoencoder_is_reported(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected"):
        diffusers.read_kl_config(tmp_path / place)
