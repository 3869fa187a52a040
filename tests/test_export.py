"""The ONNX bundle of a latent model with labels: its pictures are ours, with numpy and onnxruntime alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import GOLDEN, LEVEL, golden, ours, widened, with_onnx
from PIL import Image
from small import Keeper

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.data.images import images_from_pil, pixels_from_images
from calotype.diffusion.augmentation import gaussian_blur
from calotype.export import bundle as onnx_bundle
from calotype.export.check import Difference, between
from calotype.export.graphs import shifted_blur
from calotype.files import damage, read_json
from calotype.types import UserError

LABELS = [0, 1, -1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return widened("labels", tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder, and what was printed."""
    keeper = Keeper()
    out = export(ExportOptions(run=trained, to="onnx", out=tmp_path_factory.mktemp("export") / "out"), keeper)
    return out, keeper.printed


@pytest.fixture
def bundle(exported):
    sample = pytest.importorskip("calotype.export.standalone.sample", reason="needs onnxruntime", exc_type=ImportError)
    return sample.Bundle(exported[0], threads=1)


@with_onnx
def test_a_bundle_is_whole_and_says_how_near_its_pictures_are(exported):
    out, printed = exported
    assert not damage(out) and "differ from ours by" in printed[-1] and str(out) in printed[-1]
    names = {"denoiser.onnx", "prior.onnx", "decoder.onnx", "encoder.onnx", "sample.py", "calotype.json", "README.md"}
    assert {path.name for path in out.iterdir()} == {*names, "manifest.json"}
    about = read_json(out / "calotype.json")
    assert about["classes"] == ["adventurer", "micah"] and len(about["latents"]["mean"]) == 4
    assert about["stages"][0]["sigmas"][-1] == 0 and about["stages"][0]["sampling"]["guidance"] == 3
    assert about["stages"][0]["sampling"]["epsilon_scaling"] == 0.2


@with_onnx
@pytest.mark.parametrize("changes", [
    {}, {"sampler": "euler"}, {"sampler": "heun", "steps": 5}, {"sampler": "ancestral"}, {"guidance": 1.0},
    {"guide": "unconditional", "guidance": 2.0}, {"prior_guidance": 0.7}, {"guidance_low": 0.5, "guidance_high": 3.0},
    {"epsilon_scaling": 0.0}, {"final_denoising": 0.0},
], ids=str)  # fmt: skip
def test_pictures_are_ours_with_every_sampler_and_guide(bundle, trained, changes):
    model = golden(trained, **changes)
    bundle.stages[0]["sampling"] = model.samplings[0].model_dump(mode="json")
    bundle.stages[0]["sigmas"] = model.stages[0].schedule.grid(model.samplings[0].steps)
    sample = sys.modules["calotype.export.standalone.sample"]
    theirs = bundle.images(LABELS, [""] * 3, [""] * 3, range(3), sample.seeded(4))
    assert between(ours(model, LABELS, seed=4), theirs).largest < LEVEL / 4


@with_onnx
def test_equal_seeds_give_the_pictures_of_the_command_line(bundle, trained):
    theirs = bundle.sample([0, 1, 0, 1], seed=1)
    made = np.stack([np.asarray(picture, int) for picture in golden(trained).sample(4, seed=1)])
    assert np.abs(theirs.astype(int) - made).max() <= 1
    assert np.array_equal(bundle.sample([0], seed=1, first=2)[0], theirs[2])


@with_onnx
def test_variations_of_a_picture_are_ours(bundle, trained):
    picture = Image.open(GOLDEN / "given.png").convert("RGB").resize((16, 16))
    given = pixels_from_images(images_from_pil(picture))[0].permute(1, 2, 0).numpy()
    theirs = bundle.sample([-1, -1], seed=3, picture=given, strength=0.5)
    made = np.stack([np.asarray(one, int) for one in golden(trained).redraw(picture, 0.5, seed=3, count=2)])
    assert np.abs(theirs.astype(int) - made).max() <= 1


