import shutil

import pytest
import torch
from small import LEGS, fingerprint
from test_files import contents, damages, every_failure

from calotype.files import is_whole, read_json, whole_folder, write_json
from calotype.priors.prior import load_trained, trained_state
from calotype.training import checkpoint
from calotype.types import UserError


def go_on(leg, until=None):
    """Trains a leg to its end, or until so many images are seen."""
    for _ in leg.steps():
        if until is not None and leg.progress.images_seen >= until:
            break
    return leg


def save(folder, leg):
    checkpoint.save(folder, leg.name, leg.states, leg.progress)


def restore(folder, leg):
    return checkpoint.restore(folder, leg.name, leg.states, leg.progress)


@pytest.fixture(scope="module")
def ends():
    """What each leg comes to without a stop."""
    return {name: fingerprint(go_on(make()).states) for name, make in LEGS.items()}


@pytest.mark.parametrize(
    ("leg", "until"), [*[("autoencoder", until) for until in (4, 12, 20, 28)], ("denoiser", 12), ("unet", 20)]
)
def test_stop_and_resume_is_the_same_to_the_bit(leg, until, ends, tmp_path):
    """Before the critic, while it learns, and while it is listened to; with crops, mirrors, dropout, label dropout."""
    save(tmp_path, go_on(LEGS[leg](), until))
    torch.manual_seed(12345), torch.randn(7)  # the past of torch's own generator is not restored, and need not be
    second = LEGS[leg]()
    for train_state in second.states.values():
        load_trained(
            train_state.network, {name: value + 1 for name, value in trained_state(train_state.network).items()}
        )
    restore(tmp_path, second)
    assert second.progress.images_seen == until
    assert fingerprint(go_on(second).states) == ends[leg]


