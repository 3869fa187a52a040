"""Training curves: the losses, gradient norms and held-out measures of a leg, from the log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from calotype.report.folder import legs_of
from calotype.report.format import count, difference, digits, leg_name, measure_name, n_suffix, spaced
from calotype.report.html import Html, aside, section, strip, table, tag
from calotype.report.plot import Point, Series, plot
from calotype.run import Event, Run
from calotype.tables import numbers, within

Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class LossPlot:
    """Loss terms that share a plot: those whose name matches."""

    pattern: str
    title: str
    y_title: str = "loss"
    note: str = ""


LOSS_PLOTS = (
    LossPlot(r"autoencoder\.(?!adversarial)", "Losses of the autoencoder", note="Each term with its weight."),
    LossPlot(
        r"critic\.|autoencoder\.adversarial", "Losses of the critic", "loss, share or gap",
        "Right: share of pictures that it classifies correctly as real or reconstructed; chance is 0.5.",
    ),
    LossPlot(r"denoiser\.", "Denoising loss"),
    LossPlot(r"(?!autoencoder\.|critic\.|denoiser\.)", "Other terms", "value"),
)  # fmt: skip
LOSSES = {"held_out_loss": "held out", "train_loss": "training", "raw_held_out_loss": "held out, raw"}
LOSSES_NOTE = "The same noise every time. The model overfits where the training loss falls and the held-out loss rises."
NOISE_LEVELS = ("", "_low_noise", "_middle_noise", "_high_noise")
KEY = "Thin lines: as logged. Strong lines: running means. Marks: measures on held-out pictures, never trained on."


def training_curves(run: Run) -> Html | None:
    legs = [leg_curves(run, leg) for leg in legs_of(run)]
    return section("Training curves", aside(KEY), *legs) if any(legs) else None


def leg_curves(run: Run, leg: str) -> Html | None:
    """The plots of a leg, with its last measures on held-out pictures."""
    steps, checks = run.history("step", leg), run.history("check", leg)
    last = numbers(within(checks[-1], "measures")) if checks else {}
    terms, norms = (smooth_series(steps, key) for key in ("terms", "norms"))
    plots = list(leg_plots(terms, norms, logged_curves(checks)))
    if not plots and not last:
        return None
    return tag("div", tag("h3", leg_name(leg)), loss_table(last), measures_line(last), strip(plots, "plots"))


def logged_curves(events: Iterable[Event], key: str = "measures", extremes: bool = False) -> Curves:
    """The values under `key` by their names, over images seen.

    With `extremes`, of each bucket of a log that was thinned the lowest and the highest.
    """
    by_name: Curves = {}
    for event in events:
        for path in ((bound, key) for bound in ("low", "high")) if extremes and "low" in event else ((key,),):
            for name, value in numbers(within(event, *path)).items():
                by_name.setdefault(name, []).append((float(event["images_seen"]), value))
    return by_name


def leg_plots(terms: dict[str, Series], norms: dict[str, Series], measures: Curves) -> Iterator[Html]:
    held_out = marked_series(measures, {"held_out_loss": "held out"})
    for kind in LOSS_PLOTS:
        if series := [line for name, line in terms.items() if re.match(kind.pattern, name)]:
            yield plot(kind.title, kind.y_title, [*series, *held_out], note=kind.note)
    if len(losses := marked_series(measures, LOSSES)) > 1:
        yield plot("Training and held-out loss", "loss", losses, note=LOSSES_NOTE)
    if psnr := marked_series(measures, {"psnr": "PSNR"}):
        yield plot("PSNR of reconstructions", "PSNR in dB", psnr, note="Higher is better.")
    if norms:
        yield plot("Gradient norms", "norm", [*norms.values()], note="Before clipping.")


def smooth_series(steps: Sequence[Event], key: str) -> dict[str, Series]:
    """By the names of the logged values."""
    curves, extremes = logged_curves(steps, key), logged_curves(steps, key, extremes=True)
    return {
        name: Series(name.rpartition(".")[2], points, raw=extremes.get(name, ())) for name, points in curves.items()
    }


def marked_series(curves: Curves, names: dict[str, str]) -> list[Series]:
    return [Series(label, curves[name], marked=True) for name, label in names.items() if name in curves]


def loss_table(last: dict[str, float]) -> Html | None:
    """The last held-out and training losses, over all noise levels and by thirds of them."""
    rows = []
    for level in NOISE_LEVELS:
        held_out, train, raw = (last.get(f"{side}_loss{level}") for side in ("held_out", "train", "raw_held_out"))
        name, n = spaced(level).strip() or "all noise levels", count(last.get("n"))
        if held_out is not None:
            rows.append((name, digits(held_out), digits(train), difference(train, held_out), digits(raw), n))
    return table(("Loss at the end", "Held out", "Training", "Gap", "Held out, raw weights", "n"), rows)


def measures_line(last: dict[str, float]) -> Html | None:
    """The last measures that are no losses, each with its n."""
    values = [
        f"{name} {value:.3g} {unit}".rstrip() + n_suffix(last.get(f"n_{measure}", last.get("n")))
        for measure, value in last.items()
        if "_loss" not in measure and measure.split("_")[0] != "n"
        for name, _, unit in [measure_name(measure).partition(", ")]
    ]
    return tag("p", f"Last measures on held-out pictures: {', '.join(values)}.") if values else None
