"""Values as text, for pages, the terminal and the model card; `–` stands for what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any

from calotype.evaluation.results import Measure
from calotype.tables import number

UNKNOWN = "–"
MEASURE_NAMES = {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual distance"}
"""Of those that are not called as they are stored; a unit is behind a comma."""
Value = float | int | None


def duration(seconds: Value) -> str:
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def date(text: str) -> str:
    """An ISO 8601 date, written out."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".rstrip()


def count(value: Value) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def digits(value: Value) -> str:
    """Three significant digits; all of those before the point."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def scaled(value: Value, unit: str = "") -> str:
    """Three significant digits and a prefix for powers of 1,000: `3.7 M`, `2.1 GB`."""
    if value is None:
        return UNKNOWN
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def memory(value: Value) -> str:
    """Bytes, with powers of 1,000."""
    return scaled(value, "B")


def percent(value: Value) -> str:
    return UNKNOWN if value is None or not isfinite(value) else f"{digits(100 * value)} %"


def difference(reference: Value, value: Value) -> str:
    """Of a value from its reference, in percent of the reference."""
    if not reference or value is None:
        return UNKNOWN
    return f"{100 * (value / reference - 1):+,.0f} %".replace("-", "−")


def clipped(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def spaced(name: str) -> str:
    return name.replace("_", " ")


def measure_name(name: str) -> str:
    """What a stored measure is called."""
    return MEASURE_NAMES.get(name, spaced(name))


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def listing(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def leg_name(leg: str) -> str:
    """`Denoiser`, `Stage that enlarges to 256 px`."""
    kind, _, size = leg.partition("-")
    stage = {"enlarge": f"stage that enlarges to {size} px", "exposure": f"exposure fine-tuning of the {size} px stage"}
    return sentence(stage.get(kind, leg) if size else leg)


def guidance(sampling: Mapping[str, Any]) -> str:
    """Scale, guide and slope of guidance; files of earlier versions name no guide."""
    if (scale := number(sampling.get("guidance"))) is None:
        return f"guidance {UNKNOWN}"
    if scale == 1:
        return "no guidance"
    if sampling.get("guide") != "prior":
        return f"guidance {scale:g}"
    also = {"slope": sampling.get("guidance_slope"), "of the prior itself": sampling.get("prior_guidance")}
    return f"guidance {scale:g} by the prior" + "".join(f", {name} {of:g}" for name, of in also.items() if of)


def final_denoising(sampling: Mapping[str, Any]) -> str:
    """How samples are denoised after the last step; empty if they are not."""
    level = number(sampling.get("final_denoising"))
    return f", denoised once more at sigma {level:g}" if level else ""


def interval(measure: Measure | None, unit: str = "") -> str:
    """The value, and its 95% interval where that is known; as a percentage if `unit` is `%`."""
    if measure is None or measure.value is None:
        return UNKNOWN
    factor, unit = (100, " %") if unit == "%" else (1, "")
    low, high = measure.low, measure.high
    ends = "" if low is None or high is None else f" [{digits(factor * low)}, {digits(factor * high)}]"
    return digits(factor * measure.value) + ends + unit


def sample_sizes(n: Any) -> str:
    """One number, or one of each set."""
    sizes = n if isinstance(n, list) else [n]
    return ", ".join(count(size) for value in sizes if (size := number(value)) is not None)


def n_suffix(n: Any) -> str:
    """`" (n = 60)"`; empty where n is not known, as in runs of earlier versions."""
    sizes = sample_sizes(n)
    return f" (n\u00a0=\u00a0{sizes})" if sizes else ""
