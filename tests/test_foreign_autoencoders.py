"""Autoencoders of diffusers beside AutoencoderKL: read, compared with diffusers itself, trained in, and exported."""

import importlib.util
import json
import re
import shutil

import diffusers
import pytest
import torch
from exporting import LEVEL, random_model, with_onnx
from folders import OTHERS, autoencoder_kl, rae, shaken
from safetensors.torch import load_file, save_file
from small import SETTINGS, Keeper, be_quick, request, write_pictures

from calotype.build import build_autoencoder
from calotype.cli.commands import plan, train
from calotype.cli.options import PlanOptions
from calotype.export.bundle import export_onnx
from calotype.export.diffusers_folder import export_diffusers, write_imported
from calotype.interop.autoencoders import read_autoencoder_config, read_autoencoder_weights
from calotype.interop.diffusers import KL_WEIGHTS, weights_file
from calotype.model import load
from calotype.nets.kl import Kl
from calotype.spaces.latent import LatentSpace
from calotype.types import Rng, UserError

WITHOUT_NETWORK = {**SETTINGS, "autoencoder": {k: v for k, v in SETTINGS["autoencoder"].items() if k != "network"}}
with_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")


def imported(folder):
    config = read_autoencoder_config(folder)
    network = build_autoencoder(config, "float32").eval()
    network.load_state_dict(read_autoencoder_weights(folder, config))
    return network


def images(side=16):
    return Rng(("pictures",)).uniform(2, 3, side, side) * 2 - 1


@torch.no_grad()
def same(ours, theirs, unit_range=False):
    """Latents and pictures; those of diffusers may be in [0, 1]."""
    given = (images() + 1) / 2 if unit_range else images()
    encoded = theirs.encode(given)
    expected = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
    moments = ours.encode(images())
    assert torch.allclose(moments.mean, expected, atol=1e-4)
    decoded = theirs.decode(expected).sample
    decoded = 2 * decoded - 1 if unit_range else decoded
    assert (ours.decode(expected) - decoded).abs().max() < LEVEL < decoded.std()
    assert expected.shape[1:] == (ours.config.channels, *[16 // ours.config.reduction] * 2)


@pytest.fixture(params=OTHERS.values(), ids=OTHERS, scope="module")
def theirs(request):
    network, arguments = request.param
    return shaken(network, **arguments)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return folder


def test_latents_and_pictures_are_those_of_diffusers(theirs, folder):
    same(imported(folder), theirs)


@with_transformers
def test_a_representation_autoencoder_has_the_statistics_of_its_folder(tmp_path):
    theirs = rae()
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path)
    same(ours, theirs, unit_range=True)
    assert ours.config.image_side == 16 and float(ours.network._latents_std.std()) > 0.1


def test_latents_of_a_space_have_mean_0_and_deviation_1_whatever_the_scaling_factor(theirs, folder, tmp_path):
    scaled = shutil.copytree(folder, tmp_path / "scaled")
    settings = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps({**settings, "scaling_factor": 7.0, "shift_factor": 3.0}))
    latents = []
    for place in (folder, scaled):
        space = LatentSpace(imported(place))
        space.measure([space.moments(images())])
        latents.append(space.encode(images()))
    assert torch.equal(*latents)
    assert torch.allclose(latents[0].mean((0, 2, 3)), torch.zeros(space.channels), atol=1e-5)
    if not isinstance(space.vae, Kl):  # else the posterior's variance counts, too
        assert torch.allclose(latents[0].std((0, 2, 3), correction=0), torch.ones(space.channels), atol=1e-4)


def test_flux2s_own_statistics_are_written_for_its_patches(tmp_path):
    """A pipeline of FLUX.2 folds 2 x 2 latents into channels and normalises these by a batch norm."""
    ours = random_model({**WITHOUT_NETWORK, "autoencoder": {"network": small_flux2(tmp_path)}})
    space = ours.stages[0].space
    space.mean.normal_()
    space.spread.uniform_(0.5, 2)
    assert write_imported(space, tmp_path / "vae") == "AutoencoderKLFlux2"
    vae = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "vae").eval()
    with torch.no_grad():
        mean = vae.encode(images()).latent_dist.mean
        folded = torch.nn.functional.pixel_unshuffle(mean, 2)
        expected = torch.nn.functional.pixel_unshuffle(space.encode(images()), 2)
        normal = (folded - vae.bn.running_mean[:, None, None]) / vae.bn.running_var[:, None, None].sqrt()
    assert torch.allclose(normal, expected, atol=1e-3)


def small_flux2(folder):
    network, arguments = OTHERS["the small decoder of FLUX.2"]
    shaken(network, **arguments).save_pretrained(folder)
    return read_autoencoder_config(folder).model_dump(mode="json")


# -- Variants of weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32"])
def test_a_variant_of_the_weights_is_read(tmp_path, variant):
    theirs = autoencoder_kl()
    theirs.half().save_pretrained(tmp_path / "vae", variant=variant)
    assert weights_file(tmp_path).name == f"diffusion_pytorch_model.{variant}.safetensors"
    same(imported(tmp_path), theirs.float())


