"""Runs of several stages, from pictures to pictures."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import random_model
from PIL import Image
from safetensors.torch import load_file
from small import CASCADE, HYBRID, Keeper, be_quick, opened, request, write_pictures
from test_export_plain import PLAIN
from test_train import interrupted_at, products, resume

import calotype
from calotype.cli import commands
from calotype.cli.commands import sampling
from calotype.cli.options import EnlargeOptions
from calotype.data.images import images_from_pixels
from calotype.diffusion.augmentation import NoiseAugmentation
from calotype.diffusion.stage import generate
from calotype.files import read_json
from calotype.planning import choose, make, measure
from calotype.serve.worker import draw_enlarged
from calotype.settings import parse_recipe, read_recipe
from calotype.tables import merge
from calotype.training import pipeline
from calotype.training.levels import LEVELS_TRIED
from calotype.training.process import Interrupted
from calotype.types import Rng, UserError

KINDS = {"cascade": CASCADE, "hybrid": HYBRID}
kinds = pytest.mark.parametrize("kind", KINDS)
BUDGET = 1000.0
SHORT = ["denoiser.images=8", "enlarge.16.images=8"]


def be_quick_and_search(patch):
    """Everything seems to take 10 s; so there is time for a search on the fewest crops, and for 12 samples."""
    be_quick(patch)
    patch.setattr(choose, "forward_flops", lambda *arguments: 10**12)  # counting takes longer than the training here
    patch.setattr(measure, "best_time", lambda work, device, repeats=5: [work(), 10.0][1])
    patch.setattr(measure.Measurement, "feature", 0.01)
    patch.setattr(make, "LEVEL_SHARE", 0.2)
    patch.setattr(make, "MOST_LEVEL_CROPS", make.FEWEST_LEVEL_CROPS)


@pytest.fixture
def quick(monkeypatch):
    be_quick_and_search(monkeypatch)


def trained(folder, kind, *overrides, budget=BUDGET):
    write_pictures(folder / "pictures")
    asked = request(folder / "pictures", folder / "run", *overrides, budget=budget, settings=KINDS[kind])
    return commands.train(asked, Keeper())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished one of each kind. For reading only."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick_and_search(patch)
        return {kind: trained(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def events(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@kinds
def test_all_that_a_run_is_for_is_there(runs, kind):
    run, first = runs[kind], ["autoencoder"] if kind == "hybrid" else []
    state = read_json(run / "run.json")
    assert state["status"] == "finished" and state["legs"] == dict.fromkeys(
        [*first, "denoiser", "enlarge-16"], "finished"
    )
    weights = {f"{name}.safetensors" for name in (*first, "denoiser", "enlarge-16")}
    assert {path.name for path in (run / "model").iterdir()} == {
        *weights,
        "model.json",
        "manifest.json",
        "README.md",
        "samples.png",
    }
    samples = opened(run / "samples")
    assert {picture.size for name, picture in samples.items() if name != "grid.png"} == {(16, 16)} and len(
        samples
    ) == 13
    assert [event["leg"] for event in events(run, "preview")] == [leg for leg in state["legs"] for _ in range(2)]
    for event in events(run, "check"):
        assert all(np.isfinite(value) for value in event["measures"].values())
    assert "<html" in (run / "report.html").read_text()[:500]


@kinds
def test_the_recipe_of_a_run_is_that_of_its_model_but_for_the_level(runs, kind):
    written = parse_recipe(read_recipe(runs[kind] / "recipe.toml"))
    model = parse_recipe(read_json(runs[kind] / "model" / "model.json")["recipe"])
    assert written.chain == (8, 16) and written.enlarging(16).images == 32
    best = {"sampling": {"augmentation": model.enlarging(16).sampling.augmentation}}
    assert parse_recipe(merge(written.model_dump(), {"enlarge": {"16": best}})) == model


@kinds
def test_the_level_that_was_found_is_the_level_of_the_model(runs, kind):
    found = read_json(runs[kind] / "run.json")["levels"]["16"]
    tried = dict(found["tried"])
    assert 4 <= len(tried) <= LEVELS_TRIED and min(tried) == 0 and max(tried) == pytest.approx(NoiseAugmentation().most)
    errors, nearest = dict(zip(tried, found["standard_errors"], strict=True)), min(tried.values())
    assert found["best"] == min(level for level in tried if tried[level] - nearest <= errors[level])
    assert calotype.load(runs[kind]).samplings[1].augmentation == found["best"]
    (logged,) = events(runs[kind], "levels")
    assert logged["size"] == 16 and logged["best"] == found["best"] and logged["tried"] == found["tried"]
    assert read_json(runs[kind] / "run.json")["seconds"]["level-16"] > 0


def test_without_time_the_level_stays_as_it_was(tmp_path, quick):
    run = trained(tmp_path, "cascade", *SHORT, "enlarge.16.sampling.augmentation=0.15", budget=1e-6)
    assert read_json(run / "run.json").get("levels", {}) == {} and events(run, "levels") == []
    assert calotype.load(run).samplings[1].augmentation == 0.15


@kinds
def test_a_picture_depends_on_its_seed_number_and_label_alone(runs, kind):
    model = calotype.load(runs[kind])
    many, again, one = ([np.asarray(picture) for picture in model.sample(count, seed=5)] for count in (5, 5, 1))
    assert all((picture == other).all() for picture, other in zip(many, again, strict=True))
    assert np.abs(one[0].astype(int) - many[0]).max() <= 1 and len({picture.tobytes() for picture in many}) == 5
    assert (np.asarray(model.sample(1, seed=6)[0]) != one[0]).any()
    assert (np.asarray(model.sample(1, label="b", seed=5, guidance=300.0)[0]) != one[0]).any()


@kinds
def test_a_loaded_model_is_the_stages_that_were_trained(runs, kind):
    """The averaged weights of the last checkpoint of each leg, and a picture of the first stage under the last one."""
    model, run = calotype.load(runs[kind]), runs[kind]
    for stage, leg in zip(model.stages, ("denoiser", "enlarge-16"), strict=True):
        saved = load_file(run / "checkpoints" / f"{leg}-0000000032" / "denoiser.safetensors")
        for name, value in stage.denoiser.named_parameters():
            assert torch.equal(value, saved[f"average.{name}"]), name
    assert [(stage.image_size, stage.low_res_size) for stage in model.stages] == [(8, None), (16, 8)]
    assert model.stages[0].space.reduction == (4 if kind == "hybrid" else 1)
    labels, rngs = torch.tensor([0, 1]), [Rng((0, "sample", index)) for index in range(2)]
    below = generate(model.stages[:1], labels, model.samplings[:1], rngs)
    above = generate(model.stages[1:], labels, model.samplings[1:], rngs, below)
    pictures = torch.stack([torch.tensor(np.asarray(one)).permute(2, 0, 1) for one in model.sample(2, seed=0)])
    assert (images_from_pixels(pictures) - above).abs().max() <= 1 / 127.5


PLACES = {
    "cascade": [("denoiser", 28), ("enlarge-16", 8), ("enlarge-16", 28)],
    "hybrid": [("autoencoder", 16), ("denoiser", 20), ("enlarge-16", 16)],
}


@kinds
def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch, runs, quick, kind):
    """Models, samples and levels; whichever leg it was stopped in, and at its end."""
    interrupted_at(monkeypatch, PLACES[kind])
    with pytest.raises(Interrupted):
        trained(tmp_path, kind)
    run = tmp_path / "run"
    for _ in PLACES[kind][1:]:
        assert read_json(run / "run.json")["status"] == "interrupted"
        with pytest.raises(Interrupted):
            resume(run)
    resume(run)
    one, other = read_json(run / "run.json"), read_json(runs[kind] / "run.json")
    assert one["status"] == "finished" and products(run) == products(runs[kind])
    assert (
        one["levels"]["16"]["best"] == other["levels"]["16"]["best"]
        and one["seconds"].keys() == other["seconds"].keys()
    )


def test_a_level_that_was_found_is_not_searched_again(tmp_path, monkeypatch, runs, quick):
    with monkeypatch.context() as patch, contextlib.suppress(KeyError):
        patch.setattr(pipeline, "save_model", lambda *arguments: {}["a crash"])
        trained(tmp_path, "cascade")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    monkeypatch.setattr(pipeline, "search_levels", lambda *arguments: pytest.fail("searched again"))
    resume(tmp_path / "run")
    assert products(tmp_path / "run") == products(runs["cascade"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["enlarge.16.sampling.conditioning=truncated", "enlarge.16.sampling.augmentation=0.2"],
        ["enlarge.16.augmentation.kind=blur"],
        ["denoiser.prior=none", "enlarge.16.prior=none", "flip=false", "enlarge.16.crop=16"],
        ["stages=[4,8,16]", "enlarge.8.images=8", "enlarge.8.batch=4", "enlarge.8.backbone.width=8"],
        ["enlarge.16.scaling=flow", "enlarge.16.schedule.kind=flow", "sampling.sampler=ancestral"],
    ],
    ids=["truncated", "blur", "nothing beside", "three stages", "flow"],
)
def test_other_chains_train_and_sample(tmp_path, quick, overrides):
    run = trained(tmp_path, "cascade", *overrides, *SHORT, budget=1e-6)
    model = calotype.load(run)
    assert len(model.sample(2)) == 2 and model.sample(1)[0].size == (16, 16)
    assert len(model.stages) == len(model.samplings) == len(parse_recipe(read_recipe(run / "recipe.toml")).chain)


def test_exposure_fine_tuning_continues_from_the_trained_stage(tmp_path, quick):
    """And is the one that is deployed."""
    run = trained(
        tmp_path, "cascade", *SHORT, "enlarge.16.exposure.images=8", "enlarge.16.exposure.pictures=3", budget=1e-6
    )
    legs = json.loads((run / "run.json").read_text())["legs"]
    assert list(legs) == ["denoiser", "enlarge-16", "exposure-16"] and set(legs.values()) == {"finished"}
    kept = {leg: load_file(max(run.glob(f"checkpoints/{leg}-*")) / "denoiser.safetensors") for leg in list(legs)[1:]}
    deployed = load_file(run / "model" / "enlarge-16.safetensors")
    deployed = {name: value for name, value in deployed.items() if not name.startswith("prior.")}  # not trained
    for name, value in deployed.items():
        assert torch.equal(value, kept["exposure-16"][f"average.{name}"])
    moved = [not torch.equal(value, kept["enlarge-16"][f"average.{name}"]) for name, value in deployed.items()]
    assert any(moved)


def test_a_run_of_version_0_1_resumes_in_its_exposure_fine_tuning(tmp_path, quick, monkeypatch):
    """There the leg, its settings and its checkpoints had another name; its random numbers are the same."""
    overrides = (*SHORT, "enlarge.16.exposure.images=12", "enlarge.16.exposure.pictures=3")
    whole = trained(tmp_path / "whole", "cascade", *overrides, budget=1e-6)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_at(patch, [("mistakes-16", 4)])
        trained(tmp_path / "parts", "cascade", *overrides, budget=1e-6)
    run = tmp_path / "parts" / "run"
    for name in ("run.json", "plan.json", "log.jsonl", "recipe.toml"):
        (run / name).write_text((run / name).read_text().replace("exposure", "mistakes"))
    for path in (run / "checkpoints").glob("exposure-16-*"):
        path.rename(path.with_name(path.name.replace("exposure", "mistakes")))
    state = read_json(run / "run.json")
    before = {"state": state["status"], "looks": state["validation"], "format": 1}
    new = ("status", "validation", "version", "settings", "labels")
    old = {name: value for name, value in state.items() if name not in new} | before
    (run / "run.json").write_text(json.dumps(old))
    resume(run)
    assert products(run) == products(whole)
    notes = [event["text"] for event in events(run, "note")]
    assert any("exposure-16: went on from exposure-16-" in note for note in notes)


def test_any_picture_is_enlarged_whatever_its_shape(tmp_path, runs):
    model, picture = calotype.load(runs["cascade"]), Image.new("RGB", (7, 5), "red")
    assert model.enlarge(picture).size == (14, 10)
    assert model.enlarge(picture, seed=1).tobytes() == model.enlarge(picture, seed=1).tobytes()
    assert model.enlarge(picture, seed=1).tobytes() != model.enlarge(picture, seed=2).tobytes()
    write_pictures(tmp_path / "small", size=8)
    (tmp_path / "small" / "a" / "not a picture.jpg").write_text("words")
    options = EnlargeOptions(runs["cascade"], tmp_path / "small", tmp_path / "out", label="a", device="cpu")
    console = Keeper()
    assert commands.enlarge(options, console) == 10
    assert "not a picture.jpg" in console.printed[0] and {one.size for one in opened(tmp_path / "out").values()} == {
        (16, 16)
    }
    with pytest.raises(UserError, match="no stage of this model enlarges to 64 px; it has 16"):
        model.enlarge(picture, 64)
    with pytest.raises(UserError, match="one stage, which is not conditioned on low resolution"):
        replace(model, stages=model.stages[:1]).enlarge(picture)
    first, last = model.samplings
    noisy = last.model_copy(update={"augmentation": 0.5, "conditioning": "truncated"})
    truncated = replace(model, samplings=(first, noisy))  # but this picture is clean
    assert truncated.enlarge(picture, seed=1).tobytes() == model.enlarge(picture, seed=1).tobytes()
    picture.save(file := io.BytesIO(), "PNG")
    asked = {"seed": 1, "folder": str(runs["cascade"])}  # as the page does
    (large,) = draw_enlarged(model, asked, [file.getvalue()])
    assert Image.open(io.BytesIO(large)).tobytes() == model.enlarge(picture, seed=1).tobytes()


def test_an_enlarged_picture_follows_its_prompt(tmp_path, monkeypatch):
    model, picture = random_model(PLAIN), Image.new("RGB", (8, 8), "red")
    plain, prompted = (model.enlarge(picture, prompt=prompt).tobytes() for prompt in (None, "a red cat"))
    assert plain != prompted == model.enlarge(picture, prompt=" a red\ncat").tobytes()
    picture.save(tmp_path / "red.png")
    monkeypatch.setattr(sampling, "load", lambda run, device: model)
    options = EnlargeOptions(tmp_path, tmp_path / "red.png", tmp_path / "out", prompt="a red cat")
    commands.enlarge(options, console := Keeper())
    assert [one.tobytes() for one in opened(tmp_path / "out").values()] == [prompted] and len(console.printed) == 1
    commands.enlarge(replace(options, out=tmp_path / "long", prompt="red " * 900), console)
    assert "a prompt is cut" in console.printed[1]
    with pytest.raises(UserError, match="reads no prompt"):
        random_model(CASCADE).enlarge(picture, prompt="a red cat")


def test_steps_and_guidance_are_those_of_the_first_stage(runs):
    """The sampler is everybody's; epsilon scaling was fitted to the first stage."""
    model, asked = calotype.load(runs["cascade"]), []
    assert [one.epsilon_scaling for one in model.settings({"epsilon_scaling": 0.2})] == [0.2, 0.0]
    for stage in model.stages:
        stage.denoiser.backbone.register_forward_pre_hook(lambda *about, size=stage.image_size: asked.append(size))
    model.sample(1, steps=5, guidance=1.0, sampler="euler")
    assert asked.count(8) == 5 and asked.count(16) == 2
    asked.clear()
    model.sample(1, steps=4, guidance=3.0, sampler="heun")
    assert asked.count(8) == 2 * 4 - 1 and asked.count(16) == 2 * 2 - 1
    asked.clear()
    model.sample(1, steps=4, guide="unconditional", guidance=3.0, sampler="heun")
    assert asked.count(8) == 2 * (2 * 4 - 1) and asked.count(16) == 2 * 2 - 1
