"""HTML, and pictures in it. Text from outside is a `str`, which `tag` escapes; only `tag` makes `Html`."""

from __future__ import annotations

@dataclass(frozen=True)
class Html:
    """Markup; whatever came from outside is escaped in it."""

    code: str


Inside = Html | str | None
VOID = ("img", "meta")


def tag(name: str, *inside: Inside, **attributes: object) -> Html:
    """An element; `class_` and `text_anchor` become `class` and `text-anchor`, and `None` is left out."""
    given = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items() if value is not None}
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Html(f"<{opening}>" if name in VOID else f"<{opening}>{''.join(map(markup, inside))}</{name}>")


def markup(inside: Inside) -> str:
    match inside:
        case None:
            return ""
        case Html(code):
            return code
        case _:
            return escape(inside)


def table(heads: Sequence[str], rows: Iterable[Sequence[Inside]], kind: str) -> Html:
    """`kind` is a class: `words` or `figures`. Each cell knows its head, for narrow screens."""
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heads)))
    body = [
        tag("tr", *(tag("td", cell, data_head=name) for name, cell in zip(heads, row, strict=True))) for row in rows
    ]
    return tag("table", head, tag("tbody", *body), class_=kind)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and values; those without a value are left out."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value))


def picture(path: Path, alt: str, longest: int, limit: int) -> Html | None:
    """An <img> with the picture inside it: at most `longest` pixels a side and `limit` bytes, `None` if unreadable."""
    try:
        image = read_image(path)
    except UnreadableError:
        return None
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, code, (width, height) = next(encoded for encoded in encodings(image) if len(encoded[1]) <= limit)
    source = f"data:image/{kind};base64,{base64.b64encode(code).decode()}"
    # whole multiples of its own size, so that enlarged pixels are all equal
    widest = f"max-width:{max(1, 1056 // width) * width}px"
    small = "small" if max(width, height) < 800 else None
    return tag("img", src=source, alt=alt, width=width, height=height, class_=small, style=widest)


def encodings(image: Image.Image) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Smaller and smaller: lossless, then JPEG at full colour resolution (drawn lines need it), then at half the size."""
    while True:
        yield "png", saved(image, "PNG"), image.size
        for quality in (92, 82, 70):
            yield "jpeg", saved(image, "JPEG", quality=quality, subsampling=0), image.size
        image = image.reduce(2)


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def figure(inside: Html | None, *caption: Inside, kind: str = "plate") -> Html | None:
    return inside and tag("figure", inside, tag("figcaption", *caption), class_=kind)
