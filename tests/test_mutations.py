"""A few hundred pictures and files of captions with changed bytes; `make proofs` reads 10,000 of each."""

import os
import time

import mutations
import pytest
from small import Keeper, write_pictures

from calotype.cli.commands import check_data
from calotype.cli.options import CheckOptions
from calotype.data.captions import read_captions
from calotype.data.images import UnreadableError, deep_range, read_picture

COUNT = int(os.environ.get("MUTATIONS", "400"))
SEED = os.environ.get("SEED", "")
SECONDS = 5.0
pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow; the package itself does not show them


def outcome(work, *arguments):
    try:
        work(*arguments)
    except UnreadableError as error:
        return error.reason
    return "read"


def test_changed_pictures_are_read_or_refused_in_one_line_and_nothing_else_is_written(tmp_path, capfd):
    slowest = 0.0
    for name, content in mutations.mutations(mutations.pictures(), COUNT, f"pictures{SEED}"):
        (path := tmp_path / name).write_bytes(content)
        for work in ((read_picture, path, 48), (read_picture, path), (deep_range, path)):
            start = time.process_time()
            assert outcome(*work).isprintable(), name
            slowest = max(slowest, time.process_time() - start)
        path.unlink()
    assert slowest < SECONDS
    assert capfd.readouterr() == ("", "")


def test_the_check_names_every_picture_that_it_refuses(tmp_path):
    write_pictures(tmp_path, count=4, classes=())
    refused = []
    for name, content in mutations.mutations(mutations.pictures(), COUNT // 4, f"check{SEED}"):
        (tmp_path / name).write_bytes(content)
        refused += [name] if outcome(read_picture, tmp_path / name, 16) != "read" else []  # whole ones may be too large
    console = Keeper()
    found = check_data(CheckOptions(tmp_path, 16), console)
    assert sorted(found.refused) == sorted(refused) and len(found.pictures) + len(refused) == 4 + COUNT // 4
    assert all(any(f" {name}: " in line for line in console.printed) for name in refused)


@pytest.mark.parametrize("name", mutations.captions("0.png"))
def test_changed_files_of_captions_are_read_or_named(tmp_path, name):
    whole = mutations.captions("0.png")[name]
    for index, (_, content) in enumerate(mutations.mutations({name: whole}, COUNT // 8, f"captions{SEED}")):
        (folder := tmp_path / str(index)).mkdir()
        (folder / name).write_bytes(content)
        of, found = read_captions(folder, ["0.png"])
        notes = found.notes(["0.png"])
        assert all(note.isprintable() for note in notes)
        assert of or notes or name.endswith(".txt") or not found.files, content
