import sys

import pytest
import torch
from torch import nn

from calotype.priors import captions
from calotype.priors.captions import BUCKETS, FEWEST_CAPTIONS, bags_of, buckets, columns_of
from calotype.priors.fit import CaptionedLatents, PriorValidation, fit_captioned, fit_classes
from calotype.priors.prior import Prior
from calotype.priors.stored import prior_in
from calotype.types import NULL_LABEL, Condition, Rng, Text

COLOURS = {"red": 3.0, "green": 0.0, "blue": -3.0}
RNG = Rng(("told",))


def unconditional(count):
    return torch.full((count,), NULL_LABEL)


def pictures(count, labels=None, spread=0.2, seed=0):
    """Around the number of the colour that is told, in the first half of the values; the second has the label's."""
    labels = unconditional(count) if labels is None else labels
    named = [list(COLOURS)[number] for number in RNG.at("colour", seed).integers(3, count).tolist()]
    clean = spread * RNG.at("spread", seed).normal(count, 2, 2, 2)
    clean[:, 0] += torch.tensor([COLOURS[name] for name in named])[:, None, None]
    clean[:, 1] += 5.0 * labels.clamp(min=0)[:, None, None]
    kinds = ["ball", "cube"]
    texts = [f"A {one} {kinds[k]}." for one, k in zip(named, labels.clamp(min=0), strict=True)]
    return CaptionedLatents(clean, labels, texts, [""] * count)


def fitted_to(train, held_out=None):
    """Each picture with its caption, and with its shortened caption: by default with none."""
    held_out = held_out or pictures(60, seed=1)
    made = fit_captioned(like(train, held_out), [train], held_out)
    assert made is not None
    return made


def like(train, held_out):
    sigma, noise = torch.full((len(held_out.captions),), 0.5), RNG.at("noise").normal(*held_out.latents.shape)
    return fit_classes(train.latents, train.labels, PriorValidation(held_out, sigma, noise))


def test_lost_in_noise_a_picture_is_what_its_caption_says():
    form, lost = fitted_to(pictures(600)), torch.zeros(3, 2, 2, 2)
    found = form.mean(
        lost, torch.full((3,), 1e3), Condition(unconditional(3), text=Text(tuple(f"a {one} ball" for one in COLOURS)))
    )
    assert torch.allclose(found[:, 0].mean((1, 2)), torch.tensor(list(COLOURS.values())), atol=0.1)
    assert found[:, 1].abs().max() < 0.1


def test_what_words_leave_is_the_gaussian_around_them():
    """The posterior mean for a spread of 0.2 around the told colour; without words it would be one of three colours."""
    form, sigma = fitted_to(pictures(3000)), 0.4
    clean = pictures(40, seed=2)
    noisy = clean.latents + sigma * RNG.at("other").normal(*clean.latents.shape)
    centre = torch.zeros_like(noisy)
    centre[:, 0] = torch.tensor([COLOURS[text.split()[1]] for text in clean.captions])[:, None, None]
    exact = centre + 0.2**2 / (0.2**2 + sigma**2) * (noisy - centre)
    found = form.mean(noisy, torch.full((40,), sigma), Condition(unconditional(40), text=Text(tuple(clean.captions))))
    assert (found - exact).square().mean() < 0.002


def test_words_say_which_group_it_is_where_the_label_does_not():
    labels = torch.arange(800) % 2
    form = fitted_to(pictures(800, labels), pictures(60, torch.arange(60) % 2, seed=1))
    lost, texts = torch.zeros(2, 2, 2, 2), Text(("a green ball", "a green cube"))
    found = form.mean(lost, torch.full((2,), 1e3), Condition(unconditional(2), text=texts))[:, 1].mean((1, 2))
    assert torch.allclose(found, torch.tensor([0.0, 5.0]), atol=0.3)
    against = form.mean(lost, torch.full((2,), 1e3), Condition(torch.tensor([1, 0]), text=texts))[:, 1].mean((1, 2))
    assert torch.allclose(against, torch.tensor([5.0, 0.0]), atol=0.3)  # but the label has the last word
    form.gate *= 100
    against = form.mean(lost, torch.full((2,), 1e3), Condition(torch.tensor([1, 0]), text=texts))[:, 1].mean((1, 2))
    assert torch.allclose(against, torch.tensor([5.0, 0.0]), atol=0.3)  # however loud the words are


def test_what_a_caption_leaves_open_is_as_wide_as_pictures_are():
    """With the colour told, what is lost in noise is red; with the kind alone, a blue picture stays blue."""
    train, held_out = (
        one._replace(
            captions=[f"a {text.split()[2]}, {text.split()[1]}" for text in one.captions],
            shortened=[f"a {text.split()[2]}" for text in one.captions],
        )
        for one in (pictures(1200), pictures(60, seed=1))
    )
    form, blue = fitted_to(train, held_out), torch.full((1, 2, 2, 2), COLOURS["blue"])
    red = form.mean(blue, torch.full((1,), 1e3), Condition(unconditional(1), text=Text(("a ball., red",))))
    still = form.mean(blue, torch.full((1,), 1.0), Condition(unconditional(1), text=Text(("a ball.",))))
    assert red[:, 0].mean() > 2.8 and still[:, 0].mean() < -2.5


