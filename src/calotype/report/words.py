"""Numbers in words."""

from __future__ import annotations



def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size_of(count: float | None) -> str:
    """Bytes, in powers of 1,000."""
    return MISSING if count is None else f"{short(count)}B"


def short(value: float) -> str:
    """Three digits and a thousand, million or billion: `3.7 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} "


def count_of(value: Any) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}"


def deviation(predicted: float | None, measured: float | None) -> str:
    if not predicted or measured is None:
        return MISSING
    return f"{100 * (measured / predicted - 1):+.0f} %".replace("-", "−")


def after(event: Event) -> str:
    return f"{count_of(event.get('images_seen'))} images, {duration(number(event.get('seconds')))}"


def plain(name: str) -> str:
    return name.replace("_", " ")


def listed(names: Sequence[str], most: int = 24) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
