"""Line plots as SVG: dashes and marks tell the series apart, and each is named where it ends."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from calotype.report.format import scaled, spaced
from calotype.report.html import Html, tag

Point = tuple[float, float]
PLOT_WIDTH, PLOT_HEIGHT = 400.0, 244.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 88.0, 24.0, 48.0
LABEL_GAP = 13.0
FROM_ZERO = ("images seen", "minutes")
"""Quantities whose axis starts at 0."""
LINE_STYLES = 5  # s0 ... s4 in style.css
MARK_SHAPES = {  # a square, a triangle, a diamond and a cross around the point
    "s1": "m-3 -3h6v6h-6z", "s2": "m0 -4l4 7h-8z", "s3": "m0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
    "s4": "m-3 -3l6 6m0 -6l-6 6",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A smoothed line through many points, or a line through a few with a mark at each (`marked`)."""

    name: str
    points: list[Point]
    marked: bool = False
    style: int | None = None
    """The same in every plot of a page; None: by the place in this plot."""
    raw: Sequence[Point] = ()
    """What is drawn thinly below a smoothed line: the extremes of its buckets; empty: its points."""

    def line(self) -> list[Point]:
        return self.points if self.marked else smoothed(self.points)


def plot(title: str, y_title: str, series: Sequence[Series], x_title: str = "images seen", note: str = "") -> Html:
    """A figure with its caption. Every series needs a point."""
    x = [value for curve in series for value, _ in curve.points]
    frame = Frame(axis_from_zero(max(x)) if x_title in FROM_ZERO else axis_around(x), axis_around(inner_values(series)))
    parts = [*y_axis(frame, y_title), *x_axis(frame, x_title)]
    heights = spread([frame.y_at(curve.line()[-1][1]) for curve in series], LABEL_GAP, PLOT_HEIGHT - BOTTOM)
    for index, (curve, height) in enumerate(zip(series, heights, strict=True)):
        style = f"s{(index if curve.style is None else curve.style) % LINE_STYLES}"
        parts += [] if curve.marked else [polyline(frame, peaks(curve.raw or curve.points), f"raw {style}")]
        parts.append(polyline(frame, thinned(curve.line()), f"line {style}", spaced(curve.name)))
        seen = curve.points if curve.marked or len(curve.points) == 1 else []  # a line of one point cannot be seen
        parts += [mark(frame.x_at(x), frame.y_at(y), style) for x, y in seen]
        parts.append(svg_text(spaced(curve.name)[:15], PLOT_WIDTH - RIGHT + 8, height + 4, f"name {style}"))
    box = f"0 0 {PLOT_WIDTH:g} {PLOT_HEIGHT:g}"
    caption = tag("figcaption", tag("b", f"{title}."), f" {note}")
    drawing = tag("svg", tag("title", title), *parts, viewBox=box, role="img", data_axes=axes_text(frame))
    return tag("figure", caption, drawing, class_="plot")


def axes_text(frame: Frame) -> str:
    """Where the axes begin and end, as JSON, for a page that shows the values under the pointer."""
    ends = {name: [axis.low, axis.high, int(axis.logarithmic)] for name, axis in (("x", frame.x), ("y", frame.y))}
    margins = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": PLOT_WIDTH, "height": PLOT_HEIGHT}
    return json.dumps({**ends, **margins})


# -- Axes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Maps values to 0 ... 1; values beyond `low` and `high` are clipped."""

    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis_from_zero(high: float) -> Axis:
    """From 0 to `high`, with at most six ticks."""
    high = max(high, 1.0)
    step = round_step(high / 5)
    return Axis(0.0, high, [step * index for index in range(math.floor(high / step * (1 + 1e-9)) + 1)])


def axis_around(values: Sequence[float]) -> Axis:
    """From tick to tick; logarithmic where all values are positive and the largest is 8 times the smallest or more.

    Its ticks are then at 1, 2 and 5 of each decade, or at 1 and 3, or at 1: the first choice with at most seven.
    """
    low, high = min(values), max(values)
    if 0 < low <= high / 8:
        choices = [decade_ticks(low, high, digits) for digits in ((1, 2, 5), (1, 3), (1,))]
        ticks = next((ticks for ticks in choices if len(ticks) <= 7), choices[-1])
        return Axis(ticks[0], ticks[-1], ticks, logarithmic=True)
    step = round_step((high - low) / 4 or abs(high) / 4 or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0], ticks[-1], ticks)


