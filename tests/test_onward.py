"""Runs that go on: from the networks of a finished run, with more time, and what is seen of them meanwhile."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from small import (
    CASCADE,
    CPU,
    SETTINGS,
    Keeper,
    be_quick,
    noise_pictures,
    recipe,
    request,
    write_pictures,
)
from test_checkpoint import go_on
from test_train import interrupted_at

from calotype.build import build_stage, initial_space
from calotype.cli import commands
from calotype.cli.commands import extending
from calotype.cli.commands.continuing import copy_start, source_of
from calotype.cli.options import PreviewOptions, ResumeOptions, app
from calotype.data import shard_sets
from calotype.data.duplicates import HASH_BYTES, near_duplicates, perceptual_hashes
from calotype.data.remote import NotReachedError
from calotype.data.seen import OWN_FILE, SET_NAMES, Seen, continued_split, read_seen, seen_by, write_seen
from calotype.data.split import SplitConfig
from calotype.evaluation.candidate import notes_on_split, open_candidate, split_by, with_unseen
from calotype.files import is_whole, read_json, read_tensors, sha256, write_json
from calotype.model import load
from calotype.planning import Plan
from calotype.planning.inherit import compare_autoencoders
from calotype.priors.prior import trained_state
from calotype.ranks import current_job
from calotype.recipe import RunSpace
from calotype.run import LevelSearch, Run, RunState
from calotype.serve.run_page import RunView, commands_of
from calotype.settings import parse_recipe, read_recipe
from calotype.tables import merge
from calotype.training import leg as legs
from calotype.training import pipeline
from calotype.training.fitting import fit_mixture, read_constants
from calotype.training.leg import StepLog
from calotype.training.legs import autoencoder_leg
from calotype.training.loop import StepResult, TrainProgress
from calotype.training.process import Interrupted, locked
from calotype.training.warm_start import WarmStart, label_rows
from calotype.types import NULL_LABEL, Condition, Rng, Text, UserError

SHORT = {"denoiser": {"images": 16, "batch": 4}}
"""Settings of a run that starts from another; all others are taken over."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)
    monkeypatch.setattr(pipeline, "require_fit", lambda *given: None)


def onward(pictures, out, source, *overrides, settings=SHORT, **more):
    """The run that starts from `source`, and what was printed."""
    console = Keeper()
    commands.train(request(pictures, out, *overrides, settings=settings, source=source, **more), console)
    return out, console


@pytest.fixture
def others(tmp_path):
    """Other pictures, of a class that the source has and of a new one."""
    return write_pictures(tmp_path / "others", seed=1, classes=("b", "c"))


