"""A run folder -> one HTML page that holds all it shows: no network, no scripts, below 5 MB.

It shows whatever the folder has so far. Text from outside (names, labels, notes) is a `str`, and `tag` escapes it; only
`tag` makes `Html`, which is not escaped again.
"""

from __future__ import annotations

import base64
import bisect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from html import escape
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from calotype.data.images import UnreadableError, read_image
from calotype.files import read_json, write_whole
from calotype.vocabulary import UserError

Event = dict[str, Any]
Point = tuple[float, float]
MISSING = "–"
HERO_BYTES, RECONSTRUCTION_BYTES, PREVIEWS_BYTES = 1_200_000, 500_000, 1_200_000
"""The most that the encoded pictures may take: 3.4 MB with both reconstructions, 4.5 MB in base64."""


def write_report(run: Path) -> Path:
    """Makes `RUN/report.html` from whatever the folder of a run holds, and returns its path."""
    path = run / "report.html"
    write_whole(path, document(read_run(run)))
    return path


@dataclass(frozen=True)
class Group:
    """Terms that are drawn together: those whose name matches and that no group before has taken."""

    title: str
    y_title: str
    note: str
    pattern: str


GROUPS = (
    Group("What the critic says", "loss, share or gap", "right: the share of its verdicts that are right, 0.5 by guessing. "
          "gap: between its marks for originals and for reconstructions.", r"critic\.|autoencoder\.adversarial"),
    Group("What the autoencoder makes smaller", "loss", "Each term with its weight.", r"autoencoder\."),
    Group("What the denoiser makes smaller", "loss", "Held out: the same loss on pictures that are never trained on.",
          r"denoiser\."),
    Group("Other terms", "value", "", r""),
)  # fmt: skip
MEASURES = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", ""), "perceptual": ("perceptual distance", ""),
            "held_out_loss": ("held-out loss", "")}  # fmt: skip


