"""What has changed between the stop of a run and its end: noticed, named, and allowed where harmless or asked for."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from small import CASCADE, Keeper, be_quick, machine, recipe, request, write_pictures
from test_never_loses_work import stopped_run
from test_train import interrupted_at, products

from calotype.cli import commands
from calotype.cli.commands import resuming
from calotype.cli.commands.resuming import labels_hash
from calotype.cli.options import ResumeOptions
from calotype.data.folder import read_folder
from calotype.data.seen import OWN_FILE, SET_NAMES, continued_split, read_seen, seen_by, write_seen
from calotype.data.split import is_split_of, write_split
from calotype.files import is_whole, read_json, read_tensors, write_json
from calotype.model import load
from calotype.run import Run, RunState
from calotype.settings import parse_recipe
from calotype.tables import differences, merge
from calotype.training import fitting, legs
from calotype.training.process import Interrupted
from calotype.types import UserError


@pytest.fixture(scope="module")
def stopped_before(tmp_path_factory):
    """A run that was stopped in its first leg, in `run`, on the pictures in `pictures`."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        stopped_run(write_pictures(place / "pictures"), patch)
    return place


@pytest.fixture
def run(stopped_before, tmp_path, monkeypatch):
    """A copy of it, with pictures of its own."""
    be_quick(monkeypatch)
    shutil.copytree(stopped_before, tmp_path, dirs_exist_ok=True)
    state = read_json(tmp_path / "run" / "run.json")
    write_json(tmp_path / "run" / "run.json", {**state, "data": str(tmp_path / "pictures")})
    return tmp_path / "run"


@pytest.fixture
def unproduced(monkeypatch):
    """Nothing is trained; what is known before that is saved."""
    monkeypatch.setattr(commands.training, "produce", lambda run, *more: run.save() or run.folder)


def resume(run, data=None):
    console = Keeper()
    commands.resume(ResumeOptions(run, data=data), console)
    return console.printed


# -- Pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_that_have_moved_are_asked_for_and_then_remembered(run, finished):
    moved = (run.parent / "pictures").rename(run.parent / "elsewhere")
    with pytest.raises(UserError, match=r"which is gone; go on with: calotype resume .* --data FOLDER"):
        resume(run)
    printed = resume(run, moved)
    assert any("the pictures are in" in line and "and were in" in line for line in printed)
    assert products(run) == products(finished) and Run.open(run).state.data == str(moved)


def test_pictures_that_have_changed_are_refused_named_and_taken_when_asked_for(run, unproduced):
    next((run.parent / "pictures").rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"have changed: there are 9 instead of 10 since .* --data .*pictures"):
        resume(run)
    assert any("there are 9 instead of 10" in line for line in resume(run, run.parent / "pictures"))
    state, split = Run.open(run).state, read_json(run / "split.json")
    assert split["count"] == 9 and state.pictures == {
        name: len(split[name]) for name in ("train", "validation", "test")
    }
    noted = [event["text"] for event in Run.open(run).events if event["event"] == "note"]
    assert any("9 of them are in the sets in which they were before" in text for text in noted)
    assert not any("have changed" in line for line in resume(run))


def test_a_picture_in_another_class_is_a_change(run):
    path = next((run.parent / "pictures" / "a").iterdir())
    path.rename(run.parent / "pictures" / "b" / f"moved-{path.name}")
    with pytest.raises(UserError, match=r"have changed: some pictures, labels or captions were replaced since"):
        resume(run)


def test_pictures_of_other_classes_are_refused_also_when_asked_for(run):
    others = write_pictures(run.parent / "others")
    next(path for path in others.iterdir() if path.is_dir()).rename(others / "new")
    with pytest.raises(UserError, match=r"--data .*others has the classes .*new.*, but .* was started with"):
        resume(run, others)


SMALL = recipe(split={"validation": 0.1, "test": 0.2})


def begun(place, pictures):
    """A run in `place / "run"` that has read the folder `pictures`, and has trained nothing."""
    read = read_folder(pictures, 16, rule=continued_split(None, SMALL.split))
    state = RunState(
        name="run", data=str(pictures), content=read.content, labels=labels_hash(read), pictures=read.split.counts,
        split={"version": 1, "validation": 0.1, "test": 0.2}, classes=list(read.classes), status="interrupted",
        legs={"autoencoder": "training"},
    )  # fmt: skip
    Run(place / "run", state).save()
    write_split(place / "run", read.split, read.content)
    write_seen(place / "run", seen_by(read), OWN_FILE)
    return read


def sets_by_file(pictures):
    rows = {name: inside.nonzero().flatten().tolist() for name, inside in pictures.split.sets.items()}
    return {name: {pictures.originals[row].path.name for row in own} for name, own in rows.items()}