def test_full_weights_go_before_a_variant(tmp_path):
    autoencoder_kl(seed=1).save_pretrained(tmp_path, variant="fp16")
    autoencoder_kl(seed=2).save_pretrained(tmp_path)
    same(imported(tmp_path), autoencoder_kl(seed=2))
    (tmp_path / KL_WEIGHTS).unlink()
    (tmp_path / "diffusion_pytorch_model.non_ema.safetensors").touch()
    same(imported(tmp_path), autoencoder_kl(seed=1))


# -- Runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures")


@pytest.mark.parametrize("name", ["tiny", "deep compression"])
def test_a_run_trains_in_its_latents_and_the_model_needs_no_folder_of_theirs(name, pictures, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    network, arguments = OTHERS[name]
    theirs = shaken(network, **arguments)
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16")
    space = f"diffusers:{tmp_path / 'theirs'}"
    run = train(request(pictures, tmp_path / "run", settings=WITHOUT_NETWORK, space=space, force=True), Keeper())
    shutil.rmtree(tmp_path / "theirs")
    model = load(run)
    assert len(model.sample(2)) == 2
    same(model.stages[0].space.vae, theirs)


@with_transformers
def test_a_run_trains_in_the_latents_of_a_representation_autoencoder(pictures, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    rae().save_pretrained(tmp_path / "theirs")
    space = f"diffusers:{tmp_path / 'theirs'}"
    run = train(request(pictures, tmp_path / "run", settings=WITHOUT_NETWORK, space=space, force=True), Keeper())
    model = load(run)
    assert len(model.sample(2)) == 2
    assert export_diffusers(model, tmp_path / "out").largest < LEVEL
    same(model.stages[0].space.vae, rae(), unit_range=True)


def change(**changes):
    def do(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return do


def lose(name):
    def do(folder):
        weights = load_file(folder / KL_WEIGHTS)
        weights.pop(name)
        save_file(weights, folder / KL_WEIGHTS)

    return do


WRONG = {
    "an unknown class": ("tiny", change(_class_name="AutoencoderOobleck"), (), "AutoencoderKLFlux2, AutoencoderDC"),
    "grey pictures": ("tiny", change(in_channels=1), (), "in_channels is 1, but must be 3"),
    "levels that do not fit": ("tiny", change(num_encoder_blocks=[1]), (), "num_encoder_blocks has 1 entries, but"),
    "huge levels": ("deep compression", change(latent_channels=10**9), (), "latent_channels: Input should be less"),
    "heads that do not fit": ("deep compression", change(encoder_block_types="Nothing"), (), "encoder_block_types"),
    "an unknown norm": ("deep compression", change(decoder_norm_types="none"), (), "decoder_norm_types"),
    "other widths": ("tiny", change(latent_channels=5), (), "its settings make it"),
    "a missing weight": ("tiny", lose("decoder.layers.0.bias"), (), "has no decoder.layers.0.bias"),
    "fine-tuning": ("tiny", change(), ("space.finetune=true",), "only AutoencoderKL can be fine-tuned"),
}


@pytest.mark.parametrize(("name", "spoil", "overrides", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(name, spoil, overrides, message, pictures, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    network, arguments = OTHERS[name]
    shaken(network, **arguments).save_pretrained(tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    space = f"diffusers:{tmp_path / 'theirs'}"
    wanted = PlanOptions(pictures, budget=1e-6, overrides=["size=16", *overrides], device="cpu", space=space)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        plan(wanted, Keeper())
        imported(tmp_path / "theirs")
    assert len(str(error.value).splitlines()) == 1


@with_transformers
def test_a_representation_autoencoder_takes_squares_of_its_own_size(pictures, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    rae().save_pretrained(tmp_path / "theirs")
    space = f"diffusers:{tmp_path / 'theirs'}"
    wanted = PlanOptions(pictures, budget=1e-6, overrides=["size=32"], device="cpu", space=space)
    with pytest.raises(UserError, match="takes squares of 16 px alone; set size=16"):
        plan(wanted, Keeper())


# -- Exports -----------------------------------------------------------------------------------------------------------


def random_with(name, folder):
    """A model with this autoencoder, and the class of that."""
    network, arguments = OTHERS[name]
    shaken(network, **arguments).save_pretrained(folder)
    settings = read_autoencoder_config(folder).model_dump(mode="json")
    return random_model({**WITHOUT_NETWORK, "autoencoder": {"network": settings}}), network


def test_a_pipeline_of_diffusers_has_it_in_its_own_layout(tmp_path):
    model, network = random_with("deep compression", tmp_path / "theirs")
    assert export_diffusers(model, tmp_path / "out").largest < LEVEL / 4
    same(model.stages[0].space.vae, network.from_pretrained(tmp_path / "out" / "vae"))


@with_onnx
@pytest.mark.parametrize("name", ["tiny", "deep compression", "the small decoder of FLUX.2"])
def test_graphs_draw_the_same(name, tmp_path):
    model, _ = random_with(name, tmp_path / "theirs")
    assert export_onnx(model, tmp_path / "out").largest < LEVEL