def document(run: Run) -> str:
    sections = (masthead, hero, the_plan, learning, reconstructions, development, timings, recipe, notes)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{run.name} · Calotype"),
        tag("style", Html(STYLE)),
    )
    body = tag("body", tag("main", *(whatever_happens(section, run) for section in sections)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en').code}\n"


def whatever_happens(section: Callable[[Run], Html | None], run: Run) -> Html | None:
    """A run of many hours must not fail at its report: a section with odd data says so, and the others are shown."""
    try:
        return section(run)
    except Exception as problem:
        name = plain(section.__name__)
        return tag("p", f"This part ({name}) cannot be shown: {type(problem).__name__}: {problem}", class_="note")


def section(title: str, *inside: Inside) -> Html:
    return tag("section", tag("h2", title), tag("div", *inside))


def masthead(run: Run) -> Html:
    kind, size = run.plan.get("kind"), number(run.plan.get("size"))
    line = ["Calotype", f"{kind} diffusion" if kind else "", f"{size:.0f} × {size:.0f} px" if size else ""]
    kicker = tag("p", " · ".join(filter(None, line)), class_="kicker")
    return tag("header", kicker, tag("h1", run.name), tag("p", summary(run), class_="lede"), about(run))


def summary(run: Run) -> str:
    """What state the run is in, and since when."""
    state, spent = str(run.facts.get("state") or "unfinished"), sum(numbers(within(run.facts, "seconds")).values())
    words = [
        state.capitalize() + (f" after {duration(spent)}" if spent else ""),
        *(unfinished(run) if state != "finished" else []),
    ]
    return ", ".join(words) + "."


def unfinished(run: Run) -> Iterator[str]:
    for leg in run.legs:
        progress = number(run.latest("step", leg).get("progress"))
        if within(run.facts, "legs").get(leg) != "finished" and progress is not None:
            yield f"the {leg} at {100 * progress:.0f} %"


def about(run: Run) -> Html:
    pictures, parameters = within(run.facts, "pictures"), numbers(within(run.plan, "predicted", "parameters"))
    versions = within(run.facts, "versions").items()
    return facts(
        [
            ("Pictures", str(run.facts.get("data") or "")),
            ("Of these", ", ".join(f"{count_of(count)} {role}" for role, count in plain_keys(pictures).items())),
            ("Labels", listed([str(name) for name in run.facts.get("classes") or []])),
            ("Networks", ", ".join(f"{name} {short(count).strip()}" for name, count in parameters.items())),
            ("Device", str(run.plan.get("device") or "")),
            ("Started", moment(run.facts.get("created"))),
            ("Versions", ", ".join(f"{name} {value}" for name, value in versions)),
        ]
    )


def plain_keys(mapping: Event) -> Event:
    return {plain(key): value for key, value in mapping.items()}


def moment(value: Any) -> str:
    try:
        then = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or "")
    return f"{then.day} {then:%B %Y, %H:%M %Z}".strip()


def hero(run: Run) -> Html | None:
    """The final samples, or the latest preview of what is trained last."""
    show = partial(picture, longest=2000, limit=HERO_BYTES)
    if final := show(run.folder / "samples" / "grid.png", "A grid of samples"):
        return tag("div", figure(final, sampling_of(run.samples)), class_="hero")
    latest = next((previews[-1] for leg in reversed(run.legs) if (previews := run.previews(leg))), None)
    if latest is None or (so_far := show(latest.file, "The latest preview")) is None:
        return None
    return tag("div", figure(so_far, f"Not finished: the latest preview, after {latest.after}."), class_="hero")


def sampling_of(samples: Event) -> str:
    settings = [
        f"{plain(name)} {plain(str(value))}" for name, value in within(samples, "sampling").items() if value is not None
    ]
    seed = [f"seed {samples['seed']}"] if samples.get("seed") is not None else []
    return f"Samples. {labels_in_words(samples.get('labels') or [])}" + "; ".join(seed + settings).capitalize() + "."


def labels_in_words(labels: Sequence[Any]) -> str:
    """Labels in reading order: by their cycle if they have one, as those of `calotype sample` do."""
    names = ["no label" if name is None else str(name) for name in labels]
    cycle = list(dict.fromkeys(names))
    if not names or all(name == cycle[place % len(cycle)] for place, name in enumerate(names)):
        return f"In turn: {listed(cycle)}. " if len(cycle) > 1 else "".join(f"All: {name}. " for name in cycle)
    return f"In reading order: {listed(names, 48)}. "


def the_plan(run: Run) -> Html | None:
    choices = [
        tuple(str(one.get(key, "")) for key in ("what", "value", "why")) for one in run.plan.get("choices") or []
    ]
    costs = predicted_and_measured(run)
    if not choices and not costs:
        return None
    return section(
        "The plan",
        table(("What", "Choice", "Why"), choices, "words") if choices else None,
        table(("Cost", "Predicted", "Measured", "Difference"), costs, "figures") if costs else None,
    )


def predicted_and_measured(run: Run) -> list[tuple[str, str, str, str]]:
    predicted, measured = numbers(within(run.plan, "predicted", "seconds")), numbers(within(run.facts, "seconds"))
    rows = [cost(name, predicted.get(name), measured.get(name), duration) for name in {**measured, **predicted}]
    budget, memory = (
        number(run.plan.get("budget_seconds")),
        number(within(run.plan, "predicted").get("peak_memory_bytes")),
    )
    whole = cost("all, beside the budget", budget, sum(measured.values()) or None, duration)
    peak = cost("peak memory", memory, number(run.facts.get("peak_memory_bytes")), size_of)
    return [row for row in (*rows, whole, peak) if row[1:3] != (MISSING, MISSING)]


def cost(
    name: str, predicted: float | None, measured: float | None, say: Callable[[float | None], str]
) -> tuple[str, str, str, str]:
    return name, say(predicted), say(measured), deviation(predicted, measured)


def learning(run: Run) -> Html | None:
    legs = [leg_plots(run, leg) for leg in run.legs]
    return section("Learning", tag("p", KEY, class_="note"), *legs) if any(legs) else None


KEY = "Thin lines: as logged. Strong lines: running means. Rings: measured on pictures that are never trained on."


def leg_plots(run: Run, leg: str) -> Html | None:
    terms, norms = (curves(run.history("step", leg), key) for key in ("terms", "norms"))
    measures = curves(run.history("check", leg), "measures")
    figures = [*term_plots(terms, measures), *measure_plots(measures)]
    if norms:
        series = [Series(name, points) for name, points in norms.items()]
        figures.append(plotted("How steep the losses are", "norm of the gradient", series, "Before it is clipped."))
    last = numbers(within(run.latest("check", leg), "measures"))
    said = tag("p", "On held-out pictures: " + ", ".join(measure(*one) for one in last.items()) + ".") if last else None
    return tag("div", tag("h3", f"The {leg}"), said, tag("div", *figures, class_="plots")) if figures else None


def measure(name: str, value: float) -> str:
    called, unit = MEASURES.get(name, (plain(name), ""))
    return f"{called} {value:.3g} {unit}".strip()


def curves(events: Iterable[Event], key: str) -> dict[str, list[Point]]:
    """By name, what the events say under `key`, over images seen."""
    found: dict[str, list[Point]] = {}
    for event in events:
        for name, value in numbers(within(event, key)).items():
            found.setdefault(name, []).append((float(event["images_seen"]), value))
    return found


def term_plots(terms: dict[str, list[Point]], measures: dict[str, list[Point]]) -> list[Html]:
    held_out = [Series("held out", points, marked=True) for name, points in measures.items() if name == "held_out_loss"]
    members = [[name for name in terms if group_of(name) is group] for group in GROUPS]
    return [
        plotted(
            group.title,
            group.y_title,
            [*(Series(name.rpartition(".")[2], terms[name]) for name in names), *held_out],
            group.note,
        )
        for group, names in zip(GROUPS, members, strict=True)
        if names
    ]


def group_of(term: str) -> Group:
    return next(group for group in GROUPS if re.match(group.pattern, term))


def measure_plots(measures: dict[str, list[Point]]) -> list[Html]:
    if "psnr" not in measures:
        return []
    series = [Series("PSNR", measures["psnr"], marked=True)]
    return [
        plotted("How close reconstructions come", "PSNR in dB", series, "Peak signal to noise ratio: higher is closer.")
    ]


def plotted(title: str, y_title: str, series: list[Series], note: str) -> Html:
    caption = tag("figcaption", tag("b", title), f". {note}" if note else ".")
    return tag("figure", caption, plot(title, y_title, series), class_="plot")


def reconstructions(run: Run) -> Html | None:
    previews = run.previews("autoencoder")
    chosen = previews[:1] + previews[1:][-1:]
    figures = [
        figure(picture(one.file, "Originals and reconstructions", 1400, RECONSTRUCTION_BYTES), f"After {one.after}.")
        for one in chosen
    ]
    how = "Pictures that were never trained on, each with its reconstruction to the right."
    return (
        section("Through the autoencoder", tag("p", how), tag("div", *figures, class_="strip"))
        if any(figures)
        else None
    )


def development(run: Run) -> Html | None:
    """The previews of every other leg, at most a dozen."""
    previews = [one for leg in run.legs if leg != "autoencoder" for one in run.previews(leg)]
    chosen = (
        [previews[round(place * (len(previews) - 1) / 11)] for place in range(12)] if len(previews) > 12 else previews
    )
    show = partial(picture, alt="Samples", longest=1000, limit=PREVIEWS_BYTES // max(1, len(chosen)))
    figures = [figure(show(one.file), one.after, kind="frame") for one in chosen]
    how = "Samples from the same noise all along, while the denoiser learns."
    return section("Development", tag("p", how), tag("div", *figures, class_="strip")) if any(figures) else None


def timings(run: Run) -> Html | None:
    seconds = numbers(within(run.facts, "seconds"))
    whole = sum(seconds.values())
    rows = [
        (name, str(within(run.facts, "legs").get(name, "")), duration(spent), bar(spent / whole), *pace(run, name))
        for name, spent in seconds.items()
        if whole
    ]
    return (
        section("Time", table(("Leg", "State", "Time", "Share", "Images", "A second"), rows, "figures"))
        if rows
        else None
    )


def bar(share: float) -> Html:
    return tag("span", tag("i", style=f"width:{100 * share:.1f}%"), f"{100 * share:.0f} %", class_="bar")


def pace(run: Run, leg: str) -> tuple[str, str]:
    """Images seen, and images a second as the median over the log."""
    speeds = [speed for event in run.history("step", leg) if (speed := number(event.get("images_a_second")))]
    seen = number(run.latest("step", leg).get("images_seen"))
    return count_of(seen) if seen else "", f"{median(speeds):.3g}" if speeds else ""


def recipe(run: Run) -> Html | None:
    if not run.recipe:
        return None
    return section("Recipe", tag("details", tag("summary", "recipe.toml"), tag("pre", tag("code", run.recipe))))


def notes(run: Run) -> Html | None:
    told = [event.get("text") for event in run.log if event.get("event") == "note"]
    lines = list(dict.fromkeys(str(line) for line in [*(run.plan.get("notes") or []), *told] if line))
    more = [f"… and {len(lines) - 100:,} more in log.jsonl"] if len(lines) > 100 else []
    return section("Notes", tag("ul", *(tag("li", line) for line in lines[:100] + more))) if lines else None
