"""What the log says, as plots: which terms belong together, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from calotype.report.folder import Event, Run, numbers, within
from calotype.report.markup import Html, tag
from calotype.report.plot import Point, Series, plot
from calotype.report.words import plain

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
CALLED = {"psnr": "PSNR", "ssim": "SSIM", "perceptual": "perceptual distance", "held_out_loss": "loss"}
UNITS = {"psnr": " dB"}


def leg_plots(run: Run, leg: str) -> Html | None:
    """All plots of a leg under its name, with the last measures on held-out pictures."""
    steps, checks = run.history("step", leg), run.history("check", leg)
    terms, norms, measures = curves(steps, "terms"), curves(steps, "norms"), curves(checks, "measures")
    figures = [
        *term_figures(terms, marks(measures, "held_out_loss", "held out")),
        *figures_of(PSNR, marks(measures, "psnr", "PSNR")),
        *figures_of(NORMS, lines(norms, norms)),
    ]
    if not figures and not measures:
        return None
    return tag("div", tag("h3", f"The {leg}"), last_measures(measures), tag("div", *figures, class_="plots"))


def curves(events: Iterable[Event], key: str) -> Curves:
    """By name, what the events say under `key`, over images seen."""
    found: Curves = {}
    for event in events:
        for name, value in numbers(within(event, key)).items():
            found.setdefault(name, []).append((float(event["images_seen"]), value))
    return found


def term_figures(terms: Curves, held_out: list[Series]) -> list[Html]:
    """A figure a group; what was held out belongs to the denoiser's own loss."""
    figures = []
    for group in sorted(GROUPS, key=lambda group: group is ADVERSARY):
        series = lines(terms, [name for name in terms if group_of(name) is group])
        figures += figures_of(group, [*series, *held_out] if series else [])
    return figures


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


def last_measures(measures: Curves) -> Html | None:
    said = [
        f"{CALLED.get(name, plain(name))} {points[-1][1]:.3g}{UNITS.get(name, '')}" for name, points in measures.items()
    ]
    return tag("p", f"At the last look at held-out pictures: {', '.join(said)}.") if said else None
