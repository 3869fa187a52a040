"""A run in two halves is about as good as one of the whole length."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import CPU, SETTINGS, Keeper, be_quick, noise_pixels, request, write_pictures

from calotype.cli import commands
from calotype.cli.options import ResumeOptions
from calotype.data.images import images_from_pil, images_from_pixels
from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import Lite0, features
from calotype.model import load
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
    network = Lite0(CPU)
    real = features([images_from_pixels(noise_pixels(120))], network)

    def distance(run):
        samples = load(run, "cpu").sample(120, steps=6, guidance=1.0)
        return frechet_distance(features([torch.cat([images_from_pil(each) for each in samples])], network), real)

    assert distance(halves) < 1.1 * distance(whole)