@pytest.fixture
def copy(finished, tmp_path):
    """A run that has ended, with its pictures."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return Run(tmp_path / "copy" / "run", Run.open(finished).state.model_copy(
        update={"data": str(tmp_path / "copy" / "pictures")}
    ))  # fmt: skip


@pytest.fixture
def again(copy):
    copy.save()
    return copy.folder


def begun(monkeypatch):
    """By leg, the weights before the first step."""
    before, real = {}, pipeline.train_leg

    def train_leg(run, leg, *more):
        states = {name: state.network.state_dict() for name, state in leg.states.items()}
        before[leg.name] = {name: {key: value.clone() for key, value in each.items()} for name, each in states.items()}
        real(run, leg, *more)

    monkeypatch.setattr(pipeline, "train_leg", train_leg)
    return before


def products(run):
    files = [*(run / "model").glob("*.safetensors"), *(run / "samples").glob("*.png")]
    return {path.name: sha256(path) for path in files}


def notes(console):
    (plan,) = console.plans
    return plan.notes


def planned_by_copy(run, first):
    """The recipe that the command which the page copies plans, and the run from which it starts."""
    write_json(first / "plan.json", {**read_json(first / "plan.json"), "budget_seconds": 60.0})
    ((words, command),) = commands_of(RunView("id", Run.open(run), {}, []))
    options = app(["plan", *shlex.split(command)[2:]], standalone_mode=False)
    commands.plan(options, console := Keeper())
    assert (words, options.budget) == ("Copy as command", 60) and command.startswith("calotype train ")
    return console.plans[0].recipe, options.source


# -- From a finished run -----------------------------------------------------------------------------------------------


def test_networks_begin_as_those_of_the_source_and_closed_forms_are_of_the_new_pictures(
    others, tmp_path, finished, monkeypatch
):
    before, fitted = begun(monkeypatch), []
    real = pipeline.denoiser_leg
    monkeypatch.setattr(pipeline, "denoiser_leg", lambda *given: fitted.append(given[:3]) or real(*given))
    run, console = onward(others, tmp_path / "run", finished)
    source, ours = load(finished, "cpu").stages[0], load(run, "cpu").stages[0]
    assert list(before) == ["denoiser"]  # the autoencoder has no leg
    for name, value in trained_state(source.denoiser).items():
        if name != "label.weight":
            assert torch.equal(before["denoiser"]["denoiser"][name], value), name
    rows, old = before["denoiser"]["denoiser"]["label.weight"], source.denoiser.label.weight
    assert torch.equal(rows, old[[1, 2, 2]])  # b as b, c as the null label, the null label
    assert "new classes start as pictures without a label do: c" in notes(console)
    assert "classes of run that are not here are dropped: a" in notes(console)
    assert all(map(torch.equal, source.space.vae.state_dict().values(), ours.space.vae.state_dict().values()))
    expected = fit_mixture(*fitted[0])["mixture"].state_dict()
    assert all(torch.equal(ours.denoiser.prior.state_dict()[name], value) for name, value in expected.items())
    assert not all(map(torch.equal, expected.values(), source.denoiser.prior.state_dict().values()))
    assert not torch.equal(ours.space.mean, source.space.mean)  # measured on the new pictures


def test_the_run_says_where_its_networks_come_from(others, tmp_path, finished):
    first, _ = onward(others, tmp_path / "first", finished)
    second, _ = onward(others, tmp_path / "second", first)
    origin, state = Run.open(second).state.origin, Run.open(first).state
    assert origin.run == "first" and origin.before == state.origin and origin.before.run == "run"
    assert origin.seconds == pytest.approx(state.wall_seconds + state.origin.seconds)
    recipe = parse_recipe(read_recipe(second / "recipe.toml"))
    assert isinstance(recipe.space, RunSpace) and planned_by_copy(second, second) == (recipe, first)
    for page in (second / "report.html", second / "model" / "README.md"):
        text = page.read_text()
        assert origin.model[:12] in text and origin.before.model[:12] in text
    assert not (second / "start").exists()  # only while it is needed


def test_classes_are_matched_by_name():
    weights = torch.arange(4.0)[:, None].expand(4, 2)
    rows = label_rows(weights, ["a", "b", "c"], ["c", "new", "a"])
    assert rows[:, 0].tolist() == [2, 3, 0, 3]
    assert label_rows(weights, ["a", "b", "c"], [])[:, 0].tolist() == [3]
    assert label_rows(weights[3:], [], ["x"])[:, 0].tolist() == [3, 3]


TEXT = {"text": {"kind": "bytes", "width": 16, "heads": 2}}


def start(classes=("a", "b"), **changes):
    """Of a model with random weights, whose autoencoder has the closed form of some pictures."""
    settings = recipe(**changes)
    space = initial_space(settings, noise_pictures(40), CPU)
    stage = build_stage(settings, space, len(classes), None)
    for weight in stage.denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    stage.denoiser.eval()
    return WarmStart("source", settings, (stage,), classes)


def begin(source, **changes):
    """A stage that starts from it, and the notes on that."""
    settings = recipe(space={"kind": "run"}, **changes)
    stage = build_stage(settings, source.stages[0].space, len(source.classes), None)
    source.begin(stage, settings, source.classes)
    stage.denoiser.eval()
    return stage, source.notes(settings, source.classes)


def denoised(stage, text=None):
    rng, labels = Rng(("onward",)), torch.tensor([0, NULL_LABEL])
    with torch.no_grad():
        return stage.denoiser(rng.normal(2, 3, 4, 4), torch.tensor([0.5, 2.0]), Condition(labels, text=text))


def test_captions_that_were_added_or_dropped_leave_what_is_made_without_them():
    plain, captioned = start(denoiser={"prior": "none"}), start(denoiser={"prior": "none", **TEXT})
    stage, notes = begin(plain, denoiser={"prior": "none", **TEXT})
    assert "source reads no captions: the text encoder, and the attention to it, start anew" in notes
    for text in (None, Text(("", ""))):
        torch.testing.assert_close(denoised(stage, text), denoised(plain.stages[0]))
    stage, notes = begin(captioned, denoiser={"prior": "none"})
    assert "source reads captions; here none are read, so its text encoder is dropped" in notes
    torch.testing.assert_close(denoised(stage), denoised(captioned.stages[0]))
    stage, notes = begin(captioned, denoiser={"prior": "none", **TEXT})
    text = Text(("spots", "a sky"))
    assert torch.equal(denoised(stage, text), denoised(captioned.stages[0], text)) and len(notes) == 1


def test_a_text_encoder_is_taken_over_only_where_there_are_captions():
    source = start(denoiser={"prior": "none", **TEXT})
    assert source.settings({}, captioned=True)["denoiser"]["text"]["width"] == 16
    assert "text" not in source.settings({}, captioned=False)["denoiser"]


def test_what_does_not_fit_starts_anew_and_is_named(others, tmp_path, finished, monkeypatch):
    before = begun(monkeypatch)
    wider = merge(SHORT, {"denoiser": {"backbone": {"width": 32}}})
    _, console = onward(others, tmp_path / "wider", finished, settings=wider)
    assert "starts from run: its autoencoder" in notes(console)
    assert "the denoiser starts anew: its backbone differs" in notes(console)
    own = merge(SETTINGS, {"autoencoder": {"network": {"channels": 4}}})
    _, console = onward(others, tmp_path / "channels", finished, settings=own)
    assert "the denoiser starts anew: its autoencoder is another one, and so are the latents" in notes(console)
    assert "autoencoder" in before


def test_an_autoencoder_is_kept_unless_a_new_one_begins_much_better():
    source, others = start(), noise_pictures(40, seed=2)
    kept, why = compare_autoencoders(source, others, CPU)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).expand(40, 3, 16, 16).clone()
    stripes[::2] = 255 - stripes[::2]
    dropped, reason = compare_autoencoders(source, replace(others, pixels=stripes), CPU)
    assert kept and not dropped
    assert all("dB, and a new one would begin with" in text for text in (why, reason))


def test_a_decoder_alone_is_trained_further_where_that_is_asked_for():
    source = start()
    settings = recipe(space={"kind": "run", "finetune": True})
    leg = go_on(autoencoder_leg(settings, noise_pictures(), CPU, source), 12)
    ours, theirs = leg.trained, source.stages[0].space.vae
    for part, same in (("encoder", True), ("linear_in", True), ("linear_out", True), ("decoder", False)):
        weights = zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in weights) == same


def test_the_stages_of_a_cascade_go_on(finished_cascade, tmp_path, monkeypatch):
    others = write_pictures(tmp_path / "others", seed=1)
    before = begun(monkeypatch)
    short = {"denoiser": {"images": 8}, "enlarge": {"16": {"images": 8}}}
    run, console = onward(others, tmp_path / "run", finished_cascade, settings=short)
    assert "starts from run: its denoiser and enlarge-16" in notes(console)
    for leg, stage in zip(("denoiser", "enlarge-16"), load(finished_cascade, "cpu").stages, strict=True):
        for name, value in trained_state(stage.denoiser).items():
            assert torch.equal(before[leg]["denoiser"][name], value)
    assert Run.open(run).state.status == "finished"


@pytest.mark.parametrize("place", ["source", "part"])
def test_a_killed_run_that_goes_on_is_the_same_to_the_bit(place, again, others, tmp_path, monkeypatch):
    """From a run that is gone meanwhile; and with more time in the same folder."""
    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    shutil.copytree(again.parent, tmp_path / "whole")

    def work(folder):
        if place == "source":
            onward(others, folder / "next", folder / "run")
            return folder / "next"
        data = folder / "pictures"
        return commands.resume(ResumeOptions(folder / "run", budget=1e-6, data=data), Keeper())

    expected = products(work(tmp_path / "whole"))
    interrupted_at(monkeypatch, [("denoiser", 0), ("denoiser", 8)])
    with pytest.raises(Interrupted):
        work(again.parent)
    run = again.parent / ("next" if place == "source" else "run")
    if place == "source":
        shutil.rmtree(again)
    with pytest.raises(Interrupted):
        commands.resume(ResumeOptions(run), Keeper())
    commands.resume(ResumeOptions(run), Keeper())
    assert products(run) == expected


@pytest.mark.parametrize("name", ["manifest.json", "model.json"])
def test_a_model_that_changes_while_it_is_copied_is_no_start(again, tmp_path, name):
    source = source_of(Run.open(again), "cpu")
    file = again / "model" / name
    file.write_bytes(file.read_bytes().replace(b"\n", b" ", 1))
    with pytest.raises(UserError, match=f"has changed while it was read and copied .*({name}|another)"):
        copy_start(source, tmp_path)
    assert not any(tmp_path.glob("start"))


# -- What has been seen ------------------------------------------------------------------------------------------------


def test_pictures_stay_in_the_sets_in_which_the_source_had_them(tmp_path):
    old, config = noise_pictures(40), SplitConfig()
    seen = seen_by(old)
    rows = [*range(0, 40, 2)]
    pixels = torch.cat([old.pixels[rows], noise_pictures(40, seed=1).pixels])
    split = continued_split(seen, config)(pixels, torch.zeros(60, dtype=torch.long), ("a",))
    for name, inside in old.split.sets.items():
        assert torch.equal(split.sets[name][:20], inside[rows])
    assert split.test[20:].any() and split.validation[20:].any()
    assert (split.train.int() + split.validation.int() + split.test.int() == 1).all()
    alone = continued_split(seen, config)(old.pixels[old.train_indices], old.labels[old.train_indices], ("a", "b"))
    assert "held out were trained on before" in alone.notes[-1] and alone.validation.any()
    sets = ["test" if row % 2 else "train" for row in range(40)]
    named = continued_split(seen, config)(old.pixels, old.labels, ("a", "b"), named=sets)
    trained = int(((named.test | named.validation) & old.split.train).sum())
    assert trained > 5 and named.notes[-1].endswith(f"{trained} of the held-out pictures were trained on before")
    assert continued_split(None, config)(pixels, torch.zeros(60, dtype=torch.long)).counts == {
        "train": 51, "validation": 3, "test": 6,
    }  # fmt: skip


def test_pictures_that_all_look_alike_stay_in_their_sets_too():
    hashes = np.where(np.random.default_rng(0).random((1, HASH_BYTES)) < 0.5, -1, 1).astype(np.int8).repeat(12, 0)
    hashes[np.arange(12), np.arange(12)] *= -1
    split = Seen(hashes[:6], hashes[6:8], hashes[8:10]).split_hashed(hashes)
    sets = {name: inside.nonzero().flatten().tolist() for name, inside in split.sets.items()}
    assert sets == {"train": [0, 1, 2, 3, 4, 5, 10, 11], "validation": [6, 7], "test": [8, 9]}


def test_what_the_source_has_seen_counts_as_seen(tmp_path, finished, others):
    run, _ = onward(others, tmp_path / "run", finished)
    candidate = open_candidate("A", run, "cpu")
    pictures = commands.reading.read(finished.parent / "pictures", 16, None, Keeper())
    own = commands.reading.read_own(candidate.run, 16, tmp_path / "cache", Keeper())
    split = split_by(candidate, pictures, lambda _: own)
    assert torch.equal(split.train, pictures.split.train) and torch.equal(split.test, pictures.split.test)
    assert not own.split.train.any() or not set(map(bytes, perceptual_hashes(own.pixels))) & set(
        map(bytes, perceptual_hashes(pictures.pixels))
    )
    _, texts = with_unseen(candidate, pictures, own)
    assert any("8 are in its training set and 1 in its validation set" in text for text in texts)
    grandchild, _ = onward(write_pictures(tmp_path / "third", seed=2), tmp_path / "next", run)
    assert len(read_seen(grandchild).train) == 16  # of both runs before it


def test_a_run_records_its_pictures_so_that_others_may_be_added_to_them(again, tmp_path):
    """None that it was trained on is then held out by a run that starts from it."""
    pictures = again.parent / "pictures"
    own = commands.reading.read_own(Run.open(again), 16, tmp_path / "cache", Keeper())
    expected, recorded = seen_by(own), read_seen(again, OWN_FILE)
    assert all(np.array_equal(getattr(recorded, name), getattr(expected, name)) for name in SET_NAMES)
    for file in write_pictures(tmp_path / "new", 30, seed=5).rglob("*.png"):
        shutil.copy(file, pictures / file.parent.name / f"new-{file.name}")
    run, console = onward(pictures, tmp_path / "run", again)
    assert not any("may be held out here" in note for note in notes(console)) and Run.open(run).state.origin.seen
    ours = read_seen(run, OWN_FILE)
    for held_out in (ours.validation, ours.test):
        assert len(held_out) > 1 and not near_duplicates(held_out, expected.train).any()
    assert near_duplicates(expected.train, ours.train).all()


def test_what_a_run_had_seen_before_it_got_other_pictures_is_no_test_picture(again, tmp_path):
    candidate = open_candidate("A", again, "cpu")
    own = commands.reading.read_own(candidate.run, 16, tmp_path / "cache", Keeper())
    assert own.split.test.any() and not notes_on_split("the run", candidate, own.split, own)
    write_seen(again, Seen(seen_by(own).test, *[np.empty((0, HASH_BYTES), np.int8)] * 2))
    split = split_by(candidate, own, lambda _: own)
    assert not split.test.any()
    assert (
        "had other pictures before, and had seen 1 of its test" in notes_on_split("the run", candidate, split, own)[0]
    )


@pytest.fixture
def unrecorded(again):
    """As a run of an earlier version."""
    (again / OWN_FILE).unlink()
    return again


def test_a_source_whose_pictures_cannot_be_reached_now_is_one_line(unrecorded, others, tmp_path, monkeypatch):
    """Later they can be: until then pictures that it was trained on might be held out."""
    run = Run.open(unrecorded)
    run.state.data = "memory://elsewhere/shards"
    run.save()

    def cut(address):
        raise NotReachedError(f"{address} cannot be read: no route to host; try again later")

    monkeypatch.setattr(shard_sets, "list_folder", cut)
    match = r"must be read, .* held out here; memory.* try again later, or leave --from out"
    with pytest.raises(UserError, match=match):
        onward(others, tmp_path / "run", unrecorded)
    assert not (tmp_path / "run").exists()


def test_a_source_whose_pictures_are_gone_is_noted(unrecorded, tmp_path, others):
    shutil.rmtree(unrecorded.parent / "pictures")
    run, console = onward(others, tmp_path / "run", unrecorded)
    assert any("so some that it was trained on may be held out here" in note for note in notes(console))
    assert not Run.open(run).state.origin.seen


# -- More time ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_in_its_folder_with_the_same_sets(again, finished, monkeypatch):
    before, split = begun(monkeypatch), (again / "split.json").read_bytes()
    old, log = products(again), (again / "log.jsonl").read_text()
    source = load(again, "cpu").stages[0].denoiser
    (again / "evaluation.json").write_text("{}")
    console = Keeper()
    commands.resume(ResumeOptions(again, budget=1e-6), console)
    run = Run.open(again)
    assert (run.state.status, run.state.part, run.state.origin.run) == ("finished", 2, "run")
    assert (again / "split.json").read_bytes() == split
    assert {path.name for path in (again / "before" / "1").iterdir()} >= {"evaluation.json", "recipe.toml", "samples"}
    assert not (again / "evaluation.json").exists() and (again / "log.jsonl").read_text().startswith(log)
    assert [event["images_seen"] for event in run.history("check", "denoiser")] == [16, 32]
    ours, theirs = (load(place, "cpu").stages[0].space.vae for place in (again, finished))
    assert all(map(torch.equal, ours.encoder.parameters(), theirs.encoder.parameters()))
    assert not all(map(torch.equal, ours.decoder.parameters(), theirs.decoder.parameters()))
    for name, value in trained_state(source).items():
        assert torch.equal(before["denoiser"]["denoiser"][name], value)
    assert products(again) != old and is_whole(again / "model")
    assert read_json(again / "plan.json")["choices"][0]["value"] == "that of run, its decoder trained further"
    assert not any(choice["by_user"] for choice in read_json(again / "plan.json")["choices"])
    assert planned_by_copy(again, again / "before" / "1")[1] is None  # that of its first part


@pytest.mark.parametrize("by_user", [False, True, None])
def test_what_was_found_of_guidance_stays_where_there_is_no_time_to_search(again, by_user):
    """Unless the user has set guidance; plans of earlier versions do not say so."""
    run = Run.open(again)
    run.state.guidance = LevelSearch(best=1.5, epsilon_scaling=0.2)
    run.save()
    plan = {**read_json(again / "plan.json"), "guidance_by_user": by_user, "guidance_samples": 0}
    write_json(again / "plan.json", plan)
    commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    kept, after = load(again, "cpu").samplings[0], read_json(again / "plan.json")
    assert after["guidance_samples"] == 0 and after["guidance_by_user"] == (by_user is not False)
    assert (kept.guidance == 1.5 and kept.epsilon_scaling == 0.2) == (by_user is False)


def test_the_prior_of_the_part_before_stays(again, monkeypatch):
    """Fitted to other draws it could be cross-fitted where it was not, or the other way round."""
    kept = contents(again / "constants" / "denoiser")

    def fitted(*given):
        raise AssertionError("a prior was fitted")

    monkeypatch.setattr("calotype.training.legs.fit_mixture", fitted)
    commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    assert Run.open(again).state.part == 2 and kept and contents(again / "constants" / "denoiser") == kept
    assert (again / "constants" / "space").is_dir() and not (again / "before" / "1" / "constants").exists()


def test_closed_forms_of_other_pictures_stay_known_as_such(again, monkeypatch):
    """In the next part, too, where they are neither cross-fitted nor fitted again."""
    run = Run.open(again)
    run.state.outdated = ["denoiser"]
    run.save()
    monkeypatch.setattr(commands.training, "produce", lambda run, *more: run.folder)
    commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    after = Run.open(again).state
    assert (after.part, after.outdated) == (2, ["denoiser"]) and after.constants == run.state.constants != {}


@pytest.mark.parametrize(
    ("crops", "augmentation", "kept"), [(0, 0.0, True), (12, 0.0, False), (0, 0.3, False)], ids=["", "searched", "set"]
)
def test_the_augmentation_level_that_was_found_stays_where_it_is_not_searched_again(crops, augmentation, kept):
    own = parse_recipe(merge(CASCADE, {"enlarge": {"16": {"sampling": {"augmentation": augmentation}}}}))
    plan = Plan(recipe=own, device="cpu", budget_seconds=1.0, level_crops={"16": crops})
    levels = {"16": LevelSearch(best=0.2), "64": LevelSearch(best=0.1)}
    expected = {"16": levels["16"]} if kept else {}
    assert extending.levels_again(RunState(levels=levels), plan) == expected


def test_other_draws_than_those_of_the_part_before(again):
    commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    seeds = [
        json.loads((place / "run.json").read_text())["settings"]["seed"] for place in (again / "before" / "1", again)
    ]
    assert seeds == [0, 1]


def test_a_process_that_dies_in_the_switch_loses_nothing(again, tmp_path, monkeypatch):
    """At each of its writes, moves and removals; whoever has the lock next finishes it."""
    with monkeypatch.context() as patch:
        patch.setattr(extending, "switch", lambda folder: None)
        patch.setattr(commands.training, "produce", lambda run, *more: run.folder)
        commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    assert Run.open(again).state.part == 1 and is_whole(again / "next") and is_whole(again / "start")

    def switched(name, calls):
        """A copy of the run in which so many calls are made before the process dies; whether it died."""
        folder, left = tmp_path / name, [calls]
        shutil.copytree(again, folder)
        with monkeypatch.context() as patch:
            for module, call in ((extending, "write_whole"), (extending, "write_json"), (extending, "remove"),
                                 (shutil, "move"), (Run, "log")):  # fmt: skip
                patch.setattr(module, call, dying(getattr(module, call), left))
            try:
                extending.switch(folder)
            except KeyboardInterrupt:
                return folder, True
        return folder, False

    whole, _ = switched("whole", -1)
    files, calls, died = contents(whole), 0, True
    assert {"before/1/recipe.toml", "before/1/run.json", "recipe.toml", "plan.json", "run.json"} <= files.keys()
    assert not any(name.startswith(("next", "checkpoints", "constants/space")) for name in files)
    while died:
        folder, died = switched(f"killed after {calls}", calls)
        extending.switch(folder)
        assert contents(folder) == files
        calls += 1
    assert calls > 8


def dying(real, left):
    def call(*given, **more):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*given, **more)

    return call


def contents(folder):
    """All files; the log may say twice that a part has begun."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != "log.jsonl"}


