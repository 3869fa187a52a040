"""Quality over time, as an SVG file of its own: one line a peer, with the learning rate that was best for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from peers import Task

from calotype.report.html import Html, tag
from calotype.report.plot import PLOT_HEIGHT, PLOT_WIDTH, Point, Series, plot
from calotype.types import UserError

Trained = tuple[str, float]
"""A peer, and seconds of training."""
NETWORK = "Lite0"


def distances(entries: Iterable[Mapping[str, Any]]) -> dict[Trained, dict[float, float]]:
    """Fréchet distances of scores by learning rate, means over seeds; the latest score of each run."""
    latest = {entry["run"]: entry["distances"][NETWORK]["frechet"]["value"] for entry in entries}
    scores: dict[Trained, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, distance in latest.items():
        task = Task.of(Path(run))
        scores[task.peer, task.seconds][task.rate].append(distance)
    return {
        trained: {rate: float(np.mean(each)) for rate, each in by_rate.items()} for trained, by_rate in scores.items()
    }


def curves(
    test: Mapping[Trained, Mapping[float, float]], validation: Mapping[Trained, Mapping[float, float]]
) -> dict[str, list[Point]]:
    """By peer, minutes of training and test distance, of the rate that is best by validation.

    Raises `UserError` where there are several rates, and not all were scored against validation pictures.
    """
    lines = defaultdict(list)
    for (peer, seconds), by_rate in sorted(test.items()):
        chosen = validation.get((peer, seconds), {})
        if len(by_rate) > 1 and (unscored := sorted(set(by_rate) - set(chosen))):
            raise UserError(
                f"{peer} of {seconds:g} s has no score against validation pictures for the learning rates {unscored}; "
                f"run `score` on these runs with --against validation first"
            )
        rate = min(by_rate, key=lambda rate: chosen.get(rate, np.inf))
        lines[peer].append((seconds / 60, by_rate[rate]))
    return dict(lines)


def write_plot(file: Path, title: str, lines: Mapping[str, list[Point]]) -> None:
    """With its styles inside."""
    series = [Series(name, points, marked=True) for name, points in lines.items()]
    figure = plot(title, f"FD-{NETWORK} of test pictures", series, "minutes").code
    drawing = figure[figure.index("<svg") : figure.index("</svg>")]
    style = tag("style", Html((files("calotype.report") / "style.css").read_text("utf-8")))
    paper = tag("rect", x=-8, y=-8, width="100%", height="100%", style="fill: var(--paper)")
    box = f"-8 -8 {PLOT_WIDTH + 16:g} {PLOT_HEIGHT + 16:g}"
    inside = Html(drawing[drawing.index(">") + 1 :])
    file.write_text(tag("svg", style, paper, inside, xmlns="http://www.w3.org/2000/svg", viewBox=box).code, "utf-8")
