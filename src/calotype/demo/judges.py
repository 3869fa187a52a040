"""Judges what samples of portraits show, by classifiers fitted to real portraits; colours are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from calotype.data.images import grid, images_from_pil, pils_from_images, pixels_from_images
from calotype.demo.classifier import (
    SIDE,
    AttributeClassifier,
    Tally,
    background,
    clothing,
    fit_classifier,
    palette,
    rows_by_style,
    tally,
)
from calotype.demo.describing import (
    BACKGROUNDS,
    CLOTHES,
    LANGUAGES,
    Facts,
    VisibleAttributes,
    describe,
    unseen_combinations,
    visible_attributes,
)
from calotype.demo.faces import LEARNED, learn_face_judges
from calotype.evaluation.alignment import Judged
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.intervals import share_estimate
from calotype.evaluation.measures import as_measure
from calotype.evaluation.references import FeatureStore
from calotype.evaluation.results import Accuracy, Attribute, PropertyShare
from calotype.types import Images, OtherImages

MOST_LEARNED = 1200
"""Training portraits from which a classifier learns."""
LARGEST = 128
"""Side in pixels at which colours are measured, where pictures are not smaller."""
ALL = ""  # in the place of a style
OF_ALL = ("background", "style")
MEASURED = ("background", "clothes")
SKILL = 0.5
"""Cohen's kappa that a classifier must have on real portraits to count: half of what guessing gets wrong is right."""
SHOWN = 12
"""Samples of each language that are shown with their prompts."""

About = tuple[str, str]  # a style, or ALL, and the attribute
Tallies = dict[About, Tally]


@dataclass(frozen=True)
class PortraitJudge:
    """Judges samples of prompts that are absent from training captions, in each language."""

    drawn: Sequence[Facts]
    """What each portrait of the store shows."""
    languages: tuple[str, ...] = LANGUAGES

    def judge(self, candidate: Candidate, store: FeatureStore, count: int, seed: int) -> Judged:
        train, test = store.pictures.train_indices.tolist(), store.pictures.test_indices.tolist()
        prompted = unseen_combinations([self.drawn[row] for row in train], count)
        if not prompted or not test:
            return Judged(left_out=["attributes: too few portraits for prompts absent from all captions"])
        classifiers = fit_classifiers(store, self.drawn, candidate.size)
        real = classifiers.tallies(
            shrunk_images(store, test, candidate.size, LARGEST), [self.drawn[row] for row in test]
        )
        sampled, plates, prompts, shares = [], [], [], list[PropertyShare]()
        for place, language in enumerate(self.languages):
            texts = [describe(each)[place] for each in prompted]
            images = prompted_samples(candidate, texts, seed, store, f"prompts in {language}")
            sampled.append(classifiers.tallies(images, prompted))
            shares = shares or face_shares(store, self.drawn, candidate.size, images, prompted)
            plates += pils_from_images(images[:SHOWN])
            prompts += texts[:SHOWN]
        reliable = {about for about, counted in real.items() if counted.skill >= SKILL}
        table = [attribute(about, sampled, real, reliable) for about in in_order(reliable & set(sampled[0]))]
        rest = ", ".join(f"{about}{f' ({style})' if style else ''}" for style, about in sorted(set(real) - reliable))
        left_out = [f"{rest}: on real portraits the judge is hardly better than guessing"] if rest else []
        return Judged(table, shares, left_out, prompts, grid(plates, SHOWN))


def prompted_samples(
    candidate: Candidate, prompts: Sequence[str], seed: int, store: FeatureStore, name: str
) -> OtherImages:
    """Those of `calotype sample --prompts`, at most `LARGEST` px; `name` is that of the progress bar."""
    images: list[OtherImages] = []
    with store.bar(name) as progress:
        for picture in candidate.model.draw(len(prompts), seed=seed, prompt=prompts):
            images.append(at_most(images_from_pil(picture), LARGEST))
            progress(len(images), len(prompts))
    return torch.cat(images)


def shrunk_images(store: FeatureStore, rows: Sequence[int], size: int, most: int) -> OtherImages:
    return torch.cat([at_most(store.images(part, size), most) for part in store.parts(torch.tensor(rows))])


def at_most(images: OtherImages, most: int) -> OtherImages:
    if images.shape[-1] <= most:
        return images
    return F.interpolate(images, size=(most, most), mode="bilinear", antialias=True)


