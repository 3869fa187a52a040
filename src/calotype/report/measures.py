"""How measures of several runs are said and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calotype.report.markup import Html, tag
from calotype.report.plot import Series, plot
from calotype.report.words import UNKNOWN

Found = dict[str, Any]


def called(one: Found) -> str:
    return f"{one['key']} {one['kind']}"


def figure_of(name: str, y: str, series: Sequence[Series], x: str = "images seen", note: str = "") -> Html:
    caption = tag("figcaption", tag("b", f"{name}."), f" {note}")
    return tag("figure", caption, plot(name, y, series, x), class_="plot")


def figures(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def interval(one: Found) -> str:
    """The value, and the ends where they are known."""
    if one.get("value") is None:
        return UNKNOWN
    ends = f" [{digits(float(one['low']))}, {digits(float(one['high']))}]" if one.get("low") is not None else ""
    return digits(float(one["value"])) + ends


def share(one: Found) -> str:
    """The same in hundredths."""
    return interval({key: 100 * one[key] for key in ("value", "low", "high")}) + " %"


def digits(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.3g} %"
