import time

import pytest

from calotype.data.captions import MAX_SHORTENED, drop_phrases, shorter_versions
from calotype.types import Rng

TAGS = "1girl, solo, smile, red hair, outdoors"
RNG = Rng(("telling",))


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (TAGS, ", "),
        ("A dog runs. It is 1.5 m tall. It is brown.", ". "),
        ("チワワ、草、青い空", "、"),
        ("x; y; z", "; "),
        ("1girl,solo,2dogs,smile", ","),
        ("1,000 men, a dog, a cat", ", "),
    ],
)
def test_parts_are_some_of_the_phrases_in_their_order(text, mark):
    phrases = [one.strip(".") for one in text.split(mark)]
    for one in shorter_versions(text):
        remaining = [phrase.strip(".") for phrase in one.split(mark)]
        assert 0 < len(remaining) < len(phrases) and [phrase for phrase in phrases if phrase in remaining] == remaining


def test_a_caption_of_one_phrase_is_cut_to_words_in_a_row():
    for one in shorter_versions("a small dog on the grass"):
        assert one in "a small dog on the grass" and one != "a small dog on the grass" and one == one.strip()


@pytest.mark.parametrize("text", ["", "tench", "tench,", " , ", "...", "\0", "a" * 100_000])
def test_what_cannot_say_less_has_no_parts(text):
    assert shorter_versions(text) == ()


@pytest.mark.parametrize("text", ["\ud800 a b", "x, " * 5000, ", , a, ,b", "؟، أ، ب", "a\u2028b c"])
def test_parts_of_odd_captions_are_sound(text):
    found = shorter_versions(text)
    assert len(found) <= MAX_SHORTENED and all(one and one != text and len(one) <= len(text) for one in found)


def test_a_row_of_marks_is_read_once():
    start = time.process_time()
    assert shorter_versions("a b" + "." * 4000 + "x")
    assert time.process_time() - start < 0.3


def test_the_parts_of_a_caption_are_always_the_same_and_of_any_length():
    versions = shorter_versions(TAGS)
    assert versions == shorter_versions(TAGS[:3] + TAGS[3:]) and len(set(versions)) == len(versions)
    lengths = {len(one.split(", ")) for number in range(60) for one in shorter_versions(TAGS.replace("1", str(number)))}
    assert lengths == {1, 2, 3, 4}


def test_a_share_of_captions_says_less():
    texts = [f"{number}, solo, smile" for number in range(2000)] + ["", "tench"]
    dropped = drop_phrases(texts, 0.3, RNG)
    assert len(dropped) == len(texts) and dropped[-2:] == ("", "tench")
    changed = [(one, whole) for one, whole in zip(dropped, texts, strict=True) if one != whole]
    assert len(changed) / 2000 == pytest.approx(0.3, abs=0.03) and all(
        one in shorter_versions(whole) for one, whole in changed
    )
    assert drop_phrases(texts, 0.0, RNG) == tuple(texts) and drop_phrases(texts, 0.3, RNG) == dropped