@with_onnx
@pytest.mark.parametrize("request_, message", [
    ({"labels": [2]}, "index of the 2 classes"), ({"labels": [-2]}, "label -2 is unknown"),
    ({"labels": []}, "labels is empty"), ({"labels": [0], "prompts": ["red"]}, "reads no prompt"),
    ({"labels": [0], "negatives": ["", ""]}, "2 texts for 1 labels"),
    ({"labels": [0], "picture": np.zeros((8, 8, 3), np.uint8)}, r"expected \(16, 16, 3\)"),
    ({"labels": [0], "picture": np.zeros((16, 16, 3), np.uint8), "strength": 2}, "strength is 2"),
], ids=str)  # fmt: skip
def test_a_bundle_says_what_it_cannot_draw(bundle, request_, message):
    with pytest.raises(ValueError, match=message):
        bundle.sample(**request_)


def test_a_folder_that_is_no_bundle_is_named(tmp_path):
    sample = pytest.importorskip("calotype.export.standalone.sample", reason="needs onnxruntime", exc_type=ImportError)
    with pytest.raises(FileNotFoundError, match=r"calotype\.json is missing; give a folder that calotype export"):
        sample.Bundle(tmp_path)


RUN = """
import runpy, sys
sys.argv = ["sample.py", *sys.argv[1:]]
runpy.run_path("sample.py", run_name="__main__")
print("others:", sorted({"torch", "calotype", "PIL"} & set(sys.modules)))
"""


def run_script(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@with_onnx
def test_the_script_stands_alone(exported, trained, tmp_path):
    moved = shutil.copytree(exported[0], tmp_path / "moved")
    done = run_script(moved, "--label", "micah", "--count", "3", "--seed", "7", "--out", str(tmp_path / "grid.png"))
    assert done.returncode == 0 and "others: []" in done.stdout, done.stderr
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (34, 34) and grid.mode == "RGB"
    made = np.asarray(golden(trained).sample(1, "micah", seed=7)[0], int)
    assert np.abs(np.asarray(grid, int)[:16, :16] - made).max() <= 1


@with_onnx
@pytest.mark.parametrize("arguments, message", [
    (("--label", "nobody"), "this model knows adventurer, micah"), (("--prompt", "red"), "reads no prompt"),
    (("--count", "0"), "at least 1"), (("--guidance", "nan"), "a number from 0 on"),
    (("--out", "nowhere/grid.png"), "--out nowhere/grid.png cannot be written"),
])  # fmt: skip
def test_the_script_says_what_is_wrong_in_one_line(exported, arguments, message):
    done = run_script(exported[0], *arguments)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


@with_onnx
def test_a_bundle_with_other_pictures_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_bundle, "write_bundle", lambda *arguments: None)
    monkeypatch.setattr(onnx_bundle, "picture_differences", lambda *arguments: Difference(0.1, 0.5, 4))
    with pytest.raises(UserError, match=r"differ from ours by up to 25\.5 levels"):
        export(ExportOptions(run=GOLDEN / "labels", to="onnx", out=tmp_path / "out"), Keeper())
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_bundle.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs onnx, onnxscript, onnxruntime; try: pip install "calotype\[onnx\]"'):
        export(ExportOptions(run=GOLDEN / "labels", to="onnx", out=tmp_path / "out"), Keeper())


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        export(ExportOptions(run=GOLDEN / "labels", to="onnx", out=tmp_path), Keeper())


def test_shifted_images_are_a_blur():
    images, deviation = torch.rand(3, 3, 9, 8), torch.tensor([0.0, 0.4, 1.0])
    expected = gaussian_blur(images, deviation, 3)
    assert torch.allclose(shifted_blur(images, deviation, 1.0), expected, atol=1e-6)


def test_not_a_number_is_a_difference():
    wrong = np.full((1, 3, 4, 4), np.nan)
    with pytest.raises(UserError, match="differ from ours"):
        between(np.zeros((1, 3, 4, 4)), wrong).checked()


def test_settings_of_a_stage_are_plain_json():
    model = golden("labels")
    model = replace(model, classes=('</script>"\u202e', "b"))
    settings = onnx_bundle.settings_of_bundle(model, [["denoiser"]])
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
