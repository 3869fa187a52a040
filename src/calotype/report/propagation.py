"""How far errors come through each model, as plots over their strength and a table of levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calotype.report.markup import Html, section, table, tag
from calotype.report.measures import Found, called, figure_of, interval
from calotype.report.plot import Series


def errors(found: Found) -> Html:
    runs = [one for one in found["runs"] if one["propagation"]["points"]]
    if not runs:
        return section("Errors", tag("p", "Nothing was measured.", class_="note"))
    first = runs[0]["propagation"]
    size, n = first["size"], first["n"]
    how = (
        f"An error is put into pictures of {size} px and the model goes on with the same noise: a cascade from the "
        f"picture of its first stage, latent diffusion from what its denoiser sees at some sigma. Survival is the "
        f"length of what is left of it in the final picture, shrunk to {size} px, by the length of what was put in: 1 "
        f"is all of it, 0 is nothing, above 1 it has grown. Strength is the length of the error by that of the picture "
        f"about its mean colour. n = {n} pictures a point."
    )
    kinds = list(dict.fromkeys(point["corruption"] for point in first["points"]))
    figures = [survival_figure(runs, kind) for kind in kinds]
    figures += [figure_of("Agreement", "PSNR in dB", agreement(runs), "strength", "Final pictures with and without.")]
    figures += [level_figure(one) for one in runs]
    return section(
        "Errors", tag("p", how), tag("div", *figures, class_="plots"),
        tag("h3", "At every level"), levels_table(runs),
    )  # fmt: skip


def survival_figure(runs: Sequence[Found], kind: str) -> Html:
    series = [
        Series(name, line(one, level, lambda point: point["corruption"] == kind, survived), marked=True)
        for one in runs
        for level, name in whole_levels(one)
    ]
    return figure_of(kind[0].upper() + kind[1:], "survival", series, "strength")


def survived(point: Found) -> float:
    return float(point["survival"]["value"])


def whole_levels(one: Found) -> list[tuple[str, str]]:
    """Levels at which all strengths were tried, and what they are called in a plot."""
    names = {"matched": one["key"], "stored": f"{one['key']} stored", "none": f"{one['key']} none"}
    return [(level, called) for level, called in names.items() if level in one["propagation"]["levels"]]


def line(
    one: Found, level: str, wanted: Callable[[Found], bool], value: Callable[[Found], float]
) -> list[tuple[float, float]]:
    """Over strengths, the mean of the points that are wanted."""
    by_strength: dict[float, list[float]] = {}
    for point in one["propagation"]["points"]:
        if point["level"] == level and wanted(point):
            by_strength.setdefault(point["strength"], []).append(value(point))
    return [(strength, sum(values) / len(values)) for strength, values in sorted(by_strength.items())]


def agreement(runs: Sequence[Found]) -> list[Series]:
    return [
        Series(name, line(one, level, lambda point: True, lambda point: float(point["psnr"])), marked=True)
        for one in runs
        for level, name in whole_levels(one)
    ]


def level_figure(one: Found) -> Html:
    levels = one["propagation"]["levels"].values()
    points = sorted({level["amount"]: level["value"] for level in levels}.items())
    x = "sigma of the latents" if one["kind"] == "latent" else "level of augmentation"
    note = f"All kinds at strength {one['propagation']['strength']:g}."
    return figure_of(f"{called(one)}, by level", "survival", [Series(one["key"], points, marked=True)], x, note)


def levels_table(runs: Sequence[Found]) -> Html:
    rows = [
        (f"{called(one)}, {name}", f"{level['amount']:.3g}", interval(level), str(one["propagation"]["n"]))
        for one in runs
        for name, level in one["propagation"]["levels"].items()
    ]
    return table(("Level", "Noise", "Survival, all kinds", "n"), rows, "figures")