# -- What cannot be ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_started_from_is_one_line(finished, others, tmp_path, again):
    def refused(match, source=finished, *overrides, **more):
        with pytest.raises(UserError, match=match) as error:
            onward(others, tmp_path / "refused", source, *overrides, **more)
        assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()

    refused("is not a run: it has no run.json", others)
    refused(r"size is 32, but .* has 16; leave it out", size=32)
    refused(r"kind is cascade, but .* has latent; leave it out", kind="cascade")
    (again / "model" / "denoiser.safetensors").write_bytes(b"half")
    refused(r"the model in .* is damaged", again)
    shutil.rmtree(again / "model")
    refused(r"no model in .*: its training is not finished; try: calotype resume", again)
    with pytest.raises(UserError, match=r"space\.kind is run, but there is no run to start from; add --from RUN"):
        commands.plan(request(others, None, "space.kind=run"), Keeper())
    with pytest.raises(UserError, match=r"--out .* is not an empty folder"):
        onward(others, finished, finished)


def test_more_time_for_what_is_not_finished_or_has_changed_is_one_line(again, tmp_path, monkeypatch):
    """But ranks that torchrun has started again go on with the part that they had begun."""

    def refused(match, **more):
        before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=match) as error:
            commands.resume(ResumeOptions(again, budget=1e-6, **more), Keeper())
        assert "\n" not in str(error.value)
        assert before == {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}

    other = write_pictures(tmp_path / "other", seed=3)
    refused(r"are not those of .*: .*; put them back, or start a new run with: calotype train .* --from", data=other)
    moved = (again.parent / "pictures").rename(tmp_path / "moved")
    refused(r"were in .*, which is gone; go on with: calotype resume .* --data FOLDER")
    commands.resume(ResumeOptions(again, budget=1e-6, data=moved), Keeper())
    assert Run.open(again).state.data == str(moved)
    state = Run.open(again)
    state.state.status = "interrupted"
    state.save()
    refused(r"is interrupted, and --budget is more time for a finished run; finish it first")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    refused(r"is interrupted, and --budget is more time for a finished run; finish it first")  # of another job
    state.state.job = current_job()
    state.save()
    monkeypatch.setattr(commands.training, "_go_on", lambda run, *given: run.folder / "went on")
    assert commands.resume(ResumeOptions(again, budget=1e-6), Keeper()) == again / "went on"
    state.state.status = "finished"
    state.save()
    part = state.state.part
    assert commands.resume(ResumeOptions(again, budget=1e-6), Keeper()) == again and Run.open(again).state.part == part


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("width = 16", "width = 32", "its backbone differs"),
        ("channels = 3", "channels = 4", "its kind or autoencoder differs"),
        ('[denoiser.text]\nkind = "none"', '[denoiser.text]\nkind = "bytes"', "its text encoder differs"),
        ("", "", "plan.json"),
    ],
)
def test_more_time_for_other_networks_or_without_a_plan_is_one_line(again, before, after, why):
    """A network that starts anew would take the place of the trained one; without its plan, which legs follow the
    clock is not known."""
    text = (again / "recipe.toml").read_text()
    assert before in text
    (again / "recipe.toml").write_text(text.replace(before, after))
    if not before:
        (again / "plan.json").unlink()
    with pytest.raises(UserError, match=re.escape(why)) as error:
        commands.resume(ResumeOptions(again, budget=1e-6), Keeper())
    assert "\n" not in str(error.value) and Run.open(again).state.part == 1


