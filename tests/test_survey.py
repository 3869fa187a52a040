"""What `calotype data check` says of a folder, against folders made to have one of everything."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from small import Keeper, noise_pixels, write_pictures

from calotype.cli.commands import check_data
from calotype.cli.commands.checking import survey_lines
from calotype.cli.options import CheckOptions
from calotype.data.duplicates import near_duplicate_pairs, perceptual_hash
from calotype.data.images import fit
from calotype.data.survey import Survey, SurveyedPicture, survey
from calotype.model import find_label
from calotype.types import UserError


def photograph(seed, width=160, height=120):
    """Soft spots of colour: what stays itself when it is shrunk."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


def recompressed(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.fixture
def odd(tmp_path):
    """One picture of every kind."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    turned = Image.Exif()
    turned[274] = 6
    photograph(1, 160, 80).save(tmp_path / "a" / "turned.jpg", exif=turned)
    photograph(2).convert("CMYK").save(tmp_path / "a" / "cmyk.jpg")
    photograph(3).convert("P").save(tmp_path / "b" / "palette.png")
    see_through = photograph(4).convert("RGBA")
    see_through.putalpha(90)
    see_through.save(tmp_path / "b" / "alpha.png")
    Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10).save(tmp_path / "b" / "sixteen.png")
    photograph(5).save(tmp_path / "moving.gif", save_all=True, append_images=[photograph(6)])
    return tmp_path


def test_each_kind_is_seen_for_what_it_is(odd):
    kinds = {one.name: set(one.properties) for one in survey(odd, 64).pictures}
    assert kinds == {
        "a/turned.jpg": {"turned by EXIF"}, "a/cmyk.jpg": {"CMYK"}, "b/palette.png": {"palette"},
        "b/alpha.png": {"transparent"}, "b/sixteen.png": {"more than 8 bits"}, "moving.gif": {"animated", "palette"},
    }  # fmt: skip


def test_sizes_are_those_of_the_upright_picture_and_labels_those_of_training(odd):
    found = survey(odd, 100)
    assert {one.name: one.size for one in found.pictures}["a/turned.jpg"] == (80, 160)
    assert found.enlarged == 2  # the turned one is 80 px wide, and the one of 16 bits 80 px square
    assert found.labels == {"": 1, "a": 2, "b": 3}


def test_equal_and_alike_pictures_are_distinguished(tmp_path):
    one, other = photograph(1), photograph(2)
    one.save(tmp_path / "one.png")
    one.save(tmp_path / "one again.bmp")
    recompressed(one.resize((80, 60)), 60).save(tmp_path / "small.png")
    other.save(tmp_path / "other.png")
    found = survey(tmp_path, 32)
    assert found.duplicates() == [["one again.bmp", "one.png"]]
    assert found.near_duplicates() == [("small.png", "one again.bmp")]


def test_a_print_stays_when_a_picture_is_shrunk_compressed_or_darkened():
    prints = [perceptual_hash(fit(photograph(seed), 64)) for seed in range(40)]
    changed = [recompressed(photograph(seed).resize((80, 60)), 50).point(lambda v: 0.9 * v) for seed in range(40)]
    pairs = near_duplicate_pairs([*prints, *(perceptual_hash(fit(one, 64)) for one in changed)])
    assert pairs == [(40 + seed, seed) for seed in range(40)]


def test_blank_pictures_are_like_nothing():
    blank = perceptual_hash(np.full((16, 16, 3), 200, np.uint8))
    assert not blank.any() and near_duplicate_pairs([blank, blank]) == []


def test_captions_are_counted_where_they_belong_to_pictures(odd):
    (odd / "a" / "cmyk.txt").write_text("a face")
    (odd / "a" / "alone.txt").write_text("of nothing")
    (odd / "metadata.jsonl").write_text('{"file_name": "moving.gif", "text": "it moves"}\n{"style": 3}\n[]\nbroken')
    found = survey(odd, 64)
    assert found.captions == {".txt files": 1, "metadata.jsonl": 1}
    assert any("line 4 of metadata.jsonl" in note for note in found.notes)


def test_only_what_was_not_read_is_passed_over(odd):
    (odd / "a" / "cmyk.txt").write_text("a face")
    (odd / "a" / "turned.txt").write_text("cắt", encoding="utf-16")
    (odd / "a" / "notes.md").write_text("notes")
    assert survey(odd, 64).notes[0] == "1 file was passed over, by suffix: .md 1"


def test_captions_are_counted_as_training_reads_them(odd):
    """Lists of them too; and lines nested too deeply are named, as all that is no caption."""
    lines = ['{"file_name": "moving.gif", "captions": ["one", "two"]}', "[" * 200_000]
    (odd / "metadata.jsonl").write_text("\n".join(lines))
    found = survey(odd, 64)
    assert found.captions == {"metadata.jsonl": 1} and any("line 2 of" in note for note in found.notes)


def test_hostile_names_stay_on_one_line_and_bad_files_are_named_with_reasons(tmp_path):
    write_pictures(tmp_path, count=4, classes=())
    (tmp_path / "<b>\x1b[31m\n.png").write_bytes(b"")
    console = Keeper()
    check_data(CheckOptions(tmp_path, 16), console)
    assert "unreadable   1: <b>\\x1b[31m\\n.png: found nothing (0 bytes)" in "\n".join(console.printed)
    assert all(line.isprintable() for line in console.printed)


def test_where_nothing_can_be_read_training_may_not_start(tmp_path):
    (tmp_path / "holiday.jpg").write_text("no picture")
    console = Keeper()
    with pytest.raises(UserError, match="could be read, so training cannot start"):
        check_data(CheckOptions(tmp_path, 16), console)
    assert any("holiday.jpg: found text" in line for line in console.printed)


def test_no_pixels_are_kept(tmp_path):
    """What is known of a picture takes less than a thumbnail does."""
    write_pictures(tmp_path, count=3)
    assert noise_pixels(1).nbytes >= 768 > max(one.hash.nbytes for one in survey(tmp_path, 16).pictures)


def test_thousands_of_classes_are_counted_and_not_all_listed():
    labels = {f"class {number}": 1 for number in range(5000)}
    black = np.zeros((16, 16, 3), np.uint8)
    picture = SurveyedPicture("a.png", (16, 16), (), "", perceptual_hash(black))
    lines = dict(survey_lines(Survey(16, [picture], {}, [], Counter(), labels, Counter())))
    assert lines["labels"].startswith("5,000: class 0 1, ") and lines["labels"].endswith("class 99 1 and 4,900 more")
    with pytest.raises(UserError, match=r"this model knows class 0, .*, class 19 and 4,980 more$"):
        find_label("cat", [*labels])
