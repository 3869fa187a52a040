"""What portraits show, judged by what real portraits have shown; colours are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from calotype.demo.describing import BACKGROUNDS, CLOTHES, Facts, shown, styles_of
from calotype.evaluation.alignment import SIDE, Judge, Shown, Tally, background, clothing, learn, palette, tally
from calotype.evaluation.references import Library
from calotype.types import Images, OtherImages

MOST_LEARNED = 1200
"""Training portraits from which a judge learns."""
LARGEST = 128
"""Side in pixels at which colours are measured, where pictures are not smaller."""
ALL = ""  # in the place of a style
OF_ALL = ("background", "style")
MEASURED = ("background", "clothes")

About = tuple[str, str]  # a style, or ALL, and what of it is told
Tallies = dict[About, Tally]


@dataclass(frozen=True)
class Judges:
    style: Judge
    within: dict[str, Judge]
    """By style: what portraits of that style may show."""


def learn_judges(library: Library, drawn: Sequence[Facts], size: int, told: Callable[[int, int, str], None]) -> Judges:
    """From training portraits; `drawn` is what all of the library's show."""
    rows, styles = library.pictures.train_indices.tolist(), styles_of(drawn)
    some = {style: [row for row in rows if drawn[row]["style"] == style][:MOST_LEARNED] for style in styles}
    pictures, within = {}, {}
    for place, (style, chosen) in enumerate(some.items(), 1):
        pictures[style] = looked_at(library, chosen, size, SIDE)
        within[style] = learn(pictures[style], [recognised(drawn[row]) for row in chosen])
        told(place, len(some), style)
    few = MOST_LEARNED // len(some)
    named = [{"style": style} for style, images in pictures.items() for _ in images[:few]]
    return Judges(learn(torch.cat([images[:few] for images in pictures.values()]), named), within)


def recognised(facts: Facts) -> Shown:
    """What a judge of one style has to say."""
    return {about: said for about, said in shown(facts).items() if about not in (*OF_ALL, *MEASURED)}


def see(judges: Judges, images: Images, asked: Sequence[Facts]) -> list[Shown]:
    """What is to be seen, each picture judged as one of the style that was asked for."""
    grounds = [said[0] for said in BACKGROUNDS.values()]
    found: list[dict[str, str]] = [dict(one) for one in judges.style(images)]
    for one, place in zip(found, background(images, palette(list(BACKGROUNDS))), strict=True):
        one["background"] = grounds[int(place)]
    for style, judge in judges.within.items():
        if not (rows := of_style(asked, style)):
            continue
        for row, seen in zip(rows, judge(images[rows]), strict=True):
            found[row] |= seen
        if colours := CLOTHES.get(style):
            names = [f"{said[0]} clothes" for said in colours.values()]
            for row, place in zip(rows, clothing(images[rows], palette(list(colours))), strict=True):
                found[row]["clothes"] = names[int(place)]
    return list(found)


def of_style(asked: Sequence[Facts], style: str) -> list[int]:
    return [row for row, one in enumerate(asked) if one["style"] == style]


def tallies(judges: Judges, found: Sequence[Shown], asked: Sequence[Facts]) -> Tallies:
    """By style, as others have other hair; style and background of all together."""
    told = [shown(one) for one in asked]
    counted = {(ALL, about): tally(found, told, about) for about in OF_ALL}
    for style, judge in judges.within.items():
        if rows := of_style(asked, style):
            seen, own = ([some[row] for row in rows] for some in (found, told))
            abouts = [*judge.values, *(["clothes"] if style in CLOTHES else [])]
            counted |= {(style, about): tally(seen, own, about) for about in abouts}
    return counted


def looked_at(library: Library, rows: Sequence[int], size: int, most: int) -> OtherImages:
    parts = library.parts(torch.tensor(rows))
    return torch.cat([small(library.images(part, size), most) for part in parts])


def small(images: OtherImages, most: int) -> OtherImages:
    if images.shape[-1] <= most:
        return images
    return F.interpolate(images, size=(most, most), mode="bilinear", antialias=True)
