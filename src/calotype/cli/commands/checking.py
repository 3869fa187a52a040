"""What a folder of pictures holds, in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from calotype.cli.console import Console
from calotype.cli.options import CheckOptions
from calotype.data.images import shown
from calotype.data.shapes import Shape, shape_notes
from calotype.data.split import MOST_TEST, MOST_VALIDATION
from calotype.data.survey import Seen, Survey, survey
from calotype.training.reporter import counting
from calotype.types import UserError

ASPECTS = (
    (0.6, "tall, below 3:5"), (0.95, "portrait"), (1.05, "square"), (1.67, "landscape"), (1e9, "wide, above 5:3"),
)  # fmt: skip
"""Width by height, up to the number."""
MOST, WIDEST = 10, 30


def check_data(options: CheckOptions, console: Console) -> Survey:
    """Says what the folder holds. Raises `UserError` where training could not start."""
    folder = options.folder
    with console.bar("pictures") as bar:
        found = survey(folder, options.size, counting(bar))
    for name, value in lines(found):
        console.say(f"{name:<12} {value}".rstrip())
    if not found.seen:
        raise UserError(f"no picture in {shown(folder)} could be read, so training cannot start; the reasons are above")
    console.say(
        f"training may start; a tenth of the pictures (at most {MOST_TEST:,}) will be kept for the test, a twentieth "
        f"(at most {MOST_VALIDATION:,}) for validation, by class"
    )
    return found


def lines(found: Survey) -> Iterator[tuple[str, str]]:
    """What is said, under a name where something new begins."""
    total = len(found.seen) + len(found.refused)
    yield "pictures", f"{len(found.seen):,} of {total:,} files can be read"
    if found.seen:
        yield from sizes(found)
        yield from named("aspect", aspects(found.seen))
        yield from named("", shape_notes([Shape(*one.size) for one in found.seen], 1, found.size, 1))
        yield "labels", labels(found)
        described = ", ".join(f"{count:,} in {kind}" for kind, count in sorted(found.captions.items()))
        yield "captions", described or "none"
    kinds = Counter(kind for one in found.seen for kind in one.kinds)
    yield "kinds", ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or "nothing special"
    yield from named("equal", few([" = ".join(map(shown, names)) for names in found.equal()]))
    yield from named("alike", few([f"{shown(one)} ~ {shown(other)}" for one, other in found.alike()]))
    yield from named("unreadable", few([f"{shown(name)}: {why}" for name, why in found.refused.items()]))
    yield from named("also", found.notes)


def sizes(found: Survey) -> Iterator[tuple[str, str]]:
    by_area = sorted((one.size for one in found.seen), key=lambda size: size[0] * size[1])
    (low, high), middle = (by_area[0], by_area[-1]), median(width * height for width, height in by_area)
    most = f" to {high[0]} x {high[1]}" if high != low else ""
    yield "sizes", f"{low[0]} x {low[1]}{most} px; the median has {middle / 1e6:.2g} megapixels"
    if small := found.small():
        yield "", f"{small:,} with a side below {found.size} px, which are enlarged"


def aspects(seen: Sequence[Seen]) -> list[str]:
    """A histogram of width by height."""
    counts = Counter(next(name for most, name in ASPECTS if one.size[0] / one.size[1] <= most) for one in seen)
    return [
        f"{name:<16} {'#' * max(1, round(WIDEST * counts[name] / len(seen)))} {counts[name]:,}"
        for _, name in ASPECTS
        if counts[name]
    ]


def labels(found: Survey) -> str:
    """As training takes them: two subfolders at least."""
    counts = found.labels()
    classes = [f"{shown(name)} {count:,}" for name, count in counts.items() if name]
    if len(classes) < 2:
        return "none; class subfolders would become labels"
    return f"{len(classes):,}: {', '.join(classes)}" + (f"; without one {counts['']:,}" if "" in counts else "")


def few(notes: Sequence[str]) -> list[str]:
    """The first of many, and how many there are."""
    more = [f"... and {len(notes) - MOST:,} more"] if len(notes) > MOST else []
    return [f"{len(notes):,}: {notes[0]}", *notes[1:MOST], *more] if notes else []


def named(name: str, notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name stands before the first line."""
    yield from zip([name, *[""] * len(notes)], notes, strict=False)