def face_shares(
    store: FeatureStore, drawn: Sequence[Facts], size: int, images: OtherImages, prompted: Sequence[Facts]
) -> list[PropertyShare]:
    """How many samples, and how many test portraits, have facial features and dark skin: strong guidance loses both."""
    train, test = store.pictures.train_indices.tolist(), store.pictures.test_indices.tolist()
    chosen = [row for rows in rows_by_style(drawn, train, LEARNED).values() for row in rows]
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
        return sum((each for key, each in counted.items() if key in reliable and key[1] == about), Tally(0, 0, 0))

    samples, own = [over_styles(each) for each in sampled], over_styles(real)
    return Attribute(
        about=about,
        samples=[as_measure(share_estimate(each.hits, each.count)) for each in samples],
        n=samples[0].count,
        chance=samples[0].chance,
        real=Accuracy(**as_measure(share_estimate(own.hits, own.count)).stored(), n=own.count, chance=own.chance),
    )


def in_order(reliable: set[About]) -> list[str]:
    """Attributes in the order in which they are shown."""
    known = {about for _, about in reliable}
    first = [about for about in (*OF_ALL, "clothes") if about in known]
    return first + sorted(known - set(first))


# -- Classifiers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PortraitClassifiers:
    style: AttributeClassifier
    within: dict[str, AttributeClassifier]
    """By style: what portraits of that style may show."""

    def tallies(self, images: OtherImages, facts: Sequence[Facts]) -> Tallies:
        """Of pictures with these prompts, by style, as others have other hair; style and background of all together."""
        visible, prompted = self.visible(images, facts), [visible_attributes(each) for each in facts]
        counted = {(ALL, about): tally(visible, prompted, about) for about in OF_ALL}
        for style, rows in self._rows(facts).items():
            seen, own = ([each[row] for row in rows] for each in (visible, prompted))
            abouts = [*self.within[style].values, *(["clothes"] if style in CLOTHES else [])]
            counted |= {(style, about): tally(seen, own, about) for about in abouts}
        return counted

    def _rows(self, facts: Sequence[Facts]) -> dict[str, list[int]]:
        rows = rows_by_style(facts, range(len(facts)), len(facts))
        return {style: rows[style] for style in self.within if style in rows}

    def visible(self, images: OtherImages, facts: Sequence[Facts]) -> list[VisibleAttributes]:
        """Attributes of each picture, judged as one of the style of its prompt."""
        grounds = [names[0] for names in BACKGROUNDS.values()]
        places = background(images, palette(list(BACKGROUNDS))).tolist()
        attributes = [
            each | {"background": grounds[place]} for each, place in zip(self.style(images), places, strict=True)
        ]
        for style, rows in self._rows(facts).items():
            for row, seen in zip(rows, self.within[style](images[rows]), strict=True):
                attributes[row] |= seen
            if colours := CLOTHES.get(style):
                names = [f"{name[0]} clothes" for name in colours.values()]
                for row, place in zip(rows, clothing(images[rows], palette(list(colours))).tolist(), strict=True):
                    attributes[row]["clothes"] = names[place]
        return attributes


def fit_classifiers(store: FeatureStore, drawn: Sequence[Facts], size: int) -> PortraitClassifiers:
    """From training portraits; `drawn` is what all of the store's show."""
    chosen_of = rows_by_style(drawn, store.pictures.train_indices.tolist(), MOST_LEARNED)
    pictures, within = dict[str, Images](), {}
    with store.bar("judges") as progress:
        for place, (style, chosen) in enumerate(chosen_of.items(), 1):
            pictures[style] = shrunk_images(store, chosen, size, SIDE)
            within[style] = fit_classifier(pictures[style], [recognised(drawn[row]) for row in chosen])
            progress(place, len(chosen_of))
    few = MOST_LEARNED // len(chosen_of)
    named = [{"style": style} for style, images in pictures.items() for _ in images[:few]]
    return PortraitClassifiers(fit_classifier(torch.cat([images[:few] for images in pictures.values()]), named), within)


def recognised(facts: Facts) -> VisibleAttributes:
    """The attributes that the classifier of one style knows."""
    return {about: value for about, value in visible_attributes(facts).items() if about not in (*OF_ALL, *MEASURED)}
