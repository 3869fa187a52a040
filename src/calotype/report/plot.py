"""Plots as SVG inside the page."""

from __future__ import annotations

@dataclass(frozen=True)
class Axis:
    """Values to 0 ... 1; what lies beyond `low` and `high` sticks to the edge."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis_from_zero(high: float) -> Axis:
    """From 0 to just `high`, with at most six ticks."""
    high = max(high, 1.0)
    step = round_step(high / 5)
    return Axis(0.0, high, tuple(step * index for index in range(math.floor(high / step * (1 + 1e-9)) + 1)))


def axis_around(values: Sequence[float]) -> Axis:
    """From tick to tick, logarithmic where all values are positive and the largest is 8 times the smallest or more."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 < low <= high / 8:
        return logarithmic_axis(low, high)
    step = round_step((high - low) / 4 or abs(high) / 4 or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(round(step * index, 12) for index in range(first, max(last, first + 1) + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def logarithmic_axis(low: float, high: float) -> Axis:
    """With the most ticks of 1, 2 and 5, or 1 and 3, or 1 in a decade that are at most seven."""
    choices = [ticks_between(low, high, digits) for digits in ((1, 2, 5), (1, 3), (1,))]
    ticks = next((ticks for ticks in choices if len(ticks) <= 7), choices[-1])
    return Axis(ticks[0], ticks[-1], ticks, logarithmic=True)


def ticks_between(low: float, high: float, digits: Sequence[int]) -> tuple[float, ...]:
    """From the last tick up to `low` to the first from `high` on."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return tuple(ticks[bisect.bisect_right(ticks, low) - 1 : bisect.bisect_left(ticks, high) + 1])


def round_step(step: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


@dataclass(frozen=True)
class Series:
    """A line through many values, or marks at a few measured ones."""

    name: str
    points: list[Point]
    marked: bool = False


WIDTH, HEIGHT = 400, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 88, 24, 36
LABEL_GAP, STYLES = 13.0, 5


@dataclass(frozen=True)
class Frame:
    """Where values lie in the drawing, in its units."""

    x: Axis
    y: Axis

    def x_at(self, value: float) -> float:
        return round(LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM), 1)

    def line(self, points: Iterable[Point], kind: str) -> Html:
        return tag("polyline", points=" ".join(f"{self.x_at(x):g},{self.y_at(y):g}" for x, y in points), class_=kind)


def plot(title: str, y_title: str, series: Sequence[Series]) -> Html:
    """Series over images seen, as SVG: told apart by dashes or marks, and named where they end."""
    frame = Frame(axis_from_zero(max(x for one in series for x, _ in one.points)), axis_around(extent(series)))
    scale = ", log scale" if frame.y.logarithmic else ""
    heights = spread([frame.y_at(drawn(one)[-1][1]) for one in series], LABEL_GAP, HEIGHT - BOTTOM)
    shapes = [part for index, one in enumerate(series) for part in shapes_of(frame, one, index % STYLES)]
    names = [
        label(plain(one.name), height, index % STYLES)
        for index, (one, height) in enumerate(zip(series, heights, strict=True))
    ]
    axes = [*y_axis(frame), *x_axis(frame), text(y_title + scale, 0, 11, "title")]
    return tag("svg", tag("title", title), *axes, *shapes, *names, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def extent(series: Sequence[Series]) -> list[float]:
    """The values that must be seen: of long lines not the outermost hundredth."""
    return [value for one in series for value in middle([y for _, y in one.points])]


def middle(values: list[float]) -> list[float]:
    outside = len(values) // 100
    return sorted(values)[outside : len(values) - outside]


def drawn(series: Series) -> list[Point]:
    return series.points if series.marked else smoothed(series.points)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A running mean over a twentieth of the points: at the start over as many on both sides, at the end over those before."""
    reach, sums = len(points) // 40, [0.0, *accumulate(y for _, y in points)]
    windows = [
        (index - min(index, reach), min(len(points), index + min(index, reach) + 1)) for index in range(len(points))
    ]
    return [
        (x, (sums[end] - sums[start]) / (end - start)) for (x, _), (start, end) in zip(points, windows, strict=True)
    ]


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    step = math.ceil(len(points) / most)
    return [*points[:-1:step], points[-1]]


def shapes_of(frame: Frame, series: Series, style: int) -> list[Html]:
    line = frame.line(thinned(drawn(series)), f"line s{style}")
    if series.marked:
        marks = (
            tag("circle", cx=frame.x_at(x), cy=frame.y_at(y), r=3.2, class_=f"mark s{style}") for x, y in series.points
        )
        return [line, *marks]
    return [frame.line(thinned(series.points), f"raw s{style}"), line]


def spread(heights: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Heights moved apart to at least `gap` in the same order, none below `lowest` (SVG counts downwards)."""
    order, placed = sorted(range(len(heights)), key=heights.__getitem__), list(heights)
    for before, index in zip(order, order[1:], strict=False):
        placed[index] = max(placed[index], placed[before] + gap)
    for index in reversed(order):
        placed[index], lowest = min(placed[index], lowest), min(placed[index], lowest) - gap
    return placed


def label(name: str, height: float, style: int) -> Html:
    return text(name if len(name) < 16 else f"{name[:14]}…", WIDTH - RIGHT + 7, height + 4, f"name s{style}")


def text(words: str, x: float, y: float, kind: str = "tick", anchor: str | None = None) -> Html:
    return tag("text", words, x=round(x, 1), y=round(y, 1), class_=kind, text_anchor=anchor)


def y_axis(frame: Frame) -> Iterator[Html]:
    for tick in frame.y.ticks:
        height = frame.y_at(tick)
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="grid")
        yield text(f"{tick:.6g}".replace("-", "−"), LEFT - 6, height + 4, anchor="end")


def x_axis(frame: Frame) -> Iterator[Html]:
    foot = HEIGHT - BOTTOM
    for tick in frame.x.ticks:
        place = frame.x_at(tick)
        yield tag("line", x1=place, x2=place, y1=foot, y2=foot + 4, class_="axis")
        yield text(short(tick).strip(), place, foot + 17, anchor="middle")
    yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=foot, y2=foot, class_="axis")
    yield text("images seen", WIDTH - RIGHT + 7, foot + 17, "title")
