"""Attributes of pictures: colours are measured, parts recognised by a classifier that was fitted to real pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.demo.describing import Facts, VisibleAttributes, styles_of
from calotype.types import Images, OtherImages

Palette = Float[Tensor, "colour 3"]  # in [-1, 1], as pictures
NEAR = 0.4
"""How far a pixel may be from a colour to count as that colour: about 30 of 255 in each channel."""
SIDE = 32
"""Pixels a side in which the classifier sees a picture."""


def rows_by_style(drawn: Sequence[Facts], rows: Iterable[int], most: int) -> dict[str, list[int]]:
    """Of these rows, the first `most` of each style."""
    rows = list(rows)
    styles = styles_of(drawn[row] for row in rows)
    return {style: [row for row in rows if drawn[row]["style"] == style][:most] for style in styles}


# -- Colours -----------------------------------------------------------------------------------------------------------


def palette(colours: Sequence[str]) -> Palette:
    """From `#rrggbb`."""
    return torch.tensor([[int(name[at : at + 2], 16) / 127.5 - 1 for at in (1, 3, 5)] for name in colours])


def background(images: Images, colours: Palette) -> Int[Tensor, " batch"]:
    """Which colour the upper corners have, an eighth of the side each: the nearest to their median."""
    side = max(1, images.shape[-1] // 8)
    corners = torch.cat([images[..., :side, :side], images[..., :side, -side:]], 3)
    return torch.cdist(corners.flatten(2).median(2).values.float(), colours).argmin(1)


def clothing(images: Images, colours: Palette) -> Int[Tensor, " batch"]:
    """Which of the colours most pixels have in the middle of the lowest eighth."""
    height, width = images.shape[-2:]
    lower = images[..., -max(1, height // 8) :, width // 4 : -(width // 4)].flatten(2).transpose(1, 2)
    away, nearest = torch.cdist(lower.float(), colours.expand(len(lower), -1, -1)).min(2)
    count = [((nearest == colour) & (away < NEAR)).sum(1) for colour in range(len(colours))]
    return torch.stack(count, 1).argmax(1)


# -- The classifier ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttributeClassifier:
    """Kernel ridge regression to one column for each value of each attribute, of which the largest counts.

    The kernel is a squared product: what counts are pixels and pairs of them, so a part may have any colour.
    """

    known: Float[Tensor, "known value"]
    mean: Float[Tensor, " value"]
    weights: Float[Tensor, "known column"]
    shares: Float[Tensor, " column"]
    values: dict[str, tuple[str, ...]]
    """What each attribute may be, in the order of the columns."""

    def __call__(self, images: OtherImages) -> list[VisibleAttributes]:
        scores = kernel(pixel_rows(images) - self.mean, self.known) @ self.weights + self.shares
        columns = scores.split([len(values) for values in self.values.values()], 1)
        best = torch.stack([column.argmax(1) for column in columns], 1).tolist()
        return [
            {about: values[place] for (about, values), place in zip(self.values.items(), places, strict=True)}
            for places in best
        ]


def fit_classifier(images: OtherImages, shown: Sequence[VisibleAttributes], ridge: float = 1e-2) -> AttributeClassifier:
    """From real pictures; its accuracy on held-out ones belongs beside its answers on samples.

    Every other picture is blurred, as samples are blurrier than training pictures.
    """
    abouts = sorted({key for each in shown for key in each})
    values = {about: tuple(sorted({each.get(about, "") for each in shown})) for about in abouts}
    targets = torch.tensor(
        [[each.get(about, "") == value for about in abouts for value in values[about]] for each in shown]
    ).double()
    rows, small = pixel_rows(images), resized(images[::2])
    rows[::2] = pixel_rows(F.avg_pool2d(small, 3, 1, 1, count_include_pad=False))
    mean, shares = rows.mean(0), targets.mean(0)
    gram = kernel(rows - mean, rows - mean)
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), targets - shares)
    return AttributeClassifier(rows - mean, mean, weights, shares, values)


def resized(images: OtherImages) -> OtherImages:
    return F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)


def pixel_rows(images: OtherImages) -> Float[Tensor, "batch value"]:
    """The pictures as the classifier sees them."""
    return resized(images).flatten(1).cpu().double()


def kernel(rows: Float[Tensor, "batch value"], known: Float[Tensor, "known value"]) -> Float[Tensor, "batch known"]:
    unit = known.square().sum(1).mean()
    return (1 + rows @ known.T / unit).square()


# -- Accuracy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Of `count` pictures, how many show what the prompts say; and how many would, at most, if all showed the same."""

    hits: int
    same: int
    count: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.same + other.same, self.count + other.count)

    @property
    def chance(self) -> float:
        """The best accuracy when ignoring the prompts."""
        return self.same / self.count

    @property
    def skill(self) -> float:
        """1 for all, 0 for no more than by chance (Cohen, Educational and Psychological Measurement 20, 1960)."""
        return (self.hits - self.same) / (self.count - self.same) if self.count > self.same else 0.0


def tally(visible: Sequence[VisibleAttributes], prompted: Sequence[VisibleAttributes], about: str) -> Tally:
    expected = [each.get(about, "") for each in prompted]
    hits = sum(each.get(about, "") == value for each, value in zip(visible, expected, strict=True))
    return Tally(hits, max(Counter(expected).values()), len(expected))
