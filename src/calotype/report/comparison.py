"""`compare.json` and the grids beside it -> one page: the verdicts first, then what they rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calotype.files import write_whole
from calotype.report.markup import Html, Inside, figure, picture, section, table, tag
from calotype.report.measures import Found, called, figure_of, figures, interval, percent, share
from calotype.report.page import sheet
from calotype.report.plot import Series
from calotype.report.propagation import errors
from calotype.report.words import UNKNOWN, count, duration, memory, moment, plain, short

GRID_BYTES = 2_400_000
"""The most that all grids may take together: 3.2 MB in base64."""
KINDS = {
    "trained": "parameters, trained", "fitted": "parameters, fitted in closed form",
    "text_encoder": "parameters, frozen text encoder", "sum": "parameters in all",
}  # fmt: skip
SIGNS = {"holds": "✓", "does not hold": "✗"}
FILE = "compare.html"

Row = tuple[Inside, ...]


def write_comparison(folder: Path, found: Found) -> Path:
    """Makes `compare.html` in the folder that holds the grids, and returns its path."""
    path = folder / FILE
    write_whole(path, document(folder, found))
    return path


def document(folder: Path, found: Found) -> str:
    parts = [
        masthead(found), the_verdicts(found), samples(folder, found), errors(found), deployment(found), cost(found),
        quality(found), overfitting(found), stability(found), notes(found),
    ]  # fmt: skip
    return sheet(title(found), parts)


def title(found: Found) -> str:
    return " and ".join(one["name"] for one in found["runs"])


def masthead(found: Found) -> Html:
    size = found["size"]
    kicker = tag("p", f"Calotype\u00a0· a comparison\u00a0· {size}\u00a0×\u00a0{size}\u00a0px", class_="kicker")
    shown = (f"{called(one)}: {one['name']}, {sizes(one)} px" for one in found["runs"])
    lede = f"{found['count']:,} pictures of each run held against as many real ones; {moment(found['created'])}."
    facts = tag("dl", *(pair(*each) for each in (
        ("Runs", "; ".join(shown)), ("Pictures", found["data"]), ("Device", found["device"]),
        ("Versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())),
    )))  # fmt: skip
    return tag("header", kicker, tag("h1", title(found)), tag("p", lede, class_="lede"), facts)


def pair(name: str, value: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value))


def sizes(one: Found) -> str:
    return " → ".join(str(size) for size in one["chain"])


def the_verdicts(found: Found) -> Html:
    rows = [
        (one["claim"], f"{SIGNS.get(one['verdict'], '–')}\u00a0{one['verdict']}", one["sentence"])
        for one in found["verdicts"]
    ]
    key = "In square brackets: the 95 % interval over the pictures; other seeds differ more. A claim is not shown where"
    note = tag("p", f"{key} intervals overlap, or where a measure is missing.", class_="note")
    return section("The lecture’s claims", note, table(("Claim", "On these pictures", "Why"), rows, "words"))


def samples(folder: Path, found: Found) -> Html:
    show = partial(picture, longest=1400, limit=GRID_BYTES // len(found["runs"]))
    plates = [
        figure(show(folder / one["grid"], f"Samples of {called(one)}"), f"{called(one)}: {one['name']}.", "plate")
        for one in found["runs"]
    ]
    how = "Equal places have equal seeds and classes."
    return section("Samples", tag("p", how), tag("div", *plates, class_="strip"))


# -- Cost --------------------------------------------------------------------------------------------------------------


def deployment(found: Found) -> Html:
    rows = [
        ("networks", [f"{one['deployment']['count']}" for one in found["runs"]]),
        *((f"parameters, {name}", [network(one, name) for one in found["runs"]]) for name in network_names(found)),
        *((name, [parameters_of(one, kind) for one in found["runs"]]) for kind, name in KINDS.items()),
        ("model folder", [memory(float(one["deployment"]["bytes"])) for one in found["runs"]]),
        ("files", [str(len(one["deployment"]["files"])) for one in found["runs"]]),
    ]
    note = (
        "Fitted are the closed forms, the linear path of an autoencoder and the statistics of its latents. A frozen "
        "text encoder, trained elsewhere and not in the model folder, counts as a network, with all its numbers."
    )
    return section("Deployment", side_by_side(found, rows), tag("p", note, class_="note"))


def parameters_of(one: Found, kind: str) -> str:
    return short(float(one["deployment"]["parameters"][kind]))


def network_names(found: Found) -> list[str]:
    return list(dict.fromkeys(name for one in found["runs"] for name in one["deployment"]["networks"]))


def network(one: Found, name: str) -> str:
    found = one["deployment"]["networks"].get(name)
    return UNKNOWN if found is None else short(float(found["sum"]))


def side_by_side(found: Found, rows: Iterable[tuple[str, Sequence[str]]]) -> Html:
    heads = ("", *(called(one) for one in found["runs"]))
    return table(heads, [(name, *values) for name, values in rows], "figures")


def cost(found: Found) -> Html:
    runs = found["runs"]
    counts = [row["count"] for row in runs[0]["cost"]["sampling"]["counts"]]
    rows = [("FLOP a picture, sampled", [short(float(one["cost"]["flops_a_picture"])) for one in runs])]
    for place, number in enumerate(counts):
        at_once = [one["cost"]["sampling"]["counts"][place] for one in runs]
        rows += [
            (f"seconds a picture, {number} at once", [figures(row["seconds_a_picture"]) for row in at_once]),
            (f"peak memory, {number} at once", [memory(known(row["bytes"])) for row in at_once]),
        ]
    rows += [("memory when loaded", [memory(known(one["cost"]["sampling"]["loaded_bytes"])) for one in runs])]
    legs, parts = ([row for one in runs for row in rows_of(one)] for rows_of in (leg_rows, clock_rows))
    left_out = [
        f"{called(one)}: {row['reason']}."
        for one in runs
        for row in one["cost"]["sampling"]["counts"]
        if row.get("reason")
    ]
    note = (
        "Floating-point operations are counted in a real call, a multiply-add as two; memory is that of a process "
        "which has only the model. FLOP a picture of a leg is forward and backward; in all, one picture in every leg, "
        "with its share of what is done once (closed forms, captions, searches, judging), spread over the pictures "
        "that the denoiser has seen. Previews and held-out measures are in the time of a leg, not in its FLOP."
    )
    return section(
        "Cost", side_by_side(found, rows), tag("h3", "Training"),
        table(("Leg", "FLOP a picture", "Images seen", "FLOP", "Time"), legs, "figures"),
        tag("p", " ".join([note, *left_out]), class_="note"),
        tag("h3", "The clock"), table(("Part", "Time"), parts, "figures"),
    )  # fmt: skip


def known(value: Any) -> float | None:
    """JSON has whole numbers without a point."""
    return None if value is None else float(value)


def leg_rows(one: Found) -> list[Row]:
    training = one["cost"]["training"]
    once = [
        {**row, "leg": row["part"], "flops_a_picture": None, "images_seen": None} for row in training["preparations"]
    ]
    return [
        (f"{called(one)}, {leg['leg']}", operations(leg["flops_a_picture"]), count(leg["images_seen"]),
         operations(leg["flops"]), duration(leg["seconds"]))
        for leg in [*once, *training["legs"], {**training, "leg": "in all", "images_seen": None}]
    ]  # fmt: skip


def operations(value: float | None) -> str:
    return UNKNOWN if value is None else short(float(value))


def clock_rows(one: Found) -> list[Row]:
    """All seconds of a run, from reading the pictures to the report."""
    clock = one["cost"]["clock"]
    parts = {**clock["parts"], "other": clock["other"], "whole run": clock["seconds"]}
    return [(f"{called(one)}, {name}", duration(known(seconds))) for name, seconds in parts.items()]


# -- Quality -----------------------------------------------------------------------------------------------------------


def quality(found: Found) -> Html:
    heads = ("Pictures", "Size", "FD-Lite0", "Kernel distance", "Precision, recall", "Density, coverage", "n")
    rows = [quality_row("other real ones: the floor", one["size"], one) for one in found["floor"]]
    for one in found["runs"]:
        last = one["chain"][-1]
        if "autoencoder" in one["quality"]:
            rows.append(
                quality_row(f"{called(one)}, through the autoencoder", one["chain"][0], one["quality"]["autoencoder"])
            )
        for stage in one["quality"]["stages"]:
            for kind, how in (("given_real", "enlarged from real"), ("sampled", "sampled")):
                if kind in stage:
                    whole = ", whole" if kind == "sampled" and stage["size"] == last else ""
                    rows.append(quality_row(f"{called(one)}, {how}{whole}", stage["size"], stage[kind]))
    note = (
        "Distances are of EfficientNet-Lite0 features and are never FID; smaller is better, and they can only be "
        "compared at equal n. The floor holds other real pictures against the same real ones. Enlarged from real "
        "against sampled: what a stage makes of shrunk real pictures, and of those that the stages before have made."
    )
    return section("Quality", table(heads, rows, "figures"), tag("p", note, class_="note"))


def quality_row(name: str, size: int, one: Found) -> Row:
    pairs = (("precision", "recall"), ("density", "coverage"))
    overlaps = (", ".join(f"{one[key]['value']:.2f}" for key in pair) for pair in pairs)
    return (name, str(size), interval(one["fd_lite0"]), interval(one["kernel_distance"]), *overlaps, str(one["n"][0]))


# -- Learning ----------------------------------------------------------------------------------------------------------


def overfitting(found: Found) -> Html:
    plots = [
        figure_of(f"{called(one)}, the {leg['leg']}", "held out by trained, less 1", gap_lines(leg))
        for one in found["runs"]
        for leg in one["overfitting"]["legs"]
    ]
    rows = [nearest_row(one) for one in found["runs"]]
    heads = ("Run", "Sample to trained", "Held out to trained", "Nearer than 95 % of held out", "n")
    note = (
        "A gap is how much larger the loss is on held-out pictures than on trained ones, by the noise level; the two "
        "sets differ from the start, so look at how it grows. Distances are medians to the nearest trained picture in "
        "feature space. Samples that are nearer than 95 of 100 held-out pictures would be 5 % without memorising."
    )
    return section("Overfitting", tag("p", note), tag("div", *plots, class_="plots"), table(heads, rows, "figures"))


def gap_lines(leg: Found) -> list[Series]:
    return [
        Series(plain(name), [(look["images_seen"], look["gap"]) for look in looks], marked=True)
        for name, looks in leg["levels"].items()
    ]


def nearest_row(one: Found) -> Row:
    near = one["overfitting"]["nearest"]
    nearer = share(near["nearer"]) if near["nearer"] else UNKNOWN
    number = ", ".join(f"{value:,}" for value in near["n"])
    return called(one), figures(near["samples_median"]), figures(near["held_out_median"]), nearer, number


def stability(found: Found) -> Html:
    rows = [unrest_row(one, row) for one in found["runs"] for row in one["stability"]]
    heads = ("Player", "Loss", "Gradient’s norm", "Above the clip", "Steps a line", "n")
    note = (
        "How far the loss and the norm of the gradient stray from their running median over the second half of a leg, "
        "by their mean, from line to line of the log (n lines, each a mean over some steps); and the share of lines "
        "whose norm lies above the recipe’s clip."
    )
    return section("Stability", table(heads, rows, "figures"), tag("p", note, class_="note"), over_seeds(found))


def unrest_row(one: Found, row: Found) -> Row:
    shares = (percent(row[key]) for key in ("loss_spread", "norm_spread", "clipped"))
    name = f"{called(one)}, {row['leg']}: {row['player']}"
    return name, *shares, f"{row['steps_a_line']:.3g}", str(row["lines"])


def over_seeds(found: Found) -> Html | None:
    said = [
        f"Over the seeds of {', '.join(one['runs'])} ({one['kind']}), FD-Lite0 is {one['fd_lite0']['mean']:.3g} ± "
        f"{one['fd_lite0']['spread']:.2g}, and the last held-out loss of each leg "
        + ", ".join(f"{mean:.3g} ± {spread:.2g}" for mean, spread in zip(*one["held_out_loss"].values(), strict=True))
        for one in found["seeds"]
    ]
    return tag("p", ". ".join(said) + ".") if said else None


def notes(found: Found) -> Html | None:
    return section("Notes", tag("ul", *(tag("li", one) for one in found["notes"]))) if found["notes"] else None
