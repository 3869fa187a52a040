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
def test_a_shorter_version_keeps_some_phrases_in_their_order(text, mark):
    phrases = [one.strip(".") for one in text.split(mark)]
    for one in shorter_versions(text):
        remaining = [phrase.strip(".") for phrase in one.split(mark)]
        assert 0 < len(remaining) < len(phrases) and [phrase for phrase in phrases if phrase in remaining] == remaining


def test_a_caption_of_one_phrase_is_shortened_to_consecutive_words():
    for one in shorter_versions("a small dog on the grass"):
        assert one in "a small dog on the grass" and one != "a small dog on the grass" and one == one.strip()


@pytest.mark.parametrize("text", ["", "tench", "tench,", " , ", "...", "\0", "a" * 100_000])
def test_a_caption_of_one_word_has_no_shorter_version(text):
    assert shorter_versions(text) == ()


@pytest.mark.parametrize("text", ["\ud800 a b", "x, " * 5000, ", , a, ,b", "؟، أ، ب", "a\u2028b c"])
def test_shorter_versions_of_unusual_captions_are_valid(text):
    found = shorter_versions(text)
    assert len(found) <= MAX_SHORTENED and all(one and one != text and len(one) <= len(text) for one in found)


def test_many_punctuation_marks_take_linear_time():
    start = time.process_time()
    assert shorter_versions("a b" + "." * 4000 + "x")
    assert time.process_time() - start < 0.3


def test_the_shorter_versions_are_deterministic_and_of_any_length():
    versions = shorter_versions(TAGS)
    assert versions == shorter_versions(TAGS[:3] + TAGS[3:]) and len(set(versions)) == len(versions)
    lengths = {len(one.split(", ")) for number in range(60) for one in shorter_versions(TAGS.replace("1", str(number)))}
    assert lengths == {1, 2, 3, 4}


def test_captions_are_shortened_with_the_given_probability():
    texts = [f"{number}, solo, smile" for number in range(2000)] + ["", "tench"]
    dropped = drop_phrases(texts, 0.3, RNG)
    assert len(dropped) == len(texts) and dropped[-2:] == ("", "tench")
    changed = [(one, whole) for one, whole in zip(dropped, texts, strict=True) if one != whole]
    assert len(changed) / 2000 == pytest.approx(0.3, abs=0.03) and all(
        one in shorter_versions(whole) for one, whole in changed
    )
    assert drop_phrases(texts, 0.0, RNG) == tuple(texts) and drop_phrases(texts, 0.3, RNG) == dropped