@pytest.mark.parametrize("leg", ["autoencoder", "denoiser"])
def test_many_stops_are_the_same_to_the_bit(leg, ends, tmp_path):
    for until in (4, 8, 16, 24, None):
        now = LEGS[leg]()
        restore(tmp_path, now)
        save(tmp_path, go_on(now, until))
    assert fingerprint(now.states) == ends[leg]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of the second leg after 8 and 16 of its 32 images, and what is in them."""
    folder = tmp_path_factory.mktemp("saved")
    leg, prints = LEGS["denoiser"](), {}
    for until in (8, 16):
        save(folder, go_on(leg, until))
        prints[until] = fingerprint(leg.states)
    return folder, prints


def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved, tmp_path, ends):
    folder, prints = saved
    leg = LEGS["denoiser"]()
    assert restore(folder, leg).name == "denoiser-0000000016" and fingerprint(leg.states) == prints[16]
    shutil.copytree(folder, tmp_path / "damaged")
    newest = tmp_path / "damaged" / "denoiser-0000000016"
    for path, damaged in damages(newest):
        sound = path.read_bytes()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert restore(tmp_path / "damaged", leg).name == "denoiser-0000000008"
        assert fingerprint(leg.states) == prints[8] and leg.progress.images_seen == 8
        path.write_bytes(sound)
    assert fingerprint(go_on(leg).states) == ends["denoiser"]


def damage(folder, *images):
    """Takes the state of these checkpoints away; returns what puts it back."""
    states = {path: path.read_bytes() for one in images if (path := folder / f"denoiser-{one:010d}" / "state.json")}
    for path in states:
        path.unlink()
    return lambda: [path.write_bytes(content) for path, content in states.items()]


def test_a_damaged_checkpoint_outlives_what_is_saved_before_it_and_no_longer(saved, tmp_path, ends):
    """Who puts the missing file back goes on from it; until then each restore names it."""
    folder = shutil.copytree(saved[0], tmp_path / "damaged")
    put_back = damage(folder, 16)
    first, second, warnings = LEGS["denoiser"](), LEGS["denoiser"](), []
    assert checkpoint.restore(folder, first.name, first.states, first.progress, warnings.append).name.endswith("08")
    assert warnings == [
        "checkpoint denoiser-0000000016 is damaged (state.json is missing); using denoiser-0000000008 instead"
    ]
    save(folder, go_on(first, 12))
    assert names(folder) == [f"denoiser-{images:010d}" for images in (8, 12, 16)]
    assert restore(folder, second).name == "denoiser-0000000012"
    put_back()
    assert restore(folder, second).name == "denoiser-0000000016"
    damage(folder, 16)
    restore(folder, second)
    save(folder, go_on(second, 20))
    assert names(folder) == ["denoiser-0000000012", "denoiser-0000000020"]
    assert fingerprint(go_on(second).states) == ends["denoiser"]


def test_where_all_are_damaged_all_are_named_and_nothing_is_changed(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "damaged")
    damage(folder, 16)
    weights = folder / "denoiser-0000000008" / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before, leg = contents(folder), LEGS["denoiser"]()
    untouched = fingerprint(leg.states)
    with pytest.raises(UserError, match=r"no checkpoint of the denoiser in .* is whole") as error:
        restore(folder, leg)
    message = str(error.value)
    assert "denoiser-0000000016 is damaged (state.json is missing)" in message and "\n" not in message
    assert "denoiser-0000000008 is damaged (denoiser.safetensors has" in message and "instead of" in message
    assert contents(folder) == before and fingerprint(leg.states) == untouched and leg.progress.images_seen == 0


def test_the_newest_is_that_of_the_most_images(saved, tmp_path):
    """In the order of letters 10,000,000,000 comes before 8; and a leg is not another whose name begins like it."""
    folder = shutil.copytree(saved[0], tmp_path / "many")
    (folder / "denoiser-0000000016").rename(folder / "denoiser-10000000000")
    shutil.copytree(folder / "denoiser-0000000008", folder / "denoiser-64-0000000008")
    found = checkpoint.checkpoints(folder, "denoiser")
    assert [path.name for path in found] == ["denoiser-0000000008", "denoiser-10000000000"]
    assert restore(folder, LEGS["denoiser"]()).name == "denoiser-10000000000"


def test_two_are_kept_and_other_legs_are_left_alone(tmp_path):
    leg, other = LEGS["denoiser"](), LEGS["autoencoder"]()
    save(tmp_path, other)
    (tmp_path / ".denoiser-0000000099.123.tmp").mkdir()  # of a process that was killed while it saved
    (tmp_path / ".autoencoder-0000000099.123.tmp").mkdir()
    for until in (4, 8, 12):
        save(tmp_path, go_on(leg, until))
    assert names(tmp_path) == [
        ".autoencoder-0000000099.123.tmp", "autoencoder-0000000000", "denoiser-0000000008", "denoiser-0000000012",
    ]  # fmt: skip


def test_nothing_saved_is_nothing_restored(tmp_path):
    leg = LEGS["denoiser"]()
    before = fingerprint(leg.states)
    assert restore(tmp_path / "not there", leg) is None
    assert fingerprint(leg.states) == before and leg.progress.images_seen == 0


@pytest.mark.parametrize("again", [False, True], ids=["a new one", "the same once more"])
def test_a_save_that_fails_leaves_the_one_before(saved, tmp_path, again):
    """Wherever the disk is full: the checkpoints before are whole, and no half of the new one lies about."""
    folder, prints = saved
    leg = LEGS["denoiser"]()
    restore(folder, leg)
    if not again:
        go_on(leg, 20)
    new = f"denoiser-{leg.progress.images_seen:010d}"

    def work(fails_at):
        place = tmp_path / str(fails_at)
        shutil.copytree(folder, place)
        if fails_at is None:
            save(place, leg)
        else:
            with pytest.raises((OSError, UserError), match=r"No space|more, then go on with: calotype resume"):
                save(place, leg)
        assert names(place) in (names(folder), sorted({*names(folder), new}), ["denoiser-0000000016", new])
        assert all(is_whole(path) for path in place.iterdir())
        found = LEGS["denoiser"]()
        assert restore(place, found).name in ("denoiser-0000000016", new)
        assert fingerprint(found.states) in (prints[16], fingerprint(leg.states))

    every_failure(work, (checkpoint, "write_tensors"))


def test_a_save_is_the_same_every_time(saved, tmp_path):
    folder, _ = saved
    leg = LEGS["denoiser"]()
    restore(folder, leg)
    save(tmp_path, leg)
    before, after = (contents(place / "denoiser-0000000016") for place in (folder, tmp_path))
    assert before["denoiser.safetensors"] == after["denoiser.safetensors"]


def test_a_checkpoint_that_says_nothing_of_a_network_is_damaged(saved, tmp_path, ends):
    """But of the critic's guard, which those of earlier versions do not have."""
    folder, prints = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with whole_folder(tmp_path / "denoiser-0000000016") as path:
        for file in (folder / "denoiser-0000000016").iterdir():
            shutil.copy(file, path)
        (path / "manifest.json").unlink()
        write_json(path / "state.json", {**read_json(path / "state.json"), "steps": {}})
    leg, noted = LEGS["denoiser"](), []
    assert checkpoint.restore(tmp_path, leg.name, leg.states, leg.progress, noted.append).name == "denoiser-0000000008"
    assert fingerprint(leg.states) == prints[8] and "state.json says nothing of the denoiser" in noted[0]
