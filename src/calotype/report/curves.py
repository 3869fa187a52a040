"""What the log says, as plots: which terms belong together, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calotype.report.folder import Run
from calotype.report.markup import Html, table, tag
from calotype.report.measures import figures
from calotype.report.plot import Point, Series, plot
from calotype.report.words import UNKNOWN, called_leg, count, deviation, plain, title
from calotype.run import Event
from calotype.tables import numbers, within

Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class Group:
    """Terms that are drawn together: those whose name matches, and that no group before has taken."""

    pattern: str
    title: str
    y_title: str = "loss"
    note: str = ""


ADVERSARY = Group(
    r"critic\.|autoencoder\.adversarial",
    "The critic",
    "loss, share or gap",
    "Right: the share of its verdicts that are right; 0.5 is guessing.",
)
GROUPS = (
    ADVERSARY,
    Group(r"autoencoder\.", "What the autoencoder makes smaller", note="Each term with its weight."),
    Group(r"denoiser\.", "What the denoiser makes smaller"),
    Group(r"", "Other terms", "value"),
)
NORMS = Group(r"", "How steep the losses are", "norm of the gradient")
PSNR = Group(r"psnr", "How close reconstructions come", "PSNR in dB", "Higher is closer.")
GAP = Group(
    r"",
    "What it knows of pictures that it never saw",
    "loss",
    "With the same noise at every look. Where trained falls and held out rises, it learns by heart.",
)
SIDES = {"held_out_loss": "held out", "train_loss": "trained", "raw_held_out_loss": "held out, raw"}
CALLED = {"psnr": "PSNR", "ssim": "SSIM", "perceptual": "perceptual distance"}
UNITS = {"psnr": " dB"}
LEVELS = ("", "_low_noise", "_middle_noise", "_high_noise")


def leg_plots(run: Run, leg: str) -> Html | None:
    """All plots of a leg under its name, with the last measures on held-out pictures."""
    steps, checks = run.history("step", leg), run.history("check", leg)
    terms, norms, measures = curves(steps, "terms"), curves(steps, "norms"), curves(checks, "measures")
    sides = [one for name, called in SIDES.items() for one in marks(measures, name, called)]
    drawn = [
        *term_figures(terms, marks(measures, "held_out_loss", "held out")),
        *figures_of(GAP, sides if len(sides) > 1 else []),
        *figures_of(PSNR, marks(measures, "psnr", "PSNR")),
        *figures_of(NORMS, lines(norms, norms)),
    ]
    last = within(checks[-1], "measures") if checks else {}
    if not drawn and not last:
        return None
    return tag(
        "div", tag("h3", title(called_leg(leg))), losses_by_noise(numbers(last)), other_measures(numbers(last)),
        tag("div", *drawn, class_="plots"),
    )  # fmt: skip


def curves(events: Iterable[Event], key: str) -> Curves:
    """By name, what the events say under `key`, over images seen."""
    found: Curves = {}
    for event in events:
        for name, value in numbers(within(event, key)).items():
            found.setdefault(name, []).append((float(event["images_seen"]), value))
    return found


def term_figures(terms: Curves, held_out: list[Series]) -> list[Html]:
    """A figure a group; what was held out belongs to the denoiser's own loss."""
    drawn = []
    for group in sorted(GROUPS, key=lambda group: group is ADVERSARY):
        series = lines(terms, [name for name in terms if group_of(name) is group])
        drawn += figures_of(group, [*series, *held_out] if series else [])
    return drawn


def group_of(term: str) -> Group:
    return next(group for group in GROUPS if re.match(group.pattern, term))


def lines(found: Curves, names: Iterable[str]) -> list[Series]:
    return [Series(name.rpartition(".")[2], found[name]) for name in names]


def marks(measures: Curves, name: str, called: str) -> list[Series]:
    return [Series(called, measures[name], marked=True)] if name in measures else []


def figures_of(group: Group, series: list[Series]) -> list[Html]:
    """One, or none where there is nothing to draw."""
    if not series:
        return []
    caption = tag("figcaption", tag("b", f"{group.title}."), f" {group.note}")
    return [tag("figure", caption, plot(group.title, group.y_title, series), class_="plot")]


def losses_by_noise(last: dict[str, float]) -> Html | None:
    """At the last look: what was held out beside what was trained on, over all noise and by thirds of it."""
    heads = ("Loss at the end", "Held out", "Trained", "Gap", "Held out, raw weights", "n")
    rows = [losses_at(last, level) for level in LEVELS if f"held_out_loss{level}" in last]
    return table(*without_unknown(heads, rows), "figures") if rows else None


def losses_at(last: dict[str, float], level: str) -> tuple[str, ...]:
    held_out, trained, raw = (last.get(f"{side}_loss{level}") for side in ("held_out", "train", "raw_held_out"))
    said = figures(held_out), figures(trained), deviation(trained, held_out), figures(raw)
    return plain(level).strip() or "all noise", *said, count(last.get("n"))


def without_unknown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Without columns of which nothing is known, as in runs of older versions."""
    kept = [place for place in range(len(heads)) if any(row[place] != UNKNOWN for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def other_measures(last: dict[str, float]) -> Html | None:
    said = [
        f"{CALLED.get(name, plain(name))} {value:.3g}{UNITS.get(name, '')}"
        + with_n(last.get(f"n_{name}", last.get("n")))
        for name, value in last.items()
        if "_loss" not in name and name.split("_")[0] != "n"
    ]
    return tag("p", f"At the last look at held-out pictures: {', '.join(said)}.") if said else None


def with_n(n: float | None) -> str:
    """Nothing for runs of versions that did not write it down."""
    return "" if n is None else f" (n\u00a0=\u00a0{count(n)})"
