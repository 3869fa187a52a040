"""Judges what samples of portraits show, by classifiers fitted to real portraits; colours are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from calotype.data.images import grid, pils_from_images, pixels_from_images
from calotype.demo.classifier import (
    SIDE,
    AttributeClassifier,
    Tally,
    background,
    clothing,
    fit_classifier,
    palette,
    tally,
)
from calotype.demo.describing import (
    BACKGROUNDS,
    CLOTHES,
    LANGUAGES,
    Facts,
    VisibleAttributes,
    describe,
    styles_of,
    unseen_combinations,
    visible_attributes,
)
from calotype.demo.faces import LEARNED, learn_face_judges
from calotype.evaluation.alignment import Judged, prompted_samples
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.intervals import share_estimate
from calotype.evaluation.measures import as_measure
from calotype.evaluation.references import FeatureStore
from calotype.evaluation.results import Accuracy, Attribute, PropertyShare
from calotype.types import Images, OtherImages

MOST_LEARNED = 1200
"""Training portraits from which a judge learns."""
LARGEST = 128
"""Side in pixels at which colours are measured, where pictures are not smaller."""
ALL = ""  # in the place of a style
OF_ALL = ("background", "style")
MEASURED = ("background", "clothes")
SKILL = 0.5
"""Cohen's kappa that a classifier must have on real portraits to count: half of what guessing gets wrong is right."""
SHOWN = 12
"""Samples of each language that are visible_attributes with their prompts."""

About = tuple[str, str]  # a style, or ALL, and the attribute
Tallies = dict[About, Tally]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PortraitJudge:
    """Judges samples of prompts that are absent from training captions, in each language."""

    drawn: Sequence[Facts]
    """What each portrait of the store shows."""
    languages: tuple[str, ...] = LANGUAGES

    def judge(self, one: Candidate, store: FeatureStore, count: int, seed: int) -> Judged:
        train, test = store.pictures.train_indices.tolist(), store.pictures.test_indices.tolist()
        prompted = unseen_combinations([self.drawn[row] for row in train], count)
        if not prompted or not test:
            return Judged(left_out=["attributes: too few portraits for prompts that no caption says"])
        with store.bar("judges") as progress:
            judges = fit_classifiers(store, self.drawn, one.size, progress)
        facts = [self.drawn[row] for row in test]
        real = tallies(judges, visible(judges, shrunk_images(store, test, one.size, LARGEST), facts), facts)
        sampled, plates, prompts, shares = [], [], [], list[PropertyShare]()
        for place, language in enumerate(self.languages):
            texts = [describe(each)[place] for each in prompted]
            images = prompted_samples(one, texts, seed, store.bar, f"prompts in {language}", at_most_largest)
            sampled.append(tallies(judges, visible(judges, images, prompted), prompted))
            shares = shares or face_shares(store, self.drawn, one.size, images, prompted)
            plates += pils_from_images(images[:SHOWN])
            prompts += texts[:SHOWN]
        reliable = {about for about, one_tally in real.items() if one_tally.skill >= SKILL}
        table = [attribute(about, sampled, real, reliable) for about in abouts(reliable & set(sampled[0]))]
        rest = ", ".join(f"{about}{f' ({style})' if style else ''}" for style, about in sorted(set(real) - reliable))
        left_out = [f"{rest}: on real portraits the judge is hardly better than guessing"] if rest else []
        return Judged(table, shares, left_out, prompts, grid(plates, SHOWN))


def face_shares(
    store: FeatureStore, drawn: Sequence[Facts], size: int, images: OtherImages, prompted: Sequence[Facts]
) -> list[PropertyShare]:
    """How many samples, and how many test portraits, have facial features and dark skin: strong guidance loses both."""
    train, test = store.pictures.train_indices.tolist(), store.pictures.test_indices.tolist()
    chosen = [
        row for style in styles_of(drawn) for row in [row for row in train if drawn[row]["style"] == style][:LEARNED]
    ]
    pixels = pixels_from_images(shrunk_images(store, chosen, size, LARGEST))
    judges = learn_face_judges(pixels, [drawn[row] for row in chosen])
    real = judges.shares(shrunk_images(store, test, size, LARGEST), [drawn[row]["style"] for row in test])
    samples = judges.shares(images, [facts["style"] for facts in prompted])
    return [
        PropertyShare(
            about=about,
            samples=as_measure(share.estimate),
            real=as_measure(real[about].estimate),
            n=(share.total, real[about].total),
            agrees=share.agrees(real[about]),
        )
        for about, share in samples.items()
        if about in real
    ]


