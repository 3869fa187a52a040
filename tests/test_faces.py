"""Judges of faces: true negatives are made from the drawings, colours are measured."""

import pytest
import torch

from calotype.data.images import images_from_pixels
from calotype.demo import faces
from calotype.demo.classifier import palette
from calotype.demo.faces import Share, is_dark, learn_face_judges, learn_skin, skin_of
from calotype.demo.featureless import read_featureless, without_attributes
from calotype.demo.portraits import STYLES, read_drawn, read_portraits

LEARNED, OTHERS = 480, 240


def shape(name, colour="#000000"):
    return f'<path fill="{colour}" d="{name}"/>'


def test_shapes_of_a_part_are_found_by_the_drawings_that_have_them():
    head = shape("head")
    eyes, hair = {"a": shape("A"), "b": shape("B") + shape("shared"), "c": shape("shared")}, {"x": shape("X"), "y": ""}
    facts = [{"eyes": eye, "hair": one} for eye in eyes for one in hair] + [{"hair": "y"}]
    drawings = [head + hair[one["hair"]] + eyes.get(one.get("eyes"), "") for one in facts]
    assert without_attributes(drawings, facts, ["eyes"]) == [head + hair[one["hair"]] for one in facts]


def test_a_shape_of_another_colour_is_the_same_shape():
    facts = [{"eyes": name, "hair": str(row % 2)} for row, name in enumerate("aabb")]
    drawings = [shape("head") + shape(one["eyes"], f"#00000{row}") for row, one in enumerate(facts)]
    assert without_attributes(drawings, facts, ["eyes"]) == [shape("head")] * 4


@pytest.fixture(scope="module")
def portraits():
    return read_portraits(64, LEARNED + OTHERS).pixels, read_drawn(64, LEARNED + OTHERS)


@pytest.fixture(scope="module")
def judges(portraits):
    pixels, drawn = portraits
    return learn_face_judges(pixels[:LEARNED], drawn[:LEARNED])


@pytest.fixture(scope="module")
def others(portraits):
    pixels, drawn = portraits
    return images_from_pixels(pixels[LEARNED:]), drawn[LEARNED:], [facts["style"] for facts in drawn[LEARNED:]]


def test_real_portraits_have_features_and_the_same_drawings_without_them_have_none(judges, others):
    images, drawn, styles = others
    blank = images_from_pixels(read_featureless(drawn, 64))
    assert judges.have_features(images, styles).float().mean() > 0.95
    assert judges.have_features(blank, styles).float().mean() < 0.05


def test_a_dark_disc_has_no_features(judges, others):
    """Skin of samples may be darker than any that is drawn."""
    _, drawn, styles = others
    blank = images_from_pixels(read_featureless(drawn, 64))
    for brightness in (0.6, 0.3, 0.15):
        assert judges.have_features((blank + 1) * brightness - 1, styles).float().mean() < 0.05


def test_what_has_no_features_is_the_same_outside_the_face(others):
    images, drawn, _ = others
    changed = (images != images_from_pixels(read_featureless(drawn, 64))).any(1)
    assert changed.flatten(1).any(1).all()
    assert not changed[:, :8].any() and not changed[:, :, :8].any() and not changed[:, -8:].any()


def test_dark_skin_is_that_of_the_facts(judges, others):
    images, drawn, styles = others
    coloured = [facts for facts in drawn if skin_of(facts) in faces.SKINS]
    assert {facts["style"] for facts in coloured} == set(judges.skin) == set(STYLES) - {"lorelei", "notionists"}
    truth = torch.tensor([is_dark(skin_of(facts)) for facts in coloured])
    assert (judges.have_dark_skin(images, styles) == truth).float().mean() > 0.95


def test_skin_is_measured_where_it_is_and_nowhere_else():
    names = ["#f9c9b6", "#77311d"] * 10
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[..., 4:9, 5:11] = palette(names)[:, :, None, None]
    judge = learn_skin(images, [{"style": "micah", "baseColor": name} for name in names])
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[4:9, 5:11] = True
    assert torch.equal(judge.region, region)
    assert judge(images).tolist() == [False, True] * 10
    assert judge(torch.where(region, -1.0, 1.0).expand(1, 3, 16, 16)).tolist() == [True]


def test_shares_agree_as_the_interval_of_their_difference_says():
    """Newcombe's upper end is d + sqrt((u1 - p1)^2 + (p2 - l2)^2); Wilson's u1 is 0.952 for 91 and 0.945 for 90."""
    assert Share(91, 100).agrees(Share(950, 1000))  # -0.04 + sqrt(0.042^2 + 0.015^2) = 0.005
    assert not Share(90, 100).agrees(Share(950, 1000))  # -0.05 + sqrt(0.045^2 + 0.015^2) = -0.003
