"""The search for a guidance scale after training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import CASCADE, SETTINGS, Keeper, be_quick, noise_pictures, recipe, request, second_leg, write_pictures
from test_train import silent

from calotype.cli.commands import plan, train
from calotype.cli.options import PlanOptions
from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import Sampling
from calotype.evaluation.search import Distance, Search, search_scale
from calotype.files import read_json
from calotype.model import load
from calotype.planning import make
from calotype.run import LevelSearch, Run, RunState
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training import levels, pipeline, scaling
from calotype.training.levels import SCALES_TRIED, search_guidance, with_searched


def distances(**of_scales):
    """With a standard error of 0.1 of each difference, and a shared one that cancels."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 400)
    return {
        float(scale[1:]) / 10: Distance(value, value + shared + rng.normal(0, 0.1 / 2**0.5, 400))
        for scale, value in of_scales.items()
    }


def test_what_was_searched_replaces_settings_of_its_stage_alone():
    """In the model at the end, and in previews of a run that still trains."""
    before = recipe(**CASCADE)
    assert with_searched(before, RunState()) == before
    found = LevelSearch(best=1.5, epsilon_scaling=0.1)
    state = RunState(guidance=found, levels={"16": LevelSearch(best=0.25)})
    first, second = with_searched(before, state).samplings
    assert first == before.samplings[0].model_copy(update={"guidance": 1.5, "epsilon_scaling": 0.1})
    assert second == before.samplings[1].model_copy(update={"augmentation": 0.25})
    final = recipe(**CASCADE | {"sampling": {"final_denoising": 0.1}})
    assert with_searched(final, state).sampling.final_denoising == 0
    assert with_searched(final, RunState(guidance=LevelSearch(best=1.5))).sampling.final_denoising == 0.1


@pytest.mark.parametrize(
    ("usual", "found", "best"),
    [
        (3.0, {"s15": 1.0, "s20": 0.9, "s30": 0.95}, 3.0),  # the usual one is within a standard error of the nearest
        (3.0, {"s15": 1.0, "s20": 0.9, "s30": 2.0}, 2.0),
        (3.0, {"s15": 0.95, "s20": 0.9, "s30": 2.0}, 1.5),  # level ones: the smallest
        (None, {"s15": 0.95, "s20": 0.9, "s30": 0.92}, 1.5),
    ],
)
def test_the_usual_level_is_kept_unless_another_is_clearly_nearer(usual, found, best):
    assert Search(distances(**found), usual).best == best


def test_each_scale_is_tried_once_with_its_own_epsilon_scaling():
    tried, seen = [], []

    def distance(sampling):
        tried.append((sampling.guidance, sampling.epsilon_scaling, sampling.steps))
        return Distance(sampling.guidance, np.full(4, sampling.guidance))

    usual, progress = Sampling(steps=7, guidance=3.0), lambda done, total: seen.append((done, total))
    search = search_scale(distance, lambda sampling: sampling.guidance / 10, usual, (1.5, 3.0), progress)
    assert tried == [(1.5, 0.15, 7), (3.0, 0.3, 7)] and seen == [(1, 2), (2, 2)]
    assert search.best == 1.5 and search.as_json()["epsilon_scaling"] == 0.15


def test_equal_seeds_find_equal_distances():
    leg = second_leg(sampling={"steps": 2, "guide": "prior", "guidance": 3.0})
    wanted = recipe(sampling={"steps": 2, "guide": "prior", "guidance": 3.0})
    pictures = noise_pictures()
    once, again = (search_guidance(wanted, leg.trained, pictures, 6, silent) for _ in range(2))
    assert tuple(once.tried) == SCALES_TRIED and once.usual == 3.0
    assert once.as_json() == again.as_json()


