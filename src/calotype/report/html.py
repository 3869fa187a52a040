"""HTML elements, tables, figures and whole pages. Text from outside is a `str`, which `tag` escapes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image

from calotype.data.images import UnreadableError, read_image
from calotype.escaping import plain
from calotype.report.format import UNKNOWN, Value


@dataclass(frozen=True)
class Html:
    """Markup that is not escaped again."""

    code: str


Content = Html | str | None
Row = Sequence[Content]
VOID = ("img", "input", "link", "meta")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WIDEST_PICTURE, LARGEST_SCALE = 1056, 4
"""The largest width at which a picture is shown, in pixels and as a multiple of its own."""
MOST_PROMPTS = 48
STYLE = (files("calotype.report") / "style.css").read_text("utf-8")
MARK = " · Calotype"
"""At the end of each page's title."""


def tag(name: str, /, *content: Content, **attributes: object) -> Html:
    """An element. `class_` and `text_anchor` mean `class` and `text-anchor`; attributes that are None are left out."""
    given = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items() if value is not None}
    opening = name + "".join(f' {key}="{escaped_text(value)}"' for key, value in given.items())
    inside = "".join(part.code if isinstance(part, Html) else escaped_text(part or "") for part in content)
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{inside}</{name}>")


def escaped_text(text: str) -> str:
    return escape(plain(text, kept="\n\t"))


# -- Pages -------------------------------------------------------------------------------------------------------------


def page(title: str, parts: Iterable[Content]) -> str:
    """A whole page, which loads nothing from elsewhere and runs no script."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{title}{MARK}"),
        tag("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en').code}\n"


def is_page(path: Path) -> bool:
    """Whether a file is such a page, which a later one may replace."""
    return path.is_file() and MARK.encode() in path.read_bytes()


def masthead(kicker: Sequence[str], title: str, lede: str = "", facts: Html | None = None) -> Html:
    above = tag("p", "\u00a0· ".join(filter(None, ("Calotype", *kicker))), class_="kicker")
    return tag("header", above, tag("h1", title), lede and tag("p", lede, class_="lede"), facts)


def square(size: Value) -> str:
    """`64 × 64 px`; empty where the size is not known."""
    return f"{size:.0f}\u00a0×\u00a0{size:.0f}\u00a0px" if size else ""


def definitions(values: Mapping[str, Content]) -> Html | None:
    """Terms and their values; those without a value are left out."""
    known = [tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items() if value]
    return tag("dl", *known) if known else None


def section(title: str, *content: Content) -> Html | None:
    """None where there is no content."""
    return tag("section", tag("h2", title), tag("div", *content)) if any(content) else None


def aside(text: str) -> Html | None:
    return tag("p", text, class_="note") if text else None


def bullets(items: Iterable[str]) -> Html | None:
    entries = [tag("li", item) for item in items]
    return tag("ul", *entries) if entries else None


def details(summary: str, *content: Content) -> Html:
    """Content that a click opens."""
    return tag("details", tag("summary", summary), *content)


def prompt_list(prompts: Sequence[str]) -> Html | None:
    """The first prompts, opened by a click; None where there are none."""
    entries = [tag("li", prompt or "no prompt") for prompt in prompts[:MOST_PROMPTS]]
    return details("The prompts, in reading order", tag("ol", *entries)) if entries else None


# -- Tables ------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Row], kind: str = "figures") -> Html | None:
    """None without rows. Columns with no known value are left out. `kind` is a class: `words` or `figures`.

    Narrow screens show tables of words as blocks, of which browsers tell screen readers the given roles alone.
    """

    def part(name: str, role: str, *content: Content, **more: object) -> Html:
        return tag(name, *content, role=role if kind == "words" else None, **more)

    cells = [tuple(row) for row in rows]
    known = [place for place in range(len(heads)) if any(row[place] not in (UNKNOWN, "", None) for row in cells)]
    head = part("tr", "row", *(part("th", "columnheader", heads[place], scope="col") for place in known))
    body = [part("tr", "row", *(part("td", "cell", *cell(row[place])) for place in known)) for row in cells]
    parts = part("thead", "rowgroup", head), part("tbody", "rowgroup", *body)
    return tag("div", part("table", "table", *parts, class_=kind), class_="wide") if cells else None


def cell(content: Content) -> Row:
    """What is in a cell. On narrow screens an interval stands below its value."""
    if not isinstance(content, str) or " [" not in content:
        return (content,)
    value, ends = content.split(" [", 1)
    return value, tag("span", f" [{ends}", class_="ends")


# -- Pictures ----------------------------------------------------------------------------------------------------------


def figure(source: Path | Image.Image, caption: str, longest: int, limit: int, kind: str = "plate") -> Html | None:
    """A picture inside the page, of at most `longest` pixels a side and `limit` bytes; None if it cannot be read.

    Where there is room it is shown at an integer multiple of its size, so that all pixels are enlarged alike. `kind` is
    a class: `plate` (numbered) or `frame`.
    """
    try:
        picture = read_image(source) if isinstance(source, Path) else source
    except UnreadableError:
        return None
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    coding, content, (width, height) = next(encoded for encoded in encodings(picture) if len(encoded[1]) <= limit)
    image = tag(
        "img",
        src=f"data:image/{coding};base64,{base64.b64encode(content).decode()}",
        alt=caption,
        width=width,
        height=height,
        style=f"max-width:{max(1, min(LARGEST_SCALE, WIDEST_PICTURE // width)) * width}px",
        class_="small" if max(width, height) < 800 else None,
    )
    return tag("figure", image, tag("figcaption", caption), class_=kind)


def encodings(image: Image.Image) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Coding, content and size, ever smaller: lossless, JPEG with full chroma, then all at half the size."""
    qualities: list[dict[str, int]] = [{"quality": quality, "subsampling": 0} for quality in (92, 82, 70)]
    while True:
        for coding, settings in (("png", {}), *(("jpeg", quality) for quality in qualities)):
            image.save(buffer := BytesIO(), coding, **settings)
            yield coding, buffer.getvalue(), image.size
        image = image.reduce(2)


def strip(figures: Iterable[Html | None], kind: str = "strip") -> Html | None:
    """Figures side by side. `kind` is a class: `strip` (pictures) or `plots`."""
    shown = list(filter(None, figures))
    return tag("div", *shown, class_=kind) if shown else None