def test_a_run_on_other_pictures_keeps_the_sets_that_subfolders_name(tmp_path):
    folder = tmp_path / "pictures"
    for place, (name, count) in enumerate((("train", 20), ("val", 6), ("test", 8))):
        write_pictures(folder / name, count, seed=place)
    begun(tmp_path, folder)
    more = write_pictures(tmp_path / "more", 2, classes=(), seed=9)
    for number, name in enumerate(("train", "test")):
        shutil.copy(more / f"{number}.png", folder / name / "a" / "new.png")
    pictures = resuming.read_again(Run.open(tmp_path / "run"), SMALL, folder, Keeper())
    of = {"train": "train", "validation": "val", "test": "test"}
    for name, inside in pictures.split.sets.items():
        rows = inside.nonzero().flatten().tolist()
        assert rows and {pictures.originals[row].path.parents[1].name for row in rows} == {of[name]}


def test_a_run_remembers_what_it_was_trained_on_before_it_got_other_pictures(tmp_path):
    old = sets_by_file(begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=())))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    for file in write_pictures(tmp_path / "more", 60, classes=(), seed=5).iterdir():
        shutil.copy(file, tmp_path / "new" / f"new-{file.name}")
    console, run = Keeper(), Run.open(tmp_path / "run")
    pictures = resuming.read_again(run, SMALL, tmp_path / "new", console)
    new = sets_by_file(pictures)
    assert all(old[name] < new[name] for name in old)
    assert any("40 of them are in the sets in which they were before" in line for line in console.printed)
    assert run.state.pictures == pictures.split.counts and read_seen(run.folder, OWN_FILE) is None
    seen = read_seen(run.folder)
    assert [len(getattr(seen, name)) for name in SET_NAMES] == [len(old[name]) for name in SET_NAMES]
    for _ in range(2):  # those that it has now may go, and come back
        again = resuming.read_again(Run.open(run.folder), SMALL, tmp_path / "old", Keeper())
        assert sets_by_file(again) == old


def test_a_run_that_got_other_pictures_ends_and_knows_both(run):
    new = write_pictures(run.parent / "more", 1, classes=(), seed=9) / "0.png"
    shutil.copy(new, run.parent / "pictures" / "a" / "new.png")
    resume(run, run.parent / "pictures")
    own, seen, state = read_seen(run, OWN_FILE), read_seen(run), Run.open(run).state
    assert state.status == "finished" and len(own.train) == len(seen.train) + 1 == state.pictures["train"]


@pytest.mark.parametrize("point", ["save", "write_split"])
def test_a_kill_while_a_run_gets_other_pictures_leaves_no_split_of_others(tmp_path, monkeypatch, point):
    """Of as many pictures as before, too."""
    old = sets_by_file(begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=())))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.copy(write_pictures(tmp_path / "more", 1, classes=(), seed=5) / "0.png", tmp_path / "new" / "0.png")

    def killed(*more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((Run, "save") if point == "save" else (resuming, "write_split")), killed)
        resuming.read_again(Run.open(tmp_path / "run"), SMALL, tmp_path / "new", Keeper())
    console = Keeper()
    pictures = resuming.read_again(Run.open(tmp_path / "run"), SMALL, None, console)
    sets, changed = sets_by_file(pictures), point == "write_split"
    assert any("was cut short, and is finished now" in line for line in console.printed) == changed
    assert all(old[name] - {"0.png"} <= sets[name] for name in sets) and (changed or sets == old)
    assert pictures.originals[0].path.parent.name == ("new" if changed else "old")
    assert is_split_of(tmp_path / "run", {pictures.content}, len(pictures))


def test_what_was_fitted_and_chosen_by_other_pictures_is_forgotten_where_no_checkpoint_needs_it(tmp_path):
    begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=()))
    run = Run.open(tmp_path / "run")
    best = {"best": {"images_seen": 1, "held_out_loss": 1.0, "train_loss": 1.0}}
    run.state.legs = {"autoencoder": "finished", "denoiser": "training", "enlarge-32": "waiting"}
    run.state.constants = {"denoiser": "0", "enlarge-32": "1"}
    run.state.validation = dict.fromkeys(run.state.legs, best)
    for name in ("constants/denoiser", "constants/enlarge-32", "checkpoints/denoiser-0000000010"):
        (run.folder / name).mkdir(parents=True)
    (tmp_path / "old" / "0.png").unlink()
    resuming.read_again(run, SMALL, tmp_path / "old", console := Keeper())
    assert any("denoiser: its closed form stays that of the earlier pictures" in line for line in console.printed)
    assert [path.name for path in (run.folder / "constants").iterdir()] == ["denoiser"]
    assert [*run.state.constants] == ["denoiser"] and [*run.state.validation] == ["autoencoder"]
    assert run.state.outdated == ["denoiser"]


