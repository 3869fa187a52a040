"""Training curves: the losses, gradient norms and held-out measures of a leg, from the log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from calotype.report.folder import legs_of
from calotype.report.format import count, difference, digits, leg_name, spaced
from calotype.report.html import Html, aside, section, strip, table, tag
from calotype.report.plot import Point, Series, plot
from calotype.run import Event, Run
from calotype.tables import numbers, within

Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class Group:
    """Loss terms that share a plot: those whose name matches."""

    pattern: str
    title: str
    y_title: str = "loss"
    note: str = ""


GROUPS = (
    Group(r"autoencoder\.(?!adversarial)", "Losses of the autoencoder", note="Each term with its weight."),
    Group(
        r"critic\.|autoencoder\.adversarial", "Losses of the critic", "loss, share or gap",
        "Right: share of pictures that it classifies correctly as real or reconstructed; chance is 0.5.",
    ),
    Group(r"denoiser\.", "Denoising loss"),
    Group(r"(?!autoencoder\.|critic\.|denoiser\.)", "Other terms", "value"),
)  # fmt: skip
LOSSES = {"held_out_loss": "held out", "train_loss": "training", "raw_held_out_loss": "held out, raw"}
LOSSES_NOTE = "The same noise every time. The model overfits where the training loss falls and the held-out loss rises."
MEASURES = {"psnr": "PSNR", "ssim": "SSIM", "perceptual": "perceptual distance"}
UNITS = {"psnr": " dB"}
NOISE_LEVELS = ("", "_low_noise", "_middle_noise", "_high_noise")
KEY = "Thin lines: as logged. Strong lines: running means. Marks: measures on held-out pictures, never trained on."


def training_curves(run: Run) -> Html | None:
    legs = [leg_curves(run, leg) for leg in legs_of(run)]
    return section("Training curves", aside(KEY), *legs) if any(legs) else None


def leg_curves(run: Run, leg: str) -> Html | None:
    """The plots of a leg, with its last measures on held-out pictures."""
    steps, checks = run.history("step", leg), run.history("check", leg)
    last = numbers(within(checks[-1], "measures")) if checks else {}
    plots = list(leg_plots(curves(steps, "terms"), curves(steps, "norms"), curves(checks, "measures")))
    if not plots and not last:
        return None
    return tag("div", tag("h3", leg_name(leg)), last_losses(last), last_measures(last), strip(plots, "plots"))


def curves(events: Iterable[Event], key: str) -> Curves:
    """The values under `key` by their names, over images seen."""
    by_name: Curves = {}
    for event in events:
        for name, value in numbers(within(event, key)).items():
            by_name.setdefault(name, []).append((float(event["images_seen"]), value))
    return by_name


def leg_plots(terms: Curves, norms: Curves, measures: Curves) -> Iterator[Html]:
    held_out = marked(measures, {"held_out_loss": "held out"})
    for group in GROUPS:
        if series := lines({name: points for name, points in terms.items() if re.match(group.pattern, name)}):
            yield plot(group.title, group.y_title, [*series, *held_out], note=group.note)
    if len(losses := marked(measures, LOSSES)) > 1:
        yield plot("Training and held-out loss", "loss", losses, note=LOSSES_NOTE)
    if psnr := marked(measures, {"psnr": "PSNR"}):
        yield plot("PSNR of reconstructions", "PSNR in dB", psnr, note="Higher is better.")
    if norms:
        yield plot("Gradient norms", "norm", lines(norms), note="Before clipping.")


def lines(curves: Curves) -> list[Series]:
    return [Series(name.rpartition(".")[2], points) for name, points in curves.items()]


def marked(curves: Curves, names: dict[str, str]) -> list[Series]:
    return [Series(label, curves[name], marked=True) for name, label in names.items() if name in curves]


def last_losses(last: dict[str, float]) -> Html | None:
    """The last held-out and training losses, over all noise levels and by thirds of them."""
    heads = ("Loss at the end", "Held out", "Training", "Gap", "Held out, raw weights", "n")
    return table(heads, (losses_at(last, level) for level in NOISE_LEVELS if f"held_out_loss{level}" in last))


def losses_at(last: dict[str, float], level: str) -> tuple[str, ...]:
    held_out, train, raw = (last.get(f"{side}_loss{level}") for side in ("held_out", "train", "raw_held_out"))
    losses = digits(held_out), digits(train), difference(train, held_out), digits(raw)
    return spaced(level).strip() or "all noise levels", *losses, count(last.get("n"))


def last_measures(last: dict[str, float]) -> Html | None:
    values = [
        f"{MEASURES.get(name, spaced(name))} {value:.3g}{UNITS.get(name, '')}"
        + with_n(last.get(f"n_{name}", last.get("n")))
        for name, value in last.items()
        if "_loss" not in name and name.split("_")[0] != "n"
    ]
    return tag("p", f"Last measures on held-out pictures: {', '.join(values)}.") if values else None


def with_n(n: float | None) -> str:
    """Empty for runs of versions that did not store n."""
    return "" if n is None else f" (n\u00a0=\u00a0{count(n)})"