def test_samples_have_the_classes_of_the_pictures_they_are_held_against(monkeypatch):
    """Near-duplicates move validation pictures of some classes to later rows: the first ones are not like all."""
    pictures = noise_pictures(400)
    rows = pictures.validation_indices
    labels = pictures.labels.clone()
    labels[rows] = (torch.arange(len(rows)) >= len(rows) // 2).long()
    monkeypatch.setattr(levels, "scale_distance", lambda stage, labels, *_: labels)
    monkeypatch.setattr(levels, "search_scale", lambda labels, *_: used.append(labels) or Search({}))
    used, leg = [], second_leg()
    for count in (8, 100):  # fewer and more than there are
        search_guidance(recipe(), leg.trained, replace(pictures, labels=labels), count, silent)
        assert len(used[-1]) == count and abs(int(used[-1].sum()) - count // 2) <= 1


def test_samples_are_compared_with_latents_of_validation_pictures(monkeypatch):
    asked, leg, pictures = [], second_leg(), noise_pictures()
    latents = leg.trained.space.encode(images_from_pixels(pictures.pixels[pictures.validation_indices]))
    monkeypatch.setattr(levels, "scaling_of", lambda stage, of_real, *_: asked.append(of_real))
    monkeypatch.setattr(levels, "search_scale", lambda *_: Search({}))
    search_guidance(recipe(), leg.trained, pictures, 6, silent)
    assert asked == [pytest.approx(float(latents.square().mean((1, 2, 3)).sqrt().mean()), rel=1e-4)]


@pytest.mark.parametrize("usual", [1.25, 3.0])
def test_the_search_is_planned_with_all_scales_and_the_fit_of_each(usual):
    """Two or three scales, each with its samples and three passes of the fit; pixels have no fit."""
    scales = 2 + (usual == 1.25)
    for count, fitted in ((40, 120), (192, 192)):
        wanted = recipe(sampling={"guide": "prior", "guidance": usual})
        expected = scales * ((count + fitted) * 0.1 + count * 0.01)
        assert make.guidance_seconds(wanted, count, 0.1, 0.01) == pytest.approx(expected)
    pixels = parse_recipe(merge(CASCADE, {"sampling": {"guide": "prior", "guidance": usual}}))
    assert make.guidance_seconds(pixels, 40, 0.1, 0.01) == pytest.approx(scales * 40 * 0.11)


# -- In a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def searching(monkeypatch):
    be_quick(monkeypatch)
    monkeypatch.setattr(make, "FEWEST_GUIDANCE_SAMPLES", 2)
    monkeypatch.setattr(make, "FEWEST_HELD_OUT", 1)
    monkeypatch.setattr(make, "MOST_GUIDANCE_SAMPLES", 4)
    monkeypatch.setattr(make, "MOST_LEVEL_CROPS", make.FEWEST_LEVEL_CROPS)


@pytest.mark.parametrize("settings", [SETTINGS, CASCADE], ids=["latent", "cascade"])
def test_the_scale_that_was_found_is_stored_with_the_model(searching, monkeypatch, tmp_path, settings):
    write_pictures(tmp_path / "pictures")
    asked = []
    real = pipeline.search_guidance
    monkeypatch.setattr(pipeline, "search_guidance", lambda *given: asked.append(given[3]) or real(*given))
    monkeypatch.setattr(Search, "best", property(lambda self: 1.5))
    monkeypatch.setattr(scaling, "LEAST_AMPLITUDE", 100.0)
    sampling = {"sampling": {"steps": 2}}
    run = train(request(tmp_path / "pictures", tmp_path / "run", budget=600.0, settings=settings | sampling), Keeper())
    state = Run.open(run).state
    assert (
        asked == [4] and state.guidance.best == 1.5 and [scale for scale, _ in state.guidance.tried] == [1.25, 1.5, 3]
    )
    stored = load(run).samplings[0]
    assert stored.guidance == 1.5 and stored.epsilon_scaling == state.guidance.epsilon_scaling
    assert (stored.epsilon_scaling > 0) == (settings is SETTINGS)  # pixels of great amplitude may be plain
    assert "guidance" in state.seconds and "guidance" in state.operations
    assert "guidance" in read_json(run / "plan.json")["predicted"]["seconds"]


@pytest.mark.parametrize(
    "setting",
    ["sampling.guidance=2.5", "sampling.epsilon_scaling=0.0", "denoiser.prior=none", "sampling.guide=unconditional"],
)
def test_what_the_user_has_set_is_not_searched(searching, tmp_path, setting):
    write_pictures(tmp_path / "pictures")
    for override, samples in (("seed=1", 4), (setting, 0)):
        options = PlanOptions(tmp_path / "pictures", 16, 600.0, overrides=[*request(None, None).overrides, override])
        assert plan(options, Keeper()).guidance_samples == samples


def test_too_little_time_leaves_the_usual_scale(searching, tmp_path):
    write_pictures(tmp_path / "pictures")
    options = PlanOptions(tmp_path / "pictures", 16, 1e-6, overrides=[*request(None, None).overrides])
    assert plan(options, Keeper()).guidance_samples == 0
