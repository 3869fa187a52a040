import json
import os
import time
from itertools import repeat

import pytest
import torch
from small import write_pictures

from calotype.data import captions as module
from calotype.data.caption_files import CaptionRow
from calotype.data.captions import MAX_BYTES, MAX_CHARACTERS, clean, read_captions
from calotype.data.folder import read_folder
from calotype.data.sources import draw_captions
from calotype.demo.describing import describe
from calotype.demo.portraits import read_drawn, read_portraits
from calotype.types import Rng

TWO = torch.arange(2)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, `0.png` to `9.png`, without classes."""
    return write_pictures(tmp_path / "album", classes=())


def captions_of(folder, *names):
    captions, found = read_captions(folder, names)
    return (captions.of if captions else None), found.notes(names)


def metadata(place, *lines):
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (place / "metadata.jsonl").write_bytes(b"\n".join(content))


# -- What is understood ------------------------------------------------------------------------------------------------


def test_every_line_of_a_text_file_is_a_caption(folder):
    (folder / "1.txt").write_text("a cat\n\n một con mèo \r\n", encoding="utf-8")
    (folder / "2.txt").write_bytes(b"\xef\xbb\xbfwith a mark of its order")
    of, notes = captions_of(folder, "0.png", "1.png", "2.png")
    assert of == ((), ("a cat", "một con mèo"), ("with a mark of its order",))
    assert notes == ["captions of 2 pictures, from .txt files (2); 1 picture without a caption"]


def test_metadata_names_pictures_below_it_and_may_have_several_captions(folder):
    (folder / "sub").mkdir()
    metadata(folder, {"file_name": "0.png", "text": "zero"}, {"file_name": "sub/9.png", "captions": ["a", "b"]})
    metadata(
        folder / "sub", {"file_name": "9.png", "caption": "c", "other": [1, {}]}, {"file_name": "../1.png", "text": "d"}
    )
    (folder / "sub" / "9.txt").write_text("e")
    assert captions_of(folder, "0.png", "1.png", "sub/9.png")[0] == (("zero",), ("d",), ("a", "b", "c", "e"))


@pytest.mark.parametrize("above", ["/home/an/album/", "album/", "./album/", "C:\\\\album\\\\"])
def test_paths_from_above_the_folder_name_pictures_whose_names_repeat_in_its_subfolders(folder, above):
    """As programs write them that were given the folder's own path, here or on another machine."""
    names = [f"{place}/{number}.png" for place in ("cat", "big/cat", "dog") for number in range(2)]
    metadata(folder, *({"file_name": above + name, "text": name} for name in (*names, "bird/0.png")))
    of, notes = captions_of(folder, *names)
    assert of == tuple((name,) for name in names) and len(notes) == 2 and "1 line of metadata named" in notes[1]


def test_pictures_without_captions_have_none_and_no_verdict_is_given(folder):
    assert captions_of(folder, "0.png") == (None, [])
    pictures = read_folder(folder, 16)
    assert pictures.captions is None and pictures.notes == pictures.split.notes


def test_captions_follow_their_pictures_and_are_content(folder):
    before = read_folder(folder, 16)
    for index in range(10):
        (folder / f"{index}.txt").write_text(f"number {index}")
    after = read_folder(folder, 16)
    assert after.content != before.content
    assert [note for note in after.notes if "passed over" in note] == []
    for row, (caption,) in zip(after.pixels, after.captions.of, strict=True):
        (folder / "alone").mkdir(exist_ok=True)
        name = caption.removeprefix("number ")
        (folder / f"{name}.png").replace(folder / "alone" / "one.png")
        assert (read_folder(folder / "alone", 16).pixels[0] == row).all()
    few = after.first(3)
    assert few.captions.of == tuple(after.captions.of[index] for index in (0, 3, 6))


