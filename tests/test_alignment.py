"""Whether a model shows what it is told: what the measures say where the answer is known."""

from types import SimpleNamespace

import pytest
import torch
from small import Keeper, noise_pictures

from calotype.data.captions import Captions
from calotype.data.images import images_from_pixels, pils_from_images
from calotype.data.split import Split
from calotype.demo.classifier import background, clothing, fit_classifier, palette, tally
from calotype.demo.describing import LANGUAGES, describe, unseen_combinations, visible_attributes
from calotype.demo.judges import OF_ALL, PortraitJudge
from calotype.demo.portraits import STYLES, read_drawn, read_portraits
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.schedules import Flow
from calotype.diffusion.stage import Stage
from calotype.evaluation.alignment import caption_retrieval
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.features import Lite0
from calotype.evaluation.references import FeatureStore
from calotype.evaluation.results import Alignment
from calotype.report.evaluation import alignment_rows, alignment_text
from calotype.spaces.pixel import PixelSpace
from calotype.types import Rng

COUNT, SIZE, HELD_OUT = 600, 64, 61  # a tenth, rounded within each style


@pytest.fixture(scope="module")
def pictures():
    return read_portraits(SIZE, COUNT)


@pytest.fixture(scope="module")
def drawn():
    return read_drawn(SIZE, COUNT)


def store(pictures, folder):
    return FeatureStore(pictures, Lite0(), folder, Keeper().bar, "real")


# -- Colours and parts -------------------------------------------------------------------------------------------------


def test_colours_are_measured_where_they_are():
    colours = palette(["#ff0000", "#00ff00", "#0000ff"])
    images = colours[[1, 2]][:, :, None, None].expand(-1, -1, 16, 16).clone()
    images[:, :, 8:, 4:12] = colours[0][:, None, None]
    images[:, :, 15:] = colours[0][:, None, None] + 0.05
    assert background(images, colours).tolist() == [1, 2] and clothing(images, colours).tolist() == [0, 0]


def test_a_judge_that_learned_from_true_answers_is_right_and_from_shuffled_ones_it_guesses():
    """Pictures with a bar that is there or not, of any colour, and a spot of one of three colours."""
    rng, count = Rng((0,)), 600
    bar, spot = rng.at("bar").integers(2, count), rng.at("spot").integers(3, count)
    images = 0.1 * rng.at("noise").normal(count, 3, 16, 16)
    images[:, :, 2:4] += bar[:, None, None, None] * (1 + 0.5 * rng.at("colour").normal(count, 3, 1, 1))
    images[torch.arange(count), spot, 8:12, 8:12] += 1
    answers = [{"bar": "a bar" if a else "", "spot": "rgb"[b]} for a, b in zip(bar, spot, strict=True)]
    shuffled = [answers[place] for place in rng.at("shuffled").permutation(400)] + answers[400:]
    for targets, least, most in ((answers, 0.97, 1.0), (shuffled, -0.3, 0.3)):
        found = fit_classifier(images[:400], targets[:400])(images[400:])
        for about in ("bar", "spot"):
            assert least <= tally(found, answers[400:], about).skill <= most


# -- Prompts -----------------------------------------------------------------------------------------------------------


def test_unseen_prompts_are_no_captions_and_put_known_things_together(drawn):
    made = unseen_combinations(drawn, 30)
    captions = {caption for one in drawn for caption in describe(one)}
    assert len(made) == 30 and made == unseen_combinations(drawn, 30)
    assert captions.isdisjoint(caption for one in made for caption in describe(one))
    assert [one["style"] for one in made[:6]] == list(STYLES)
    for style in STYLES:
        known = {attributes for one in drawn if one["style"] == style for attributes in visible_attributes(one).items()}
        assert {
            attributes for one in made if one["style"] == style for attributes in visible_attributes(one).items()
        } <= known
    assert unseen_combinations([drawn[0], drawn[0]], 3) == []


def test_what_is_shown_is_what_the_caption_says(drawn):
    for one in drawn:
        attributes = visible_attributes(one)
        assert attributes.pop("style").replace("-", " ") in describe(one)[0]
        assert all(value in describe(one)[0] for value in attributes.values())


# -- Portraits ---------------------------------------------------------------------------------------------------------


class Painter(Candidate):
    """Answers each prompt with a given picture."""

    size = SIZE

    def __init__(self, images):
        object.__setattr__(self, "model", SimpleNamespace(draw=lambda count, **more: iter(pils_from_images(images))))


