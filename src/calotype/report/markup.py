"""HTML, and pictures in it. Text from outside is a `str`, which `tag` escapes; only `tag` makes `Html`, which stays."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.data.images import UnreadableError, read_image


@dataclass(frozen=True)
class Html:
    code: str


Inside = Html | str | None
VOID = ("img", "meta")
WIDEST, MOST_TIMES = 1056, 4
"""How wide a picture is shown at most, in pixels and in times its own width."""


def tag(name: str, /, *inside: Inside, **attributes: object) -> Html:
    """An element. `class_` and `text_anchor` mean `class` and `text-anchor`; whatever is `None` is left out."""
    given = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items() if value is not None}
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{''.join(map(markup, inside))}</{name}>")


def markup(inside: Inside) -> str:
    if isinstance(inside, Html):
        return inside.code
    return escape(inside or "")


def section(title: str, *inside: Inside) -> Html:
    return tag("section", tag("h2", title), tag("div", *inside))


def table(heads: Sequence[str], rows: Iterable[Sequence[Inside]], kind: str) -> Html:
    """`kind` is its class: `words` or `figures`."""
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heads)))
    body = tag("tbody", *(tag("tr", *map(cell, row)) for row in rows))
    return tag("div", tag("table", head, body, class_=kind), class_="wide")


def cell(inside: Inside) -> Html:
    """The ends of an interval may stand below its value, where there is little room."""
    if not isinstance(inside, str) or " [" not in inside:
        return tag("td", inside)
    value, ends = inside.split(" [", 1)
    return tag("td", value, tag("span", f" [{ends}", class_="ends"))


def pairs(values: dict[str, str]) -> Html | None:
    """Names and values; those without a value are left out."""
    known = [tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items() if value]
    return tag("dl", *known) if known else None


def picture(path: Path, alt: str, longest: int, limit: int) -> Html | None:
    """The picture in a file as an `img`; `None` if it cannot be read."""
    try:
        return embedded(read_image(path), alt, longest, limit)
    except UnreadableError:
        return None


def embedded(image: Image.Image, alt: str, longest: int, limit: int) -> Html:
    """The picture itself in an `img`: at most `longest` pixels a side and `limit` bytes.

    It is shown at a whole multiple of its size where there is room, so that enlarged pixels are all alike.
    """
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, content, (width, height) = next(encoded for encoded in encodings(image) if len(encoded[1]) <= limit)
    return tag(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        alt=alt,
        width=width,
        height=height,
        style=f"max-width:{max(1, min(MOST_TIMES, WIDEST // width)) * width}px",
        class_="small" if max(width, height) < 800 else None,
    )


def encodings(image: Image.Image) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Kind, content and size, ever smaller: lossless, then JPEG without coarser colours, then all at half the size."""
    while True:
        yield "png", _saved(image, "PNG"), image.size
        for quality in (92, 82, 70):
            yield "jpeg", _saved(image, "JPEG", quality=quality, subsampling=0), image.size
        image = image.reduce(2)


def _saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def figure(inside: Html | None, caption: str, kind: str) -> Html | None:
    """`kind` is its class: a numbered `plate`, or a `frame` of many."""
    return inside and tag("figure", inside, tag("figcaption", caption), class_=kind)