# -- Previews ----------------------------------------------------------------------------------------------------------


def test_a_preview_is_of_the_averaged_weights_of_the_newest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    pictures, run = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    interrupted_at(monkeypatch, [("autoencoder", 8), ("denoiser", 12)])
    with pytest.raises(Interrupted):
        commands.train(request(pictures, run), Keeper())
    with pytest.raises(UserError, match=r"the denoiser of .* has no checkpoint yet"):
        commands.preview(PreviewOptions(run), Keeper())
    with pytest.raises(Interrupted):
        commands.resume(ResumeOptions(run), Keeper())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    console = Keeper()
    with locked(run):
        file = commands.preview(PreviewOptions(run, count=4, seed=3), console)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path != file}
    assert after == before
    assert console.printed == [f"{file}: 4 samples of the denoiser after 16 of about 32 images"]
    model, _ = commands.previewing.snapshot(run, CPU)
    stored = read_tensors(run / "checkpoints" / "denoiser-0000000016" / "denoiser.safetensors")
    weights = model.stages[0].denoiser.state_dict()
    assert all(torch.equal(weights[name.removeprefix("average.")], value)
               for name, value in stored.items() if name.startswith("average."))  # fmt: skip
    prior = read_constants(run / "constants" / "denoiser")["mixture"].state_dict()
    assert all(torch.equal(weights[f"prior.{name}"], value) for name, value in prior.items())
    commands.resume(ResumeOptions(run), Keeper())
    done, words = commands.previewing.snapshot(run, CPU)
    assert words == "the finished model" and done.sample(1)[0] == load(run, "cpu").sample(1)[0]