def test_one_of_several_captions_is_drawn_each_time(folder):
    (folder / "0.txt").write_text("a\nb\nc")
    captions = read_captions(folder, ["0.png", "1.png"])[0]
    texts = [draw_captions(captions, TWO, Rng((seed,))).prompts for seed in range(40)]
    assert {text[0] for text in texts} == {"a", "b", "c"} and {text[1] for text in texts} == {""}
    assert draw_captions(captions, TWO, Rng((3,))).prompts == texts[3]


def test_accents_without_end_cost_no_time(tmp_path):
    """Normal form C sorts accents in a row, which takes a time that grows with the square of their number."""
    accents, names = "\u0300\u0316" * 500_000, ("a.png", "b.png")
    lines = [{"file_name": "a.png", "text": f"a{accents}"}, {"file_name": accents, "text": "a cat"}]
    (tmp_path / "captions.json").write_text(json.dumps(lines))
    start = time.process_time()
    captions, read = read_captions(tmp_path, names)
    assert time.process_time() - start < 10
    assert [len(own) for own in captions.of] == [1, 0] and len(captions.of[0][0]) == MAX_CHARACTERS
    assert read.unmatched == 1


def test_accents_are_composed_so_that_equal_words_are_equal_bytes():
    assert clean("ca\u0302y  thu\u031b\u0301\n") == "cây thứ"
    for text in ("e\u200d\u0301", "x" * (MAX_CHARACTERS - 1) + " cut", "\x85a\u00ad \u0323b"):
        assert clean(clean(text)) == clean(text)  # exports clean a prompt more than once