def decade_ticks(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """The digits times powers of ten, from the last one up to `low` to the first from `high` on."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return ticks[bisect.bisect_right(ticks, low) - 1 : bisect.bisect_left(ticks, high) + 1]


def round_step(step: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def inner_values(series: Sequence[Series]) -> list[float]:
    """The values that must be visible: without the outermost 1% at either end of long series."""
    values = [sorted(y for _, y in curve.points) for curve in series]
    return [y for ys in values for y in ys[len(ys) // 100 : len(ys) - len(ys) // 100]]


# -- Points ------------------------------------------------------------------------------------------------------------


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A running mean over 5% of the points, over fewer at both ends."""
    count, sums = len(points), [0.0, *accumulate(y for _, y in points)]
    means = []
    for index, (x, _) in enumerate(points):
        reach = min(index, count // 40)
        start, end = index - reach, min(count, index + reach + 1)
        means.append((x, (sums[end] - sums[start]) / (end - start)))
    return means


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """About `most` points at most, the last among them."""
    return [*points[: -1 : math.ceil(len(points) / most)], points[-1]]


def peaks(points: Sequence[Point], most: int = 300) -> list[Point]:
    """About `most` points at most: the lowest and the highest of neighbours, as they follow each other, and the last.

    A loss that rises for a single step stays visible.
    """
    size = 2 * math.ceil(len(points) / most)
    if size <= 2:
        return list(points)
    parts = (range(start, min(start + size, len(points))) for start in range(0, len(points), size))
    chosen = [{min(part, key=lambda at: points[at][1]), max(part, key=lambda at: points[at][1])} for part in parts]
    return [points[at] for at in sorted({*chain.from_iterable(chosen), len(points) - 1})]


def spread(heights: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Heights moved apart by at least `gap`, in the same order and none below `lowest` (SVG counts downwards)."""
    order, placed = sorted(range(len(heights)), key=heights.__getitem__), list(heights)
    for before, index in pairwise(order):
        placed[index] = max(placed[index], placed[before] + gap)
    for index in reversed(order):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - gap
    return placed


# -- Drawing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """Maps values to coordinates of the drawing."""

    x: Axis
    y: Axis

    def x_at(self, value: float) -> float:
        return round(LEFT + self.x.at(value) * (PLOT_WIDTH - LEFT - RIGHT), 1)

    def y_at(self, value: float) -> float:
        return round(PLOT_HEIGHT - BOTTOM - self.y.at(value) * (PLOT_HEIGHT - TOP - BOTTOM), 1)


def mark(x: float, y: float, style: str) -> Html:
    """A ring, or the shape of its style, so that series differ without colour."""
    if style not in MARK_SHAPES:
        return tag("circle", cx=x, cy=y, r=3.2, class_=f"mark {style}")
    return tag("path", d=f"M{x:g} {y:g}{MARK_SHAPES[style]}", class_=f"mark {style}")


def polyline(frame: Frame, points: Sequence[Point], kind: str, name: str | None = None) -> Html:
    places = " ".join(f"{frame.x_at(x):g},{frame.y_at(y):g}" for x, y in points)
    return tag("polyline", points=places, class_=kind, data_name=name)


def svg_text(content: str, x: float, y: float, kind: str | None = None, anchor: str | None = None) -> Html:
    return tag("text", content, x=round(x, 1), y=round(y, 1), class_=kind, text_anchor=anchor)


def y_axis(frame: Frame, title: str) -> Iterator[Html]:
    yield svg_text(title + (", log scale" if frame.y.logarithmic else ""), 0.0, 11.0)
    for tick in frame.y.ticks:
        y = frame.y_at(tick)
        yield tag("line", x1=LEFT, x2=PLOT_WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield svg_text(f"{tick:.6g}".replace("-", "−"), LEFT - 6, y + 4, anchor="end")


def x_axis(frame: Frame, title: str) -> Iterator[Html]:
    foot, end = PLOT_HEIGHT - BOTTOM, PLOT_WIDTH - RIGHT
    yield tag("line", x1=LEFT, x2=end, y1=foot, y2=foot, class_="axis")
    for tick in frame.x.ticks:
        x = frame.x_at(tick)
        yield tag("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="axis")
        yield svg_text(scaled(tick), x, foot + 17, anchor="middle")
    yield svg_text(title + (", log scale" if frame.x.logarithmic else ""), end, foot + 34, anchor="end")