def test_the_closed_form_of_a_finished_leg_is_known_to_be_of_other_pictures(tmp_path):
    """For the next part of the run, whose denoiser would else be cross-fitted by halves of the earlier pictures."""
    begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=()))
    run = Run.open(tmp_path / "run")
    run.state.legs, run.state.constants = {"autoencoder": "finished", "denoiser": "finished"}, {"denoiser": "0"}
    (tmp_path / "old" / "0.png").unlink()
    resuming.read_again(run, SMALL, tmp_path / "old", Keeper())
    assert run.state.outdated == ["denoiser"] == [*run.state.constants]


def test_in_a_later_part_closed_forms_stay_before_its_first_checkpoint(tmp_path):
    """Its networks go on from those of the part before, which learned beside them."""
    begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=()))
    run = Run.open(tmp_path / "run")
    run.state.part, run.state.legs = 2, {"autoencoder": "waiting", "denoiser": "waiting"}
    run.state.constants = {"denoiser": "0"}
    (run.folder / "constants" / "denoiser").mkdir(parents=True)
    (tmp_path / "old" / "0.png").unlink()
    resuming.read_again(run, SMALL, tmp_path / "old", Keeper())
    assert run.state.outdated == ["denoiser"] and (run.folder / "constants" / "denoiser").is_dir()
    with pytest.raises(UserError, match="the denoiser was trained with it: put it back from a copy, or start a new"):
        fitting.keep(run, "denoiser", dict)


def test_a_denoiser_that_was_trained_keeps_its_space_and_is_not_cross_fitted_on_other_pictures(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    run, crossed = tmp_path / "run", []
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_at(patch, [("denoiser", 8)])
        commands.train(request(write_pictures(tmp_path / "pictures"), run), Keeper())
    before = read_tensors(run / "constants" / "space" / "space.safetensors")
    for file in write_pictures(tmp_path / "more", 8, classes=(), seed=9).iterdir():
        shutil.copy(file, tmp_path / "pictures" / "a" / f"new-{file.name}")
    monkeypatch.setattr(legs, "cross_fitted", lambda *constants: crossed.append(constants))
    resume(run, tmp_path / "pictures")
    assert Run.open(run).state.status == "finished" and not crossed
    space = load(run, "cpu").stages[0].space
    assert all(torch.equal(getattr(space, name), before[name]) for name in ("mean", "spread"))


@pytest.mark.parametrize("kind", ["none", "bytes"])
def test_a_caption_is_a_change_only_where_captions_are_read(tmp_path, kind):
    pictures, read = write_pictures(tmp_path / "old", 40, classes=()), recipe(denoiser={"text": {"kind": kind}})
    (pictures / "1.txt").write_text("a cat")
    own = begun(tmp_path, pictures)
    run = Run.open(tmp_path / "run")
    run.state.content, run.state.uncaptioned = own.content, resuming.uncaptioned(own, read)
    run.save()
    (pictures / "1.txt").write_text("a dog")
    (pictures / "2.txt").write_text("a cow")
    changed = read_folder(pictures, 16)
    assert resuming.is_same(run, changed) == (kind == "none") and resuming.is_same(run, own)
    known = commands.reading.read_own(run, 16, tmp_path / "cache", Keeper())
    assert (known is not None) == (kind == "none")
    (pictures / "0.png").unlink()
    assert not resuming.is_same(run, read_folder(pictures, 16))


@pytest.mark.parametrize(("before", "after"), [("none", "bytes"), ("bytes", "none")])
def test_captions_belong_to_a_run_as_its_recipe_reads_them_now(tmp_path, before, after):
    pictures, console = write_pictures(tmp_path / "old", 40, classes=()), Keeper()
    (pictures / "1.txt").write_text("a cat")
    old, now = (recipe(denoiser={"text": {"kind": kind}}, split=SMALL.split.model_dump()) for kind in (before, after))
    own, run = begun(tmp_path, pictures), Run.open(tmp_path / "run")
    run.state.uncaptioned = resuming.uncaptioned(own, old)
    run.save()
    write_split(run.folder, own.split, run.state.uncaptioned or own.content)

    def again(text, recorded):
        (pictures / "1.txt").write_text(text)
        run = Run.open(tmp_path / "run")
        found = resuming.read_again(run, now, None, console)
        if recorded:
            resuming.note_captions(run, now, found)

    for text in ("a dog", "a cow"):  # not before it is recorded that they are not read
        with pytest.raises(UserError, match="some pictures, labels or captions were replaced"):
            again(text, True)
    again("a cat", True)
    if after == "none":
        again("a dog", False)
    else:
        with pytest.raises(UserError, match="some pictures, labels or captions were replaced"):
            again("a dog", False)
    assert not console.printed


def test_a_run_without_its_split_is_one_line(tmp_path):
    begun(tmp_path, pictures := write_pictures(tmp_path / "old", 40, classes=()))
    run = Run.open(tmp_path / "run")
    (run.folder / "split.json").unlink()
    for data in (None, pictures):
        with pytest.raises(UserError, match=r"run/split\.json is missing, which says on which .*; put it back"):
            resuming.read_again(run, SMALL, data, Keeper())


def test_other_pictures_are_split_by_the_fractions_of_the_run(tmp_path):
    begun(tmp_path, write_pictures(tmp_path / "old", 40, classes=()))
    others = write_pictures(tmp_path / "others", 40, classes=(), seed=3)
    read = commands.reading.read_as_run(Run.open(tmp_path / "run"), others, 16, tmp_path / "cache", Keeper())
    assert read.split.counts == {"train": 28, "validation": 4, "test": 8}


# -- Settings ----------------------------------------------------------------------------------------------------------


def edit(run, before, after):
    text = (run / "recipe.toml").read_text()
    assert text.count(before) >= 1
    (run / "recipe.toml").write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("seed = 0", "seed = 1", "seed was 0"),
        ("flip = true", "flip = false", "flip was True"),
        ("crop = 12", "crop = 8", "autoencoder.crop was 12"),
        ('optimizer = "adamw"', 'optimizer = "muon"', "autoencoder.learn.optimizer was 'adamw'"),
        ("channels = 3", "channels = 4", "autoencoder.network.channels was 3"),
    ],
)
def test_a_setting_with_which_a_leg_was_trained_must_be_put_back(run, before, after, key):
    edit(run, before, after)
    with pytest.raises(UserError, match=f"{key} when .* was started, and is .* in its recipe.toml; put it back"):
        resume(run)