def attribute(about: str, sampled: Sequence[Tallies], real: Tallies, reliable: set[About]) -> Attribute:
    """Accuracy on the samples of each language, and on real portraits with their own captions."""

    def over_styles(counted: Tallies) -> Tally:
        return sum((one for key, one in counted.items() if key in reliable and key[1] == about), Tally(0, 0, 0))

    samples, own = [over_styles(one) for one in sampled], over_styles(real)
    return Attribute(
        about=about,
        samples=[as_measure(share_estimate(one.hits, one.count)) for one in samples],
        n=samples[0].count,
        chance=samples[0].chance,
        real=Accuracy(**as_measure(share_estimate(own.hits, own.count)).stored(), n=own.count, chance=own.chance),
    )


def abouts(reliable: set[About]) -> list[str]:
    """In the order in which they are shown."""
    known = {about for _, about in reliable}
    first = [about for about in (*OF_ALL, "clothes") if about in known]
    return first + sorted(known - set(first))


@dataclass(frozen=True)
class PortraitClassifiers:
    style: AttributeClassifier
    within: dict[str, AttributeClassifier]
    """By style: what portraits of that style may show."""


def fit_classifiers(store: FeatureStore, drawn: Sequence[Facts], size: int, progress: Progress) -> PortraitClassifiers:
    """From training portraits; `drawn` is what all of the library's show."""
    rows, styles = store.pictures.train_indices.tolist(), styles_of(drawn)
    chosen_of = {style: [row for row in rows if drawn[row]["style"] == style][:MOST_LEARNED] for style in styles}
    pictures, within = {}, {}
    for place, (style, chosen) in enumerate(chosen_of.items(), 1):
        pictures[style] = shrunk_images(store, chosen, size, SIDE)
        within[style] = fit_classifier(pictures[style], [recognised(drawn[row]) for row in chosen])
        progress(place, len(chosen_of), style)
    few = MOST_LEARNED // len(chosen_of)
    named = [{"style": style} for style, images in pictures.items() for _ in images[:few]]
    return PortraitClassifiers(fit_classifier(torch.cat([images[:few] for images in pictures.values()]), named), within)


def recognised(facts: Facts) -> VisibleAttributes:
    """The attributes that the classifier of one style knows."""
    return {about: value for about, value in visible_attributes(facts).items() if about not in (*OF_ALL, *MEASURED)}


def visible(judges: PortraitClassifiers, images: Images, facts: Sequence[Facts]) -> list[VisibleAttributes]:
    """Attributes of each picture, judged as one of the style of its prompt."""
    grounds = [names[0] for names in BACKGROUNDS.values()]
    attributes: list[dict[str, str]] = [dict(one) for one in judges.style(images)]
    for one, place in zip(attributes, background(images, palette(list(BACKGROUNDS))), strict=True):
        one["background"] = grounds[int(place)]
    for style, judge in judges.within.items():
        if not (rows := of_style(facts, style)):
            continue
        for row, seen in zip(rows, judge(images[rows]), strict=True):
            attributes[row] |= seen
        if colours := CLOTHES.get(style):
            names = [f"{name[0]} clothes" for name in colours.values()]
            for row, place in zip(rows, clothing(images[rows], palette(list(colours))), strict=True):
                attributes[row]["clothes"] = names[int(place)]
    return list(attributes)


def of_style(facts: Sequence[Facts], style: str) -> list[int]:
    return [row for row, one in enumerate(facts) if one["style"] == style]


def tallies(judges: PortraitClassifiers, attributes: Sequence[VisibleAttributes], facts: Sequence[Facts]) -> Tallies:
    """By style, as others have other hair; style and background of all together."""
    prompted = [visible_attributes(one) for one in facts]
    counted = {(ALL, about): tally(attributes, prompted, about) for about in OF_ALL}
    for style, judge in judges.within.items():
        if rows := of_style(facts, style):
            seen, own = ([each[row] for row in rows] for each in (attributes, prompted))
            abouts = [*judge.values, *(["clothes"] if style in CLOTHES else [])]
            counted |= {(style, about): tally(seen, own, about) for about in abouts}
    return counted


def shrunk_images(store: FeatureStore, rows: Sequence[int], size: int, most: int) -> OtherImages:
    parts = store.parts(torch.tensor(rows))
    return torch.cat([at_most(store.images(part, size), most) for part in parts])


def at_most(images: OtherImages, most: int) -> OtherImages:
    if images.shape[-1] <= most:
        return images
    return F.interpolate(images, size=(most, most), mode="bilinear", antialias=True)


def at_most_largest(images: OtherImages) -> OtherImages:
    return at_most(images, LARGEST)