@pytest.fixture(scope="module")
def judged(pictures, drawn, tmp_path_factory):
    """What is found of a model that answers with the held-out pictures, in order or not."""
    rows = pictures.test_indices[:HELD_OUT]
    images = images_from_pixels(pictures.pixels[rows])

    def judge(order):
        with pytest.MonkeyPatch.context() as patch:
            facts = [drawn[row] for row in rows.tolist()]
            patch.setattr("calotype.demo.judges.unseen_combinations", lambda known, count: facts)
            painter, known = Painter(images[order]), store(pictures, tmp_path_factory.mktemp("a"))
            found = PortraitJudge(drawn).judge(painter, known, HELD_OUT, 0)
        assert found.plate.width > found.plate.height and found.prompts[0] == describe(facts[0])[0]
        attributes = [attribute.stored() for attribute in found.attributes]
        retrieval = [{"value": None, "reason": "none"}] * 2
        shares = {share.about: share.stored() for share in found.shares}
        measured = {"attributes": attributes, "left_out": found.left_out, "shares": shares}
        return {"languages": LANGUAGES, "retrieval": retrieval, **measured}

    return judge


def test_a_model_that_paints_its_prompts_is_as_accurate_as_the_judges(judged):
    found = judged(torch.arange(HELD_OUT))
    abouts = {one["about"]: one for one in found["attributes"]}
    for one in abouts.values():
        own = {end: one["real"][end] for end in ("value", "low", "high")}
        assert one["samples"] == [own, own] and one["real"]["chance"] == one["chance"] < own["value"]
    assert all(abouts[about]["real"]["value"] == 1 for about in OF_ALL)
    assert abouts["clothes"]["real"]["value"] > 0.8
    assert set(found["shares"]) == {"features", "dark skin"}
    for share in found["shares"].values():
        assert share["samples"] == share["real"] and share["agrees"]
    result = Alignment(**{name: value for name, value in found.items() if name != "shares"})
    (first, *_) = alignment_rows(result)
    assert first == (f"background, n = {HELD_OUT}", *["1 [0.941, 1]"] * 3, f"{abouts['background']['chance']:.3g}")
    assert "hardly better than guessing" in alignment_text(result)


def test_a_model_that_ignores_its_prompts_is_right_by_chance(judged):
    for one in judged(Rng(("shuffled",)).permutation(HELD_OUT))["attributes"]:
        assert one["samples"][0]["low"] <= one["chance"]


# -- The right caption -------------------------------------------------------------------------------------------------


class Toy(Denoiser):
    """Its error is what is given: a function of the pictures and their captions."""

    def __init__(self, error):
        torch.nn.Module.__init__(self)
        self.error, self.prior = error, None

    def loss(self, clean, sigma, noise, condition):
        assert (noise == noise[0]).all() and (sigma == sigma[0]).all()
        return self.error(clean, condition.text.prompts)


def sought(error, count=64, held_out=40, folder=None):
    """Of pictures whose caption is their mean."""
    pictures = noise_pictures(80)
    images = images_from_pixels(pictures.pixels)
    captions = tuple((f"{float(image.mean()):.6f}",) for image in images)
    pictures = noise_pictures(80)
    object.__setattr__(pictures, "captions", Captions(captions))
    test = torch.arange(80) < held_out
    object.__setattr__(pictures, "split", Split(~test, torch.zeros_like(test), test))
    one = object.__new__(Painter)
    stage = Stage(Toy(error), PixelSpace(), Flow(), 16)
    object.__setattr__(one, "model", SimpleNamespace(stages=(stage,), device=torch.device("cpu")))
    return caption_retrieval(one, store(pictures, folder), 0, count, 0).stored()


def knows(clean, captions):
    return (clean.mean((1, 2, 3)) - torch.tensor([float(one) for one in captions])).abs()


def does_not(clean, captions):
    return clean.square().mean((1, 2, 3))


def test_captions_are_found_by_who_knows_them_and_by_who_does_not_once_in_32(tmp_path):
    known, guessed = (sought(error, folder=tmp_path) for error in (knows, does_not))
    assert (known["n"], known["candidates"], known["chance"]) == (32, 32, 1 / 32)
    assert known["value"] == 1 and guessed["value"] == 1 / 32
    assert sought(knows, count=5, folder=tmp_path)["n"] == 5
    assert sought(does_not, held_out=7, folder=tmp_path)["value"] == 1 / 7
    assert "there are 1" in sought(knows, held_out=1, folder=tmp_path)["reason"]
