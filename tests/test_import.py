import re
import shutil
import tomllib

import pytest
import torch
from diffusers import AutoencoderKL
from folders import write_autoencoder
from safetensors.torch import load_file
from small import SETTINGS, Keeper, be_quick, noise_pixels, opened, request, write_pictures

from calotype.cli import commands
from calotype.cli.commands import train
from calotype.cli.options import InspectOptions, PlanOptions, ResumeOptions
from calotype.data.images import images_from_pixels
from calotype.files import read_json
from calotype.interop import diffusers
from calotype.model import load
from calotype.training import pipeline
from calotype.training.process import Interrupted
from calotype.types import UserError

IMPORTED = {
    **SETTINGS,
    "autoencoder": {key: value for key, value in SETTINGS["autoencoder"].items() if key != "network"},
}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("theirs") / "kl")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("imported") / "pictures")


def asked(pictures, out, folder, *overrides, **more):
    return request(pictures, out, *overrides, settings=IMPORTED, space=f"diffusers:{folder}", **more)


@pytest.fixture(scope="module")
def run(patch, pictures, folder, tmp_path_factory):
    """Its autoencoder is gone afterwards."""
    theirs = shutil.copytree(folder, tmp_path_factory.mktemp("gone") / "kl")
    run = train(asked(pictures, pictures.parent / "run", theirs, force=True), Keeper())  # random: not fit to diffuse
    shutil.rmtree(theirs)
    return run


def test_the_leg_of_an_imported_autoencoder_is_left_out(run):
    assert read_json(run / "run.json")["legs"] == {"denoiser": "finished"}
    plan = read_json(run / "plan.json")
    (choice,) = [one for one in plan["choices"] if one["what"] == "autoencoder"]
    assert "its leg is left out" in choice["why"] and "autoencoder" not in plan["predicted"]["seconds"]
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    assert recipe["space"]["kind"] == "diffusers" and recipe["autoencoder"]["network"]["kind"] == "kl"
    assert not list((run / "checkpoints").glob("autoencoder*"))


def test_latents_have_mean_0_and_spread_1_and_the_report_shows_reconstructions(run, folder):
    space = load(run).stages[0].space
    cached = load_file(next((run / "cache").glob("latents-*")))["moments"].float()
    trained = read_json(run / "split.json")["train"]
    mean, log_variance = cached[:, trained].flatten(0, 1).chunk(2, 1)
    latents = (mean - space.mean) / space.spread
    variance = latents.var((0, 2, 3), correction=0) + (log_variance.exp() / space.spread**2).mean((0, 2, 3))
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(variance, torch.ones(4), atol=1e-3)
    assert "each with its reconstruction to the right" in (run / "report.html").read_text()


@torch.no_grad()
def test_the_model_has_all_it_needs_and_reconstructs_as_diffusers_does(run, folder, tmp_path):
    moved = shutil.copytree(run / "model", tmp_path / "moved")
    model = load(moved)
    assert str(folder.parent.parent) not in (moved / "model.json").read_text()
    assert len(model.sample(2)) == 2 and len(opened(run / "samples")) == 5
    images = images_from_pixels(noise_pixels(2))
    theirs = AutoencoderKL.from_pretrained(folder)
    expected = theirs.decode(theirs.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    space = model.stages[0].space
    assert torch.allclose(space.decode(space.encode(images)), expected, atol=1e-4)


def test_fine_tuning_starts_from_the_imported_weights(patch, pictures, folder, tmp_path):
    out = train(asked(pictures, tmp_path / "run", folder, "space.finetune=true", force=True), Keeper())
    assert read_json(out / "run.json")["legs"] == {"autoencoder": "finished", "denoiser": "finished"}
    learned, before = load(out).stages[0].space.vae, diffusers.read_kl_weights(folder, diffusers.read_kl_config(folder))
    moved = max(float((value - before[name]).abs().max()) for name, value in learned.state_dict().items())
    assert 0 < moved < 1e-2


def test_a_stopped_run_goes_on_where_it_was_and_refuses_other_weights(patch, pictures, folder, run, tmp_path):
    theirs, out = shutil.copytree(folder, tmp_path / "kl"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as stop:
        stop.setattr(pipeline, "denoiser_leg", interrupted)
        with pytest.raises(Interrupted):
            train(asked(pictures, out, theirs, force=True), Keeper())
    write_autoencoder(theirs, seed=1)
    with pytest.raises(UserError, match="the imported autoencoder has changed"):
        commands.resume(ResumeOptions(out, "cpu"), Keeper())
    write_autoencoder(theirs)
    commands.resume(ResumeOptions(out, "cpu"), Keeper())
    assert {name: one.tobytes() for name, one in opened(out / "samples").items()} == {
        name: one.tobytes() for name, one in opened(run / "samples").items()
    }


def test_what_is_imported_and_unfit_can_be_looked_at(patch, pictures, folder, tmp_path):
    """Before there is any model: the run says where to look, so there must be something to see."""
    with pytest.raises(UserError, match=r"calotype inspect .*--force"):
        train(asked(pictures, tmp_path / "run", folder), Keeper())
    assert (commands.inspect(InspectOptions(tmp_path / "run", device="cpu"), Keeper()) / "inspection.html").exists()


def interrupted(*arguments):
    raise KeyboardInterrupt


WRONG = {
    "an unknown kind": ("hub:sd", (), "--space is 'hub:sd', but must be own, or diffusers:PATH"),
    "no path": ("diffusers:", (), "--space is 'diffusers:'"),
    "no folder": ("diffusers:nowhere", (), "nowhere does not exist"),
    "a cascade": ("diffusers:{folder}", ("kind=cascade",), "a cascade works in pixels"),
    "another network": ("diffusers:{folder}", ("autoencoder.network.kind=vae",), "leave that out"),
    "a size that does not fit": ("diffusers:{folder}", ("size=18",), "18, but this autoencoder and denoiser need"),
    "a kind without a path": (None, ("space.kind=diffusers",), "space.path: Field required"),
    "fine-tuning of our own": ("own", ("space.finetune=true",), "unknown key space.finetune"),
}


@pytest.mark.parametrize(("space", "overrides", "message"), WRONG.values(), ids=WRONG)
def test_wrong_requests_are_reported_in_one_line(patch, pictures, folder, space, overrides, message):
    space = space and space.format(folder=folder)
    wanted = PlanOptions(pictures, budget=1e-6, overrides=list(overrides), device="cpu", space=space)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        commands.plan(wanted, Keeper())
    assert len(str(error.value).splitlines()) == 1