ONE = "một con mèo, déjà vu"
FORMS = {
    "prompt.jsonl": lambda text: json.dumps({"file_name": "0.png", "prompt": text}) + "\n",
    "metadata.jsonl": lambda text: json.dumps({"image": "0", "description": text}) + "\n",
    "metadata.ndjson": lambda text: json.dumps({"file_name": "0.png", "text": text}),
    "lines.json": lambda text: "\n".join(
        json.dumps({"file_name": f"{name}.png", "text": text, "more": "\u2028"}, ensure_ascii=False) for name in (0, 77)
    ),
    "metadata.csv": lambda text: f'file_name,text\n0.png,"{text}"\n',
    "excel.csv": lambda text: f"Image;Caption\r\n0.png;{text}\r\n",
    "captions.tsv": lambda text: f"filepath\tdescription\n/home/me/album/0.png\t{text}\n",
    "no header.csv": lambda text: f"0.png, {text}\n1.png, another\n",
    "windows.csv": lambda text: f'file,caption\nalbum\\0.png,"{text}"\n',
    "captions.txt": lambda text: f"image,caption\n0.png,{text}\n",
    "Flickr8k.token.txt": lambda text: f"0.png#0\t{text}\n",
    "captions.json": lambda text: json.dumps({"0.png": text}),
    "meta.json": lambda text: json.dumps({"0": {"caption": text, "tags": "a, b"}}),
    "list.json": lambda text: json.dumps([{"img": "./0.png", "captions": [text]}]),
    "coco.json": lambda text: json.dumps(
        {
            "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "gone.png"}],
            "annotations": [{"id": 1, "image_id": 7, "caption": text}, {"id": 2, "image_id": 8, "caption": "x"}],
        }
    ),
    "karpathy.json": lambda text: json.dumps({"images": [{"filename": "0.png", "sentences": [{"raw": text}]}]}),
    "0.txt": str,
    "0.caption": str,
    "0.png.txt": str,
    "0.json": lambda text: json.dumps({"url": "http://", "caption": text, "width": 3}),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_captions_are_read_in_every_form_that_people_have(folder, name, encoding):
    (folder / name).write_text(FORMS[name](ONE), encoding=encoding, newline="")
    of, notes = captions_of(folder, "0.png", "1.png")
    assert of[0] == (ONE,) and not any("not read" in note for note in notes)
    pictures = read_folder(folder, 16)
    assert pictures.captions.captioned == sum(map(bool, of)) and not any(
        "passed over" in note for note in pictures.notes
    )


@pytest.mark.parametrize("captions", ["captions", "labels", "prompts"])
def test_captions_lie_in_a_folder_beside_the_pictures(tmp_path, captions):
    write_pictures(tmp_path / "train" / "images", classes=())
    (tmp_path / "train" / captions).mkdir()
    (tmp_path / "train" / captions / "3.txt").write_text("three")
    assert captions_of(tmp_path, "train/images/2.png", "train/images/3.png")[0] == ((), ("three",))


def test_tags_of_a_list_are_one_caption(folder):
    metadata(folder, {"file_name": "0.png", "tags": ["cat", "sofa"]}, {"file_name": "1.png", "text": ["a", "b"]})
    assert captions_of(folder, "0.png", "1.png")[0] == (("cat, sofa",), ("a", "b"))


def test_names_of_captions_may_differ_in_case_and_in_their_normal_form(folder):
    for old, new in (("0.png", "IMG0.PNG"), ("1.png", "cho\u0301.png"), ("2.png", "a.png"), ("3.png", "A.png")):
        (folder / old).rename(folder / new)
    for name in ("img0.TXT", "ch\u00f3.txt", "a.txt", "README.TXT"):
        (folder / name).write_text(name)
    metadata(folder, {"file_name": "ch\u00f3.png", "text": "of a line"})
    of, notes = captions_of(folder, "A.png", "IMG0.PNG", "a.png", "cho\u0301.png")
    assert of == ((), ("img0.TXT",), ("a.txt",), ("of a line", "ch\u00f3.txt"))
    assert "1 text file fitted no picture: README.TXT" in notes


def test_text_that_is_not_utf_8_is_read_and_its_encoding_named(folder):
    for index, encoding in enumerate(("cp1252", "utf-16", "utf-16-le", "utf-8-sig")):
        (folder / f"{index}.txt").write_text("déjà vu, “là”", encoding=encoding)
    of, notes = captions_of(folder, *(f"{index}.png" for index in range(4)))
    assert of == (("déjà vu, “là”",),) * 4
    assert "read as Windows-1252, as they are not UTF-8: 0.txt" in notes
    assert "read as UTF-16, as they are not UTF-8: 1.txt, 2.txt" in notes


def test_a_file_without_captions_is_named_with_its_keys(folder):
    metadata(folder, {"file_name": "0.png", "style": "x"})
    (folder / "labels.csv").write_text("id,class\n0,3\n")
    (folder / "broken.json").write_text("{")
    of, notes = captions_of(folder, "0.png")
    expected = "expected file_name and one of text, caption, prompt or description"
    assert of is None
    assert notes == [
        f"not read as captions: broken.json (not JSON), labels.csv (its keys are id, class; {expected}), "
        f"metadata.jsonl (its keys are file_name, style; {expected})"
    ]


# -- What is odd -------------------------------------------------------------------------------------------------------

ODD = {
    "NUL bytes": (b"a\0b", "0.txt (holds NUL bytes)"),
    "10 MB": (b"a " * 5_000_000, f"0.txt (longer than {MAX_BYTES // 1024} kB)"),
    "UTF-16": ("một".encode("utf-16-le") + b"\xff", "0.txt (holds NUL bytes)"),
    "Shift JIS": ("猫がいる".encode("shift-jis"), "0.txt (not UTF-8)"),
    "boxes": (b"0 0.5 0.5 0.25 0.1\n3 0.1 0.2 0.3 0.4\n", "0.txt (boxes of objects, not words)"),
}


@pytest.mark.parametrize(("content", "message"), ODD.values(), ids=ODD)
def test_what_is_no_text_is_passed_over_in_one_line(folder, content, message):
    (folder / "0.txt").write_bytes(content)
    assert captions_of(folder, "0.png") == (None, [f"not read as captions: {message}"])


def test_marks_that_turn_or_control_text_are_taken_out_and_counted(folder):
    (folder / "0.txt").write_text("evil \u202egnp.exe\u202c \x1b[31mred", encoding="utf-8")
    of, notes = captions_of(folder, "0.png")
    assert of == (("evil gnp.exe [31mred",),)
    assert notes[1:] == ["1 caption lost control or format characters, or a long end"]


def test_a_malformed_line_is_named_and_the_others_count(folder):
    lines = [{"file_name": "0.png", "text": "zero"}] * 5000
    lines[4999] = b'{"file_name": "0.png", "text": '
    bad = [b"[" * 40000, b'"no table"', b'{"file_name": "0.png", "text": 5}', b"x" * 3 * MAX_BYTES, b"\xff"]
    metadata(folder, *lines, *bad, {"file_name": "1.png", "text": "one"})
    of, notes = captions_of(folder, "0.png", "1.png")
    assert len(of[0]) == 4999 and of[1] == ("one",)
    assert notes[1] == (
        "not read as captions: line 5,000 of metadata.jsonl (not JSON), "
        "line 5,001 of metadata.jsonl (nested too deeply), line 5,002 of metadata.jsonl (no file_name), "
        "line 5,003 of metadata.jsonl (text is not text), line 5,004 of metadata.jsonl (longer than 64 kB) "
        "and 1 more"
    )


@pytest.mark.parametrize("name", ["log.txt", "log.jsonl", "log.csv"])
def test_a_file_of_endless_lines_without_captions_is_given_up(folder, monkeypatch, name):
    row = CaptionRow("line 1 of ", {"time": 1, "message": "ready"})
    monkeypatch.setattr(module, "caption_rows", lambda path, is_picture: repeat(row))
    (folder / name).touch()
    assert captions_of(folder, "0.png")[1][0].startswith(
        f"1 text file fitted no picture: {name}" if name.endswith("txt") else
        f"not read as captions: {name} (its keys are time, message; expected"
    )  # fmt: skip


def test_nothing_outside_the_folder_is_read(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "0.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "sub").mkdir()
    (tmp_path / "elsewhere.jsonl").write_text('{"file_name": "1.png", "text": "secret"}')
    (folder / "sub" / "metadata.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    os.mkfifo(folder / "1.txt")  # to open it would wait for ever
    outside = [{"file_name": name, "text": "x"} for name in ("../secret.png", "/etc/passwd", "sub/../../0.png")]
    metadata(folder, *outside, {"file_name": "nobody.png", "text": "x"}, {"file_name": "sub/../2.png", "text": "two"})
    of, notes = captions_of(folder, "0.png", "1.png", "2.png", "sub/1.png")
    assert of == ((), (), ("two",), ())
    assert notes[1:] == [
        "3 lines of metadata named files outside the folder: ignored",
        "1 line of metadata named no picture that was read",
    ]


# -- The portraits -----------------------------------------------------------------------------------------------------


def test_portraits_have_a_caption_in_each_language():
    facts = {
        "style": "open-peeps", "primaryBackgroundColor": "#a8d5a2", "head": "short4", "face": "old",
        "facialHair": "moustache2", "skinColor": "#ae5d29", "clothingColor": "#fdea6b",
    }  # fmt: skip
    assert describe(facts) == (
        "an open peeps portrait, brown skin, short hair, yellow clothes, moustache, on a light green background",
        "chân dung kiểu open peeps, da nâu, tóc ngắn, quần áo vàng, có ria mép, trên nền xanh lá nhạt",
    )


def test_all_portraits_are_described_and_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures = read_portraits(2, 24)
    assert pictures.captions.optional
    assert [describe(one) for one in read_drawn(2, 24)] == list(pictures.captions.of)
    for english, vietnamese in pictures.captions.of:
        assert english.endswith(" background") and vietnamese.startswith("chân dung kiểu ")
        assert english.count(",") == vietnamese.count(",")
    assert len({english for english, _ in pictures.captions.of}) == 24


def test_a_table_whose_captions_are_all_empty_is_named(tmp_path):
    (tmp_path / "captions.csv").write_text("file_name,caption,more\n0.png,\n")
    captions, found = read_captions(tmp_path, ["0.png"])
    assert captions is None and any(
        "captions.csv (all its captions are empty)" in note for note in found.notes(["0.png"])
    )
