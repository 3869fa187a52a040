"""The comparison's section on error propagation: plots over the strength of an error, and a table of levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calotype.report.format import digits, interval, sentence
from calotype.report.html import Html, aside, section, strip, table, tag
from calotype.report.plot import Series, plot

Result = Mapping[str, Any]


def error_propagation(result: Result) -> Html | None:
    runs = [run for run in result["runs"] if run["propagation"]["points"]]
    if not runs:
        return section("Error propagation", aside("Nothing was measured."))
    first = runs[0]["propagation"]
    size, n = first["size"], first["n"]
    explanation = (
        f"An error is added to pictures of {size} px, and sampling continues with the same noise: in a cascade from "
        "the output of the first stage, in latent diffusion from the input of the denoiser at some sigma. Survival "
        f"is the norm of the remaining error in the final picture, shrunk to {size} px, divided by the norm of the "
        "added one: 1 is all of it, 0 is nothing, above 1 it has grown. Strength is the norm of the error divided "
        f"by that of the picture without its mean colour. n = {n} pictures per point."
    )
    corruptions = dict.fromkeys(point["corruption"] for point in first["points"])
    plots = [
        *(plot(sentence(kind), "survival", lines(runs, survival, kind), "strength") for kind in corruptions),
        plot("Agreement", "PSNR in dB", lines(runs, psnr), "strength", "Of the pictures with and without the error."),
        *map(level_plot, runs),
    ]
    rows = [
        (f"{name_of(run)}, {name}", digits(arm["level"]), interval(arm), str(run["propagation"]["n"]))
        for run in runs
        for name, arm in run["propagation"]["arms"].items()
    ]
    arms = table(("Mechanism or level", "Noise", "Survival, all errors", "n"), rows)
    return section(
        "Error propagation", tag("p", explanation), strip(plots, "plots"), tag("h3", "By mechanism and level"), arms
    )


def name_of(run: Result) -> str:
    return f"{run['key']} {run['kind']}"


def survival(point: Result) -> float:
    return float(point["survival"]["value"])


def psnr(point: Result) -> float:
    return float(point["psnr"])


def lines(runs: Sequence[Result], value: Callable[[Result], float], kind: str | None = None) -> list[Series]:
    """A line for each run and arm in which all strengths were measured: means over errors of equal strength."""
    series = []
    for run in runs:
        for arm in run["propagation"]["arms"]:
            by_strength: dict[float, list[float]] = {}
            for point in run["propagation"]["points"]:
                if point["arm"] == arm and kind in (None, point["corruption"]):
                    by_strength.setdefault(point["strength"], []).append(value(point))
            means = [(strength, sum(values) / len(values)) for strength, values in sorted(by_strength.items())]
            name = run["key"] if arm == "matched" else f"{run['key']} {arm}"
            series += [Series(name, means, marked=True)] if len(means) > 1 else []
    return series


def level_plot(run: Result) -> Html:
    measured = run["propagation"]
    points = sorted({arm["level"]: arm["value"] for arm in measured["arms"].values()}.items())
    x = "sigma of the latents" if run["kind"] == "latent" else "level of augmentation"
    note = f"All errors at strength {measured['strength']:g}."
    return plot(f"{name_of(run)}, by level", "survival", [Series(run["key"], points, marked=True)], x, note)