def test_a_group_that_words_speak_against_is_not_asked(monkeypatch):
    labels = torch.arange(800) % 2
    form = fitted_to(pictures(800, labels), pictures(60, torch.arange(60) % 2, seed=1))
    asked, ask = [], form.mixture._group_mean
    monkeypatch.setattr(form.mixture, "_group_mean", lambda *args: asked.append(len(args[2])) or ask(*args))
    noisy, sigma = torch.zeros(2, 2, 2, 2), torch.ones(2)
    form.mean(noisy, sigma, Condition(unconditional(2), text=Text(("a red ball", "a red cube"))))
    assert asked == [2, 2, 2, 2]  # each of both classes with a caption and without, as none is out of the question
    monkeypatch.setattr(captions, "NEGLIGIBLE", 0.1)
    form.mean(noisy, sigma, Condition(unconditional(2), text=Text(("a red ball", "a red cube"))))
    form.mean(noisy, sigma, Condition(torch.tensor([0, 0]), text=None))
    assert asked[4:] == [1, 1, 2]


def test_each_picture_is_denoised_by_its_own_condition_alone():
    form, noisy = fitted_to(pictures(600)), RNG.at("noisy").normal(4, 2, 2, 2)
    sigma, texts = torch.tensor([0.1, 1.0, 3.0, 10.0]), ("a red ball", "", "a blue ball", "")
    together = form.mean(noisy, sigma, Condition(unconditional(4), text=Text(texts)))
    for row in range(4):
        one = form.mean(noisy[[row]], sigma[[row]], Condition(unconditional(1), text=Text(texts[row : row + 1])))
        assert torch.allclose(together[row], one[0], atol=1e-5)
    nothing = form.mean(noisy, sigma, Condition(unconditional(4)))
    assert torch.allclose(together[1], nothing[1], atol=1e-6) and not torch.allclose(together[2], nothing[2], atol=0.1)


def test_words_that_say_nothing_of_the_group_leave_it_as_likely_as_it_is():
    train, held_out = (pictures(count, (torch.arange(count) % 10 == 0).long(), seed=count) for count in (1000, 100))
    form = fitted_to(*(one._replace(captions=[text[:-5] for text in one.captions]) for one in (train, held_out)))
    found = form.mean(
        torch.zeros(1, 2, 2, 2), torch.full((1,), 1e3), Condition(unconditional(1), text=Text(("a green",)))
    )
    assert torch.allclose(found[0, 1].mean(), torch.tensor(0.1 * 5.0), atol=0.1)


def test_a_larger_canvas_is_conditioned_in_every_window():
    form, texts = fitted_to(pictures(600)), Text(("a red ball",))
    found = form.mean(torch.zeros(1, 2, 4, 3), torch.full((1,), 1e3), Condition(unconditional(1), text=texts))
    assert torch.allclose(found[:, 0], torch.full((1, 4, 3), 3.0), atol=0.1)


def test_an_empty_one_has_room_for_what_was_stored():
    form = fitted_to(pictures(600))
    other = prior_in({f"mixture.{name}": one for name, one in form.state_dict().items()})
    assert isinstance(other, nn.Module) and isinstance(other, Prior)
    other.load_state_dict(form.state_dict())
    noisy, texts = RNG.at("noisy").normal(2, 2, 2, 2), Text(("a red ball", "blue"))
    same = (one.mean(noisy, torch.ones(2), Condition(unconditional(2), text=texts)) for one in (form, other))
    assert torch.equal(*same)


def test_rare_words_are_not_heard():
    train = pictures(60)
    rare = train._replace(captions=[f"word{row // (FEWEST_CAPTIONS // 2 - 1)}" for row in range(60)])
    assert fit_captioned(like(train, train), [rare], train) is None


def test_a_group_of_few_is_moved_in_fewer_ways():
    labels = (torch.arange(300) % 30 == 0).long()
    form = fitted_to(pictures(300, labels), pictures(60, torch.arange(60) % 2, seed=1))
    assert (
        form.mean(torch.zeros(2, 2, 2, 2), torch.ones(2), Condition(torch.tensor([0, 1]), text=Text(("red", "red"))))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("text", ["\0\0", "!?!", "\u202e", "a" * 100_000, "\ud800"])
def test_odd_captions_move_nothing_far(text):
    form = fitted_to(pictures(600))
    found = form.mean(torch.zeros(1, 2, 2, 2), torch.full((1,), 1e3), Condition(unconditional(1), text=Text((text,))))
    assert found.isfinite().all() and found.abs().max() < 10


def test_the_words_of_a_caption_take_little_memory():
    """For 65,536 captions are kept, of up to 2,000 letters."""
    found = buckets(" ".join(f"word{number}" for number in range(200)))
    assert len(found) > 500 and sys.getsizeof(found) < 4 * len(found)


def test_case_and_punctuation_say_nothing_and_order_does():
    assert buckets("A red, BALL!") == buckets("a red ball")
    assert set(buckets("red hair blue eyes")) != set(buckets("blue hair red eyes"))
    assert set(buckets("粉色头发")) & set(buckets("粉色背景"))  # no spaces, but letters in common
    assert bags_of(["", "a"], columns_of(torch.arange(BUCKETS))).sum(1).tolist() == [0, 1]