def test_a_preview_of_the_last_checkpoint_is_the_model(finished, again):
    """Without its model a run is as unfinished as it can be just before its end."""
    state = Run.open(again)
    state.state.status = "training"
    state.save()
    model, _ = commands.previewing.snapshot(again, CPU)
    assert model.sample(2, seed=5) == load(finished, "cpu").sample(2, seed=5)


def test_the_model_before_stands_in_for_no_damaged_and_no_chosen_checkpoint(again, finished_cascade, tmp_path):
    cascade = shutil.copytree(finished_cascade, tmp_path / "cascade")
    for folder in (again, cascade):
        state = Run.open(folder)
        state.state.status = "training"
        state.save()
    (path,) = (again / "checkpoints").glob("denoiser-*")
    (path / "denoiser.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=rf"no checkpoint of the denoiser of .* is whole: {path.name} \(.* has 4 bytes"):
        commands.previewing.snapshot(again, CPU)
    for path in (cascade / "checkpoints").glob("denoiser-*"):
        shutil.rmtree(path)
    (chosen,) = (path.name for path in (cascade / "checkpoints").glob("enlarge-16-*"))
    with pytest.raises(UserError, match=r"the denoiser of .* has no checkpoint yet"):
        commands.previewing.snapshot(cascade, CPU, chosen)
    assert commands.previewing.snapshot(cascade, CPU)[1] == "the model before it went on"


def test_a_preview_of_a_cascade_has_the_stages_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    interrupted_at(monkeypatch, [("denoiser", 12), ("enlarge-16", 12)])
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        commands.train(request(write_pictures(tmp_path / "pictures"), run, settings=CASCADE), Keeper())
    assert [stage.image_size for stage in commands.previewing.snapshot(run, CPU)[0].stages] == [8]
    with pytest.raises(Interrupted):
        commands.resume(ResumeOptions(run), Keeper())
    model, words = commands.previewing.snapshot(run, CPU)
    assert [stage.image_size for stage in model.stages] == [8, 16] and "enlarge-16 after" in words
    assert model.sample(1)[0].size == (16, 16)


# -- Long runs ---------------------------------------------------------------------------------------------------------


def test_the_log_of_a_week_is_small(tmp_path):
    run, shown = Run(tmp_path, RunState()), []
    progress = TrainProgress(10**5, 10, 0)
    log = StepLog(run, "denoiser", progress, lambda done, total, note="": shown.append(done))
    result = StepResult({"denoiser.loss": torch.tensor(0.5)}, {"denoiser": torch.tensor(1.0)})
    for seen in range(1, 10**5 + 1):
        progress.images_seen, progress.seconds = seen, 6.0 * seen  # ten steps, say
        log(progress, result)
    steps = run.history("step", "denoiser")
    assert len(steps) < 3200 and (tmp_path / "log.jsonl").stat().st_size < 2**20
    gaps = [after["seconds"] - before["seconds"] for before, after in pairwise(steps)]
    assert min(gaps) >= 2.0
    assert all(gap < 0.01 * step["seconds"] for gap, step in list(zip(gaps, steps, strict=False))[400:])
    assert steps[-1]["images_seen"] == 10**5 and len(shown) > 90_000  # the bar moves on
    assert all(step["terms"] == {"denoiser.loss": pytest.approx(0.5, rel=1e-3)} for step in steps)
