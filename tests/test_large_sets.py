"""What is sampled of a large set, and what is counted of all of it."""

import time

from small import SETTINGS, be_quick, machine, write_pictures

from calotype.data.folder import read_folder
from calotype.planning.make import make_plan


def test_a_plan_of_a_sample_counts_all_pictures(tmp_path, monkeypatch):
    """As one that has read them all does: what the disk must hold, and how many are trained on."""
    folder = write_pictures(tmp_path / "pictures", 60)
    some, every = read_folder(folder, 16, most=10), read_folder(folder, 16)
    assert len(some) == 10 and some.total == len(every) == every.total == 60
    assert some.classes == every.classes and "of 10 pictures, evenly spaced, of 60" in " ".join(some.notes)
    assert {row.numpy().tobytes() for row in some.pixels} < {row.numpy().tobytes() for row in every.pixels}
    be_quick(monkeypatch)
    sampled, whole = (make_plan(each, machine(), 3600.0, time.time(), SETTINGS).predicted for each in (some, every))
    assert sampled["disk_bytes"] == whole["disk_bytes"] and sampled["images"].keys() == whole["images"].keys()
    assert some.trained == 60 - (10 - len(some.train_indices))


def test_a_set_of_up_to_twice_the_sample_is_read_whole(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 20)
    assert read_folder(folder, 16, most=10).sampled_from is None
