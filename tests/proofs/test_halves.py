"""A run in two halves is about as good as one of the whole length.

`make proofs` runs it on noise; `HALVES=1h` on portraits, for an hour and again for its halves (-s shows the distances).
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import CPU, SETTINGS, Keeper, be_quick, noise_pixels, request, write_pictures

from calotype.cli import commands
from calotype.cli.options import PortraitsOptions, ResumeOptions, TrainOptions
from calotype.cli.quantities import seconds
from calotype.data.folder import read_folder
from calotype.data.images import images_from_pil, images_from_pixels
from calotype.data.split import split_rule
from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import Lite0, features
from calotype.model import load
from calotype.run import Run
from calotype.settings import parse_recipe, read_recipe, to_toml
from calotype.tables import merge
from calotype.training import pipeline


def test_twice_half_the_time_is_about_as_good_as_all_of_it_at_once(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    monkeypatch.setattr(pipeline, "require_fit", lambda *given: None)
    pictures = write_pictures(tmp_path / "pictures", 120)
    long = merge(SETTINGS, {"autoencoder": {"images": 320}, "denoiser": {"images": 2400, "batch": 8}})
    half = merge(long, {"autoencoder": {"images": 160}, "denoiser": {"images": 1200}})
    whole = commands.train(request(pictures, tmp_path / "whole", settings=long), Keeper())
    halves = commands.train(request(pictures, tmp_path / "halves", settings=half), Keeper())
    commands.resume(ResumeOptions(halves, budget=1e-6), Keeper())
    real = images_from_pixels(noise_pixels(120))
    assert distance(halves, real, steps=6, guidance=1.0) < 1.1 * distance(whole, real, steps=6, guidance=1.0)


@pytest.mark.skipif(
    "HALVES" not in os.environ, reason="HALVES is the time of the whole run, as 1h; twice that is needed"
)
def test_portraits_in_two_halves(tmp_path):
    """The halves have the networks of the whole run, and see half of its images each, so no clock is compared."""
    commands.export_portraits(PortraitsOptions(32, 2400, tmp_path / "portraits"), Keeper())
    budget = seconds(os.environ["HALVES"])
    whole = commands.train(TrainOptions(tmp_path / "portraits", 32, budget, out=tmp_path / "whole"), Keeper())
    recipe = read_recipe(whole / "recipe.toml")
    for leg in ("autoencoder", "denoiser"):
        recipe[leg]["images"] = int(Run.open(whole).latest("step", leg)["images_seen"]) // 2
    (tmp_path / "half.toml").write_text(to_toml(parse_recipe(recipe)))
    options = TrainOptions(tmp_path / "portraits", None, budget, recipe=tmp_path / "half.toml", out=tmp_path / "halves")
    halves = commands.train(options, Keeper())
    commands.resume(ResumeOptions(halves, budget=budget), Keeper())
    pictures = read_folder(tmp_path / "portraits", 32, None, rule=split_rule(whole))
    real = images_from_pixels(pictures.pixels[pictures.test_indices])
    there, here = distance(whole, real), distance(halves, real)
    print(f"FD-Lite0 of {len(real)} samples: {there:.1f} at once, {here:.1f} in two halves")
    assert here < 1.1 * there


def distance(run, real, **sampling):
    """FD-Lite0 of as many samples as there are real pictures."""
    network = Lite0(CPU)
    samples = load(run, "cpu").sample(len(real), **sampling)
    made = features([torch.cat([images_from_pil(each) for each in samples])], network)
    return frechet_distance(made, features([real], network))
