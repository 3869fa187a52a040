import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.data.folder import read_folder
from calotype.demo import portraits as module
from calotype.demo.portraits import STYLES, read_portraits, write_portraits
from calotype.types import UserError

SIZE, COUNT = 16, 20


@pytest.fixture(scope="session")
def members():
    return list(module._members())


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch, members):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_members", lambda: iter(members))  # unpacking takes a second


@pytest.fixture
def written(tmp_path):
    write_portraits(SIZE, COUNT, tmp_path / "portraits")
    return tmp_path / "portraits"


def test_the_archive_holds_1500_drawings_of_each_style(members):
    drawings = [name for name, _ in members if name.endswith(".svg")]
    assert Counter(name.split("/")[0] for name in drawings) == dict.fromkeys(STYLES, 1500)
    assert len(drawings) == module.PORTRAIT_COUNT


def test_portraits_are_spread_evenly_over_the_styles():
    pictures = read_portraits(SIZE, COUNT)
    assert pictures.pixels.shape == (COUNT, 3, SIZE, SIZE) and pictures.classes == STYLES
    assert sorted(pictures.labels.bincount().tolist()) == [3, 3, 3, 3, 4, 4]
    assert len(pictures.test_indices) == 2 and len(pictures.validation_indices) == 1


def test_fewer_portraits_are_the_first_of_more():
    few, more = read_portraits(SIZE, 7), read_portraits(SIZE, COUNT)
    assert {row.numpy().tobytes() for row in few.pixels} < {row.numpy().tobytes() for row in more.pixels}
    assert few.content != more.content


def test_a_second_reading_draws_nothing(monkeypatch):
    first = read_portraits(SIZE, COUNT)
    monkeypatch.setattr(module, "_members", None)
    second = read_portraits(SIZE, COUNT)
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)
    assert (first.content, first.notes) == (second.content, second.notes)


def test_without_a_place_to_keep_them_portraits_are_drawn_all_the_same(tmp_path, monkeypatch):
    kept = read_portraits(SIZE, COUNT)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert torch.equal(read_portraits(SIZE, COUNT).pixels, kept.pixels)


def test_a_written_portrait_is_the_one_that_is_read(written):
    from_files, embedded = read_folder(written, SIZE), read_portraits(SIZE, COUNT)
    assert from_files.classes == STYLES
    for label in range(len(STYLES)):
        ours, theirs = (pictures.pixels[pictures.labels == label] for pictures in (from_files, embedded))
        assert {row.numpy().tobytes() for row in ours} == {row.numpy().tobytes() for row in theirs}


def test_written_portraits_bring_their_licence_and_what_is_drawn_on_them(written):
    assert "CC BY 4.0" in (written / "LICENSE.md").read_text()
    assert {path.name for path in written.iterdir()} == {"LICENSE.md", *STYLES}
    assert len(list(written.rglob("*.png"))) == COUNT
    for style in STYLES:
        facts = [json.loads(line) for line in (written / style / "metadata.jsonl").read_text().splitlines()]
        assert {fact["file_name"] for fact in facts} == {path.name for path in (written / style).glob("*.png")}
        assert {fact["style"] for fact in facts} == {style}


def test_other_processes_draw_as_this_one_does(monkeypatch, members):
    drawings = [content for name, content in members if name.endswith("/00000.svg")] * 2
    seen, progress = {}, []
    for step in (module.STEP, 5 * SIZE):  # all here; 5, 5 and 2 elsewhere
        monkeypatch.setattr(module, "STEP", step)
        images = seen.setdefault(step, {})
        module._render(drawings, SIZE, images.__setitem__, lambda *counts: progress.append(counts))
    here, elsewhere = seen.values()
    assert here == elsewhere and sorted(here) == list(range(12))
    assert progress == [(12, 12), (5, 12), (10, 12), (12, 12)]


def test_the_mask_that_is_dropped_hides_nothing(members):
    for drawing in [content.decode() for name, content in members if name.endswith("/00001.svg")]:
        masked, plain = module._order(drawing, 255), module._order(drawing, 256)
        assert masked["svg_string"] != plain["svg_string"]
        plain |= {"width": 255, "height": 255}
        with_mask, without = (
            np.asarray(image, int)
            for image in (Image.open(module.BytesIO(png)) for png in module._pngs([masked, plain]))
        )
        assert (np.abs(with_mask - without).max(-1) > 8).mean() < 0.003


def test_what_lies_in_a_folder_is_never_overwritten(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    with pytest.raises(UserError, match="is not empty"):
        write_portraits(SIZE, 2, written)
    with pytest.raises(UserError, match="is a file"):
        write_portraits(SIZE, 2, written / "LICENSE.md")
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}


@pytest.mark.parametrize("size, count", [(0, 5), (SIZE, 0), (SIZE, -1), (SIZE, 9001)])
def test_impossible_orders_are_refused_before_anything_is_written(tmp_path, size, count):
    with pytest.raises(UserError):
        write_portraits(size, count, tmp_path / "portraits")
    with pytest.raises(UserError):
        read_portraits(size, count)
    assert list(tmp_path.iterdir()) == []


def test_large_portraits_are_fewer_unless_a_count_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "PIXELS", 12 * SIZE**2)
    few = read_portraits(SIZE)
    assert len(few.pixels) == 12
    assert any("12 of 9,000 portraits" in each for each in few.notes)
    asked = read_portraits(SIZE, 12)
    assert torch.equal(asked.pixels, few.pixels) and not any("9,000" in each for each in asked.notes)
