"""`calotype data check`: what a folder of pictures holds, in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from calotype.cli.console import Console
from calotype.cli.options import CheckOptions
from calotype.data.buckets import PixelSize, bucket_notes
from calotype.data.images import shown
from calotype.data.listing import first_names
from calotype.data.split import MAX_TEST, MAX_VALIDATION
from calotype.data.survey import Survey, survey
from calotype.types import UserError

NO_PROPERTIES = "no transparency, palette or CMYK, and none of more than 8 bits"
ASPECT_RATIOS = (
    (0.6, "tall, below 3:5"), (0.95, "portrait"), (1.05, "square"), (1.67, "landscape"), (1e9, "wide, above 5:3"),
)  # fmt: skip
"""Width by height, up to the number."""
MAX_LISTED, MOST_LABELS, BAR_WIDTH = 10, 100, 30


def check_data(options: CheckOptions, console: Console) -> Survey:
    """Prints what the folder holds. Raises `UserError` where training could not start."""
    folder = options.folder
    with console.bar("pictures") as bar:
        result = survey(folder, options.size, bar)
    for name, value in survey_lines(result):
        console.say(f"{name:<12} {value}".rstrip())
    if not result.pictures:
        raise UserError(f"no picture in {shown(folder)} could be read, so training cannot start; the reasons are above")
    console.say(f"training may start; {_held_out(result)}")
    return result


def _held_out(survey: Survey) -> str:
    """Which pictures will be held out."""
    if not survey.sets and max(survey.labels.values()) < 2:
        return "no class has more than 1 picture, so all are trained on, and held-out pictures are some of them"
    usual = {
        "test": f"a tenth of the pictures (at most {MAX_TEST:,})",
        "validation": f"a twentieth (at most {MAX_VALIDATION:,})",
    }
    named = {
        name: f"{min(survey.sets[name], most):,} in their subfolders"
        for name, most in (("test", MAX_TEST), ("validation", MAX_VALIDATION))
        if survey.sets[name]
    }
    kept = usual | named
    by_class = ", by class" if len({*survey.labels} - {""}) > 1 else ""
    return f"{kept['test']} will be kept for testing, {kept['validation']} for validation{by_class}"


def survey_lines(survey: Survey) -> Iterator[tuple[str, str]]:
    """Names and values; a name is empty where a line continues the one before."""
    yield "pictures", f"{len(survey.pictures):,} of {len(survey.pictures) + len(survey.refused):,} files can be read"
    if survey.pictures:
        sizes = [PixelSize(*picture.size) for picture in survey.pictures]
        yield from _size_lines(sizes, survey)
        yield from _named("aspect", _aspect_histogram(sizes))
        yield from _named("", bucket_notes(sizes, 1, survey.size, 1))
        yield "labels", _labels(survey.labels)
        captions = ", ".join(f"{count:,} in {source}" for source, count in sorted(survey.captions.items()))
        yield "captions", captions or "none"
    kinds = Counter(kind for picture in survey.pictures for kind in picture.properties)
    yield "properties", ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or NO_PROPERTIES
    yield from _named("equal", _listed([" = ".join(map(shown, names)) for names in survey.duplicates()]))
    yield from _named("alike", _listed([" ~ ".join(map(shown, pair)) for pair in survey.near_duplicates()]))
    yield from _named("one colour", _listed(list(map(shown, survey.plain))))
    refused = [f"{shown(name)}: {reason}" for name, reason in survey.refused.items()]
    yield from _named("unreadable", _listed(refused, len(refused)))
    yield from _named("also", survey.notes)


def _size_lines(sizes: Sequence[PixelSize], survey: Survey) -> Iterator[tuple[str, str]]:
    by_area = sorted(sizes, key=lambda size: size.width * size.height)
    smallest, largest = by_area[0], by_area[-1]
    to_largest = f" to {largest}" if largest != smallest else ""
    middle = median(size.width * size.height for size in by_area)
    yield "sizes", f"{smallest}{to_largest} px; the median has {middle / 1e6:.2g} megapixels"
    if survey.enlarged:
        yield "", f"{survey.enlarged:,} with a side below {survey.size} px, which are enlarged"


def _aspect_histogram(sizes: Sequence[PixelSize]) -> list[str]:
    counts = Counter(next(name for most, name in ASPECT_RATIOS if size.width / size.height <= most) for size in sizes)
    return [
        f"{name:<16} {'#' * max(1, round(BAR_WIDTH * counts[name] / len(sizes)))} {counts[name]:,}"
        for _, name in ASPECT_RATIOS
        if counts[name]
    ]


def _labels(counts: dict[str, int]) -> str:
    classes = [f"{shown(name)} {count:,}" for name, count in counts.items() if name]
    if len(classes) < 2:
        return "none; class subfolders would become labels"
    return f"{len(classes):,}: {first_names(classes, MOST_LABELS)}" + (
        f"; without one {counts['']:,}" if "" in counts else ""
    )


def _listed(lines: Sequence[str], most: int = MAX_LISTED) -> list[str]:
    """The number of lines, and the first of them."""
    more = [f"... and {len(lines) - most:,} more"] if len(lines) > most else []
    return [f"{len(lines):,}: {lines[0]}", *lines[1:most], *more] if lines else []


def _named(name: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Rows of a table; the name is in the first."""
    yield from zip([name, *[""] * len(lines)], lines, strict=False)
