"""The folder of diffusers: its pictures are ours, Calotype is not imported, and nothing runs unasked."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import LEVEL, golden, random_model, widened
from folders import write_autoencoder
from PIL import Image
from small import SETTINGS, Keeper

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.export import diffusers_folder
from calotype.export.check import our_images
from calotype.export.diffusers_folder import PROVIDED, export_diffusers
from calotype.export.sources import import_order, top_level, used_names, with_sources
from calotype.interop.diffusers import read_kl_config, read_kl_weights
from calotype.interop.diffusers import write_autoencoder as write_native
from calotype.nets.frozen import MiniLmConfig
from calotype.nets.kl import Kl
from calotype.types import UserError

diffusers = pytest.importorskip("diffusers")

DRAW = """
import sys
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
for index, picture in enumerate(pipeline(label="micah", num_images=2, seed=3, num_inference_steps=6).images):
    picture.save(f"{sys.argv[2]}/{index}.png")
for wrong in (
    {"prompt": "red"}, {"prompt": ["red", "blue"]}, {"num_images": 0}, {"num_inference_steps": 0}, {"sampler": "plms"}
):
    try:
        pipeline(**wrong)
    except ValueError as error:
        print(error)
try:
    pipeline.save_pretrained(sys.argv[2])
except NotImplementedError as error:
    print(error)
try:
    pipeline.to(torch.bfloat16)()
except ValueError as error:
    print(error)
print("ours:", "calotype" in sys.modules, pipeline.classes)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return widened("labels", tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    keeper, out = Keeper(), tmp_path_factory.mktemp("diffusers") / "out"
    export(ExportOptions(run=trained, to="diffusers", out=out), keeper)
    assert "differ from ours by" in keeper.printed[-1]
    return out


def test_a_pipeline_draws_our_pictures_without_calotype(exported, trained, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(exported), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for message in ("one text each", "num_images is 0", "number of steps is 0", "sampler 'plms' is unknown"):
        assert message in done.stdout
    assert "copy the folder as it is" in done.stdout and "but is in torch.bfloat16; leave dtype" in done.stdout
    assert "this model reads no prompt" in done.stdout and "ours: False ['adventurer', 'micah']" in done.stdout
    theirs = np.stack([np.asarray(Image.open(tmp_path / f"{index}.png"), int) for index in range(2)])
    made = np.stack([np.asarray(one, int) for one in golden(trained, steps=6).sample(2, "micah", seed=3)])
    assert np.abs(theirs - made).max() <= 1


def test_nothing_runs_unless_it_is_trusted(exported):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(exported)
    assert "runs the Python files in this folder" in (exported / "README.md").read_text()


def test_prompts_are_cleaned_as_ours(monkeypatch, tmp_path):
    """Another normal form, line breaks, and letters that are not seen."""
    model, raw = golden("captions"), "Cafe\u0301  đỏ\n"
    clean = model.text(1, raw).prompts[0]
    monkeypatch.setattr(diffusers_folder, "checked_request", lambda model: ([-1, -1], [raw, "\u200b"]))
    monkeypatch.setattr(diffusers_folder, "our_images", lambda model, labels, _: our_images(model, labels, [clean, ""]))
    assert export_diffusers(model, tmp_path / "out").largest < LEVEL / 4


@pytest.mark.parametrize("name", ["captions", "cascade"])
def test_captions_and_cascades_are_equal(name, tmp_path):
    assert export_diffusers(golden(name), tmp_path / "out").largest < LEVEL / 4


def test_an_imported_autoencoder_goes_back_in_its_own_layout(tmp_path):
    theirs = write_autoencoder(tmp_path / "kl")
    network = read_kl_config(theirs).model_dump(mode="json") | {"kind": "kl"}
    settings = {key: value for key, value in SETTINGS.items() if key != "autoencoder"}
    model = random_model({**settings, "autoencoder": {"network": network}})
    assert export_diffusers(model, tmp_path / "out").largest < LEVEL / 4
    vae, ours = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae"), model.stages[0].space.vae
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(images).latent_dist
        assert torch.allclose(encoded.mean, ours.encode(images).mean, atol=1e-5)
        assert torch.allclose(vae.decode(encoded.mean).sample, ours.decode(encoded.mean), atol=1e-4)


def test_a_written_autoencoder_is_read_again(tmp_path):
    theirs = write_autoencoder(tmp_path / "kl")
    network = Kl(config := read_kl_config(theirs))
    network.load_state_dict(weights := read_kl_weights(theirs, config))
    write_native(tmp_path / "again", network, torch.zeros(config.channels), torch.full((config.channels,), 2.0))
    assert read_kl_config(tmp_path / "again") == config
    again = read_kl_weights(tmp_path / "again", config)
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["scaling_factor"] == 0.5


def test_a_frozen_text_encoder_is_refused(tmp_path):
    model = golden("labels")
    denoiser = model.recipe.denoiser.model_copy(update={"text": MiniLmConfig()})
    reading = replace(model, recipe=model.recipe.model_copy(update={"denoiser": denoiser}))
    with pytest.raises(UserError, match="try --to onnx"):
        export_diffusers(reading, tmp_path / "out")


# -- One file from many ------------------------------------------------------------------------------------------------


def test_a_script_gets_what_it_uses_and_no_more():
    script = "from calotype.diffusion.guidance import rising\nprint(rising(2.0, 0.5, 1.0))\n"
    text = with_sources(script)
    names = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert (
        names == {"rising", "per_image"} and "RAMP = math.log(5)" in text and "calotype." not in text.split("# --")[0]
    )
    assert text.index("def per_image") < text.index("def rising") < text.index("print(rising")


def test_modules_stand_after_those_that_they_import():
    order = import_order({"calotype.diffusion.stage", "calotype.types", "calotype.priors.patches"})
    assert order == ["calotype.types", "calotype.priors.patches", "calotype.diffusion.stage"]


def test_annotations_are_not_used_names():
    tree = ast.parse("def f(a: Shape = START) -> Other:\n    b: Third = g(a)\n    return len(b)")
    assert set(used_names(tree)) == {"START", "g", "a", "b"}
    assert "Latents" not in top_level("calotype.diffusion.guidance")["guided"].uses
    assert set(PROVIDED) == {"Config", "Field", "model_validator"}
