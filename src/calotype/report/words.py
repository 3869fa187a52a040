"""Numbers in words, with `–` for what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

UNKNOWN = "–"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def count(value: int | float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def short(value: float, unit: str = "") -> str:
    """Three digits, with thousands, millions and so on as letters: `3.7 M`."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def memory(value: float | None) -> str:
    """Bytes, in powers of 1,000."""
    return UNKNOWN if value is None else short(value, "B")


def deviation(predicted: float | None, measured: float | None) -> str:
    """Of the measured from the predicted."""
    if not predicted or measured is None:
        return UNKNOWN
    return f"{100 * (measured / predicted - 1):+,.0f} %".replace("-", "−")


def moment(text: str) -> str:
    """A date in ISO 8601, spelled out."""
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{then.day} {then:%B %Y, %H:%M %Z}".rstrip()


def clipped(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain(name: str) -> str:
    return name.replace("_", " ")


def called_leg(leg: str) -> str:
    """`the denoiser`, `the stage that enlarges to 256 px`."""
    what, _, size = leg.partition("-")
    stage = {"enlarge": f"stage that enlarges to {size} px", "exposure": f"exposure fine-tuning of the {size} px stage"}
    return f"the {stage.get(what, leg)}" if size else f"the {leg}"


def guidance_in_words(sampling: Mapping[str, Any]) -> str:
    """Scale, guide and slope, as far as they say something; older files have no guide."""
    scale = sampling.get("guidance")
    if not isinstance(scale, float | int):
        return f"guidance {UNKNOWN}"
    if scale == 1:
        return "no guidance"
    if sampling.get("guide") != "prior":
        return f"guidance {scale:g}"
    slope = sampling.get("guidance_slope") or 0.0
    return f"guidance {scale:g} by the prior" + (f", slope {slope:g}" if slope else "")


def title(words: str) -> str:
    return words[:1].upper() + words[1:]


def listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
