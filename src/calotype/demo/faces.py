"""Two things that portraits lose under strong guidance: the features of a face, and dark skin.

Both judges learn from real training portraits. `FeatureJudge` tells them from the same drawings without eyes, eyebrows,
nose and mouth; `SkinJudge` measures a colour where the style has its skin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from calotype.data.images import images_from_pixels
from calotype.demo.classifier import AttributeClassifier, Palette, fit_classifier, palette, rows_by_style
from calotype.demo.describing import BROWN, DARK, SKINS, Facts
from calotype.demo.featureless import read_featureless
from calotype.evaluation.intervals import Estimate, difference_of_shares, share_estimate
from calotype.types import Images

LEARNED = 300
"""Training portraits of each style that the judges learn from."""
EDGE = 0.1
"""A face's region is where its features change a picture at least so much as where they change it most, on average."""
ALWAYS = 0.8
"""The skin's region has the colour of the skin on at least so many portraits; hair and glasses cover the rest."""
CLOSE = 0.15
"""How far a pixel may be from the drawn colour of the skin to have it: shadows and lines are further."""
DARKEST, DARKEST_BLANK = 0.6, 0.15
"""Brightness that the judge learns from. Strong guidance makes skin darker than any that is drawn: a judge that has
never seen that takes a black disc for eyes and a mouth (two of three blank portraits at 0.6 of their brightness)."""


@dataclass(frozen=True)
class FeatureJudge:
    """Says whether faces of one style have features."""

    rows: slice
    columns: slice
    judge: AttributeClassifier

    def __call__(self, images: Images) -> Bool[Tensor, " count"]:
        return torch.tensor([bool(seen["features"]) for seen in self.judge(images[..., self.rows, self.columns])])


@dataclass(frozen=True)
class SkinJudge:
    """Says whether skin of one style is dark: the nearest of the style's colours to the median over a region."""

    region: Bool[Tensor, "size size"]
    colours: Palette
    dark: Bool[Tensor, " colour"]

    def __call__(self, images: Images) -> Bool[Tensor, " count"]:
        medians = images[..., self.region].median(2).values.float()
        return self.dark[torch.cdist(medians, self.colours).argmin(1)]


class Share(NamedTuple):
    hits: int
    total: int

    @property
    def estimate(self) -> Estimate:
        """With Wilson's interval."""
        return share_estimate(self.hits, self.total)

    def agrees(self, other: Share) -> bool:
        """Whether 0 is within Newcombe's interval of the difference."""
        between = difference_of_shares(self.estimate, other.estimate)
        return between.low <= 0 <= between.high


@dataclass(frozen=True)
class FaceJudges:
    """By style; styles whose skin has no colours have no judge of skin."""

    features: dict[str, FeatureJudge]
    skin: dict[str, SkinJudge]

    def have_features(self, images: Images, styles: Sequence[str]) -> Bool[Tensor, " count"]:
        """Whether the face of each picture (in [-1, 1], of the size learned from) has features."""
        return by_style(self.features, images, styles)

    def have_dark_skin(self, images: Images, styles: Sequence[str]) -> Bool[Tensor, " coloured"]:
        """The same of dark skin; only of the pictures whose style has coloured skin, in their order."""
        rows = [row for row, style in enumerate(styles) if style in self.skin]
        return by_style(self.skin, images[rows], [styles[row] for row in rows])

    def shares(self, images: Images, styles: Sequence[str]) -> dict[str, Share]:
        """Of the pictures: how many have features, and how many of those with coloured skin have dark skin."""
        answers = {"features": self.have_features(images, styles), "dark skin": self.have_dark_skin(images, styles)}
        return {name: Share(int(answer.sum()), len(answer)) for name, answer in answers.items() if len(answer)}


def by_style(
    judges: Mapping[str, Callable[[Images], Tensor]], images: Images, styles: Sequence[str]
) -> Bool[Tensor, " count"]:
    answers = torch.zeros(len(images), dtype=torch.bool)
    for style in sorted(set(styles)):
        rows = torch.tensor([row for row, own in enumerate(styles) if own == style])
        answers[rows] = judges[style](images[rows])
    return answers


def learn_face_judges(pixels: UInt8[Tensor, "count 3 size size"], drawn: Sequence[Facts]) -> FaceJudges:
    """From training portraits of one size, and what is drawn on them: the first `LEARNED` of each style are used."""
    features, skin = {}, {}
    for style, rows in rows_by_style(drawn, range(len(drawn)), LEARNED).items():
        facts, images = [drawn[row] for row in rows], images_from_pixels(pixels[rows])
        features[style] = learn_features(images, images_from_pixels(read_featureless(facts, pixels.shape[-1])))
        if skin_of(facts[0]) in SKINS:
            skin[style] = learn_skin(images, facts)
    return FaceJudges(features, skin)


def learn_features(images: Images, blank: Images) -> FeatureJudge:
    """From portraits, and the same without features."""
    change = (images - blank).abs().mean((0, 1))
    rows, columns = (bounds(change.amax(axis) > EDGE * change.max()) for axis in (1, 0))
    sets = [images, darkened(moved(images), DARKEST), blank, darkened(moved(blank), DARKEST_BLANK)]
    shown = [{"features": "present"}] * (2 * len(images)) + [{"features": ""}] * (2 * len(blank))
    return FeatureJudge(rows, columns, fit_classifier(torch.cat(sets)[..., rows, columns], shown))


def moved(images: Images) -> Images:
    """Blurred to half the resolution, and moved by up to a 64th of the side: samples are softer, and less in place."""
    size = images.shape[-1]
    half = F.interpolate(images, size=(size // 2, size // 2), mode="bilinear", antialias=True)
    soft = F.interpolate(half, size=(size, size), mode="bilinear")
    reach = max(1, size // 64)
    steps = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 2).tolist()
    return torch.stack([image.roll(steps[row % len(steps)], (1, 2)) for row, image in enumerate(soft)])


def darkened(images: Images, darkest: float) -> Images:
    """To shares of their brightness, evenly from `darkest` to 1, in an order that is always the same."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    shares = torch.linspace(darkest, 1, len(images))[order]
    return (images + 1) * shares[:, None, None, None] - 1


def bounds(inside: Bool[Tensor, " side"]) -> slice:
    """From the first to the last place inside."""
    places = inside.nonzero().flatten().tolist()
    return slice(places[0], places[-1] + 1)


def learn_skin(images: Images, drawn: Sequence[Facts]) -> SkinJudge:
    """The colours are measured in the region: shades that a style lays over its faces change them."""
    own = [skin_of(facts) for facts in drawn]
    names = sorted(set(own))
    share = ((images - palette(own)[:, :, None, None]).abs().amax(1) < CLOSE).float().mean(0)
    region = share >= min(ALWAYS, float(share.max()))
    medians = images[..., region].median(2).values
    colours = [medians[[each == name for each in own]].median(0).values for name in names]
    return SkinJudge(region, torch.stack(colours), torch.tensor(list(map(is_dark, names))))


def skin_of(facts: Facts) -> str:
    return str(facts.get("skinColor") or facts.get("baseColor") or "")


def is_dark(colour: str) -> bool:
    return SKINS[colour] in (BROWN, DARK)
