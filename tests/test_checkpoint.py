import contextlib
import shutil

import pytest
import torch
from small import LEGS, fingerprint
from test_files import contents, damages, every_failure

from calotype.files import is_whole
from calotype.learning import checkpoint
from calotype.learning.train import Chore, train
from calotype.nets.fitted import load_trained, trained_state


class Stop(Exception):  # noqa: N818
    pass


def go_on(leg, until=None, chores=()):
    """Trains a leg to its end, or until so many images are seen."""

    def stop(clock, news):
        raise Stop

    stops = [Chore(lambda clock: until is not None and clock.images_seen >= until, stop)]
    with contextlib.suppress(Stop):
        train(leg.objective, leg.players, leg.source, leg.clock, [*chores, *stops])
    return leg


def save(folder, leg):
    checkpoint.save(folder, leg.name, leg.players, leg.clock)


def restore(folder, leg):
    return checkpoint.restore(folder, leg.name, leg.players, leg.clock)


@pytest.fixture(scope="module")
def ends():
    """What each leg comes to without a stop."""
    return {name: fingerprint(go_on(make()).players) for name, make in LEGS.items()}


@pytest.mark.parametrize(
    ("leg", "until"), [*[("autoencoder", until) for until in (4, 12, 20, 28)], ("denoiser", 12), ("unet", 20)]
)
def test_stop_and_resume_is_the_same_to_the_bit(leg, until, ends, tmp_path):
    """Before the critic, while it learns, and while it is listened to; with crops, mirrors, dropout, label dropout."""
    save(tmp_path, go_on(LEGS[leg](), until))
    torch.manual_seed(12345), torch.randn(7)  # the past of torch's own generator is not restored, and need not be
    second = LEGS[leg]()
    for player in second.players.values():
        load_trained(player.network, {name: value + 1 for name, value in trained_state(player.network).items()})
    restore(tmp_path, second)
    assert second.clock.images_seen == until
    assert fingerprint(go_on(second).players) == ends[leg]


@pytest.mark.parametrize("leg", ["autoencoder", "denoiser"])
def test_many_stops_are_the_same_to_the_bit(leg, ends, tmp_path):
    for until in (4, 8, 16, 24, None):
        now = LEGS[leg]()
        restore(tmp_path, now)
        save(tmp_path, go_on(now, until))
    assert fingerprint(now.players) == ends[leg]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of the second leg after 8 and 16 of its 32 images, and what is in them."""
    folder = tmp_path_factory.mktemp("saved")
    leg, prints = LEGS["denoiser"](), {}
    for until in (8, 16):
        save(folder, go_on(leg, until))
        prints[until] = fingerprint(leg.players)
    return folder, prints


def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved, tmp_path, ends):
    folder, prints = saved
    leg = LEGS["denoiser"]()
    assert restore(folder, leg).name == "denoiser-0000000016" and fingerprint(leg.players) == prints[16]
    shutil.copytree(folder, tmp_path / "damaged")
    newest = tmp_path / "damaged" / "denoiser-0000000016"
    for path, damaged in damages(newest):
        sound = path.read_bytes()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert restore(tmp_path / "damaged", leg).name == "denoiser-0000000008"
        assert fingerprint(leg.players) == prints[8] and leg.clock.images_seen == 8
        path.write_bytes(sound)
    assert fingerprint(go_on(leg).players) == ends["denoiser"]


@pytest.mark.parametrize(("damaged", "until"), [((16,), 12), ((8, 16), 4), ((8, 16), 12)])
def test_what_is_saved_after_a_fall_back_outlives_the_damaged(saved, tmp_path, damaged, until, ends):
    """Or the next stop would start from nothing once more."""
    folder = shutil.copytree(saved[0], tmp_path / "damaged")
    for images in damaged:
        (folder / f"denoiser-{images:010d}" / "state.json").unlink()
    first, second = LEGS["denoiser"](), LEGS["denoiser"]()
    assert (restore(folder, first) is None) == (len(damaged) == 2)
    save(folder, go_on(first, until))
    assert restore(folder, second).name == f"denoiser-{until:010d}"
    assert fingerprint(go_on(second).players) == ends["denoiser"]


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
    before = fingerprint(leg.players)
    assert restore(tmp_path / "not there", leg) is None
    assert fingerprint(leg.players) == before and leg.clock.images_seen == 0


@pytest.mark.parametrize("again", [False, True], ids=["a new one", "the same once more"])
def test_a_save_that_fails_leaves_the_one_before(saved, tmp_path, again):
    """Wherever the disk is full: the checkpoints before are whole, and no half of the new one lies about."""
    folder, prints = saved
    leg = LEGS["denoiser"]()
    restore(folder, leg)
    if not again:
        go_on(leg, 20)
    new = f"denoiser-{leg.clock.images_seen:010d}"

    def work(fails_at):
        place = tmp_path / str(fails_at)
        shutil.copytree(folder, place)
        if fails_at is None:
            save(place, leg)
        else:
            with pytest.raises(OSError, match="No space"):
                save(place, leg)
        assert names(place) in (names(folder), sorted({*names(folder), new}), ["denoiser-0000000016", new])
        assert all(is_whole(path) for path in place.iterdir())
        found = LEGS["denoiser"]()
        assert restore(place, found).name in ("denoiser-0000000016", new)
        assert fingerprint(found.players) in (prints[16], fingerprint(leg.players))

    every_failure(work, (checkpoint, "write_tensors"))


def test_a_save_is_the_same_every_time(saved, tmp_path):
    folder, _ = saved
    leg = LEGS["denoiser"]()
    restore(folder, leg)
    save(tmp_path, leg)
    before, after = (contents(place / "denoiser-0000000016") for place in (folder, tmp_path))
    assert before["denoiser.safetensors"] == after["denoiser.safetensors"]