def test_a_run_that_says_nothing_of_a_leg_is_damaged(tmp_path):
    run = Run(tmp_path, RunState(legs={"denoiser": "waiting"}))
    with pytest.raises(UserError, match=r"run\.json is damaged: legs says nothing of autoencoder; put the file back"):
        resuming.note_changes(run, recipe(), "cpu", machine(), Keeper())


def test_a_leg_that_recipe_toml_has_got_is_named_by_its_setting(tmp_path):
    before = parse_recipe(CASCADE)
    run = Run(tmp_path, RunState(legs=dict.fromkeys(before.legs, "training"), settings=before.model_dump(mode="json")))
    after = parse_recipe(merge(CASCADE, {"enlarge": {"16": {"exposure": {"images": 8}}}}))
    with pytest.raises(UserError, match=r"enlarge\.16\.exposure\.images was 0 when .* and is 8 .*; put it back"):
        resuming.note_changes(run, after, "cpu", machine(), Keeper())


def test_other_settings_are_named_and_taken(run, unproduced):
    settings = Run.open(run).state.settings
    edit(run, "steps = 3", "steps = 2")
    edit(run, "learning_rate = 0", "learning_rate = 1")  # of the autoencoder, which is in training
    edit(run, "width = 16", "width = 32")  # of the denoiser, which waits
    printed = resume(run)
    changed = differences(settings, Run.open(run).state.settings)
    assert {"sampling.steps", "denoiser.backbone.width"} < changed.keys() and len(changed) == 3
    assert all(any(f"{key} was " in line and "goes on with it" in line for line in printed) for key in changed)
    assert not any("goes on with it" in line for line in resume(run))  # once is enough


def test_a_run_of_an_earlier_version_has_no_settings_to_compare_but_its_networks_must_fit(run):
    state = read_json(run / "run.json")
    del state["settings"]
    write_json(run / "run.json", state)
    edit(run, "channels = 3", "channels = 4")
    with pytest.raises(UserError, match=r"linear_in.weight is \[3, .* its settings make it \[4, "):
        resume(run)


def test_another_machine_is_named(run, unproduced, monkeypatch):
    assert not any("may differ" in line or "keeps" in line for line in resume(run))
    monkeypatch.setattr(resuming.torch, "__version__", "0.9")
    monkeypatch.setattr(commands.training, "examine", lambda device, threads: replace(machine(), threads=64))
    printed = resume(run)
    assert any("goes on with torch 0.9 instead of" in line for line in printed)
    assert any("keeps its 64 threads" in line for line in printed)


# -- The disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_stops_the_run_before_a_checkpoint_is_begun(run, monkeypatch, finished):
    usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    before = sorted((run / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"takes .* MB, but only 0.0 MB are free .* MB more, then go on with"):
        resume(run)
    assert sorted((run / "checkpoints").iterdir()) == before and all(map(is_whole, before))
    assert Run.open(run).state.status == "failed"
    monkeypatch.setattr("shutil.disk_usage", usage)
    resume(run)
    assert products(run) == products(finished)
