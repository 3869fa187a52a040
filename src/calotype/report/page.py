"""The page and its sections. Each section is a function of the run, and is left out where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from calotype.files import write_whole
from calotype.report.curves import leg_plots
from calotype.report.evaluation import evaluation
from calotype.report.findings import neighbours, the_sweep
from calotype.report.folder import Preview, Run, read_run
from calotype.report.markup import Html, Inside, figure, pairs, picture, section, table, tag
from calotype.report.words import (
    called_leg,
    count,
    deviation,
    duration,
    guidance_in_words,
    listed,
    memory,
    moment,
    plain,
    short,
    title,
)
from calotype.tables import number, numbers, within

HERO_BYTES, RECONSTRUCTION_BYTES, PREVIEWS_BYTES = 1_000_000, 400_000, 1_000_000
"""The most that pictures may take: 3.1 MB with both reconstructions and the neighbours, 4.2 MB in base64."""
USUAL = {"seed": None, "guidance_low": 0.0, "guidance_high": 1e6, "augmentation": 0.0, "conditioning": "whole"}
"""Settings of sampling that need no words."""
GUIDES = ("guide", "guidance", "guidance_slope")
"""Settings that `guidance_in_words` reads."""
MOST_PREVIEWS, MOST_NOTES, MOST_PROMPTS = 12, 100, 48
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Row = tuple[Inside, ...]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Makes `RUN/report.html` from whatever the folder of a run holds so far, and returns its path."""
    path = out or run / "report.html"
    write_whole(path, document(read_run(run)))
    return path


def document(run: Run) -> str:
    parts = (
        masthead, hero, about, the_plan, evaluation, the_sweep, neighbours, learning, reconstructions, development,
        time_spent, recipe, notes,
    )  # fmt: skip
    return sheet(run.name, [whatever_happens(part, run) for part in parts])


def sheet(title: str, parts: Sequence[Inside]) -> str:
    """A page that needs nothing but itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{title} · Calotype"),
        tag("style", Html((files("calotype.report") / "style.css").read_text("utf-8"))),
    )
    body = tag("body", tag("main", *parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en').code}\n"


def whatever_happens(part: Callable[[Run], Html | None], run: Run) -> Html | None:
    """A run of many hours must not fail at its report: a part that meets odd data says so, and the others are shown."""
    try:
        return part(run)
    except Exception as problem:
        name = plain(part.__name__)
        return tag("p", f"This part ({name}) cannot be shown: {type(problem).__name__}: {problem}", class_="note")


# -- What it is --------------------------------------------------------------------------------------------------------


def masthead(run: Run) -> Html:
    kind, size = run.plan.get("kind"), number(run.plan.get("size"))
    above = (
        "Calotype",
        f"{kind} diffusion" if kind else "",
        f"{size:.0f}\u00a0×\u00a0{size:.0f}\u00a0px" if size else "",
    )
    kicker = tag("p", "\u00a0· ".join(filter(None, above)), class_="kicker")
    return tag("header", kicker, tag("h1", run.name), tag("p", summary(run), class_="lede"))


def summary(run: Run) -> str:
    """What state the run is in, after how long, and when it was started."""
    state, spent = str(run.facts.get("status") or "unfinished"), sum(numbers(within(run.facts, "seconds")).values())
    created = run.facts.get("created")
    told = [state.capitalize() + (f" after {duration(spent)}" if spent else ""), *unfinished_legs(run)]
    return ", ".join(told) + (f"; started {moment(str(created))}." if created else ".")


def unfinished_legs(run: Run) -> Iterator[str]:
    states = within(run.facts, "legs")
    for leg in run.legs:
        progress = number(run.latest("step", leg).get("progress"))
        if progress is not None and states.get(leg) != "finished":
            yield f"the {leg} at {100 * progress:.0f} %"


def about(run: Run) -> Html | None:
    parameters = numbers(within(run.plan, "predicted", "parameters"))
    return pairs(
        {
            "Pictures": ", ".join(filter(None, (str(run.facts.get("data") or ""), *counted(run)))),
            "Labels": listed([str(name) for name in run.facts.get("classes") or []]),
            "Parameters": ", ".join(f"{short(value)} in the {name}" for name, value in parameters.items()),
            "Device": str(run.plan.get("device") or ""),
            "Versions": ", ".join(f"{name} {value}" for name, value in within(run.facts, "versions").items()),
        }
    )


def counted(run: Run) -> Iterator[str]:
    roles = {"train": "to train on", "validation": "for validation", "test": "for the test"}
    for role, value in numbers(within(run.facts, "pictures")).items():
        yield f"{count(value)} {roles.get(role, plain(role))}"


def hero(run: Run) -> Html | None:
    """The final samples; before there are any, the latest preview of the leg that came last."""
    show = partial(picture, longest=2000, limit=HERO_BYTES)
    shown = figure(show(run.folder / "samples" / "grid.png", "Samples"), sampled(run), "plate")
    latest = next((previews[-1] for leg in reversed(run.legs) if (previews := run.previews(leg))), None)
    if shown is None and latest is not None:
        caption = f"The latest preview, after {after(latest)}; the run has no samples yet."
        shown = figure(show(latest.file, "The latest preview"), caption, "plate")
    asked = prompted([str(one) for one in run.samples.get("prompts") or []])
    return shown and tag("div", shown, asked, class_="hero")


def prompted(prompts: Sequence[str]) -> Html | None:
    """What pictures were asked to show, in reading order."""
    if not prompts:
        return None
    said = [tag("li", one or "no prompt") for one in prompts[:MOST_PROMPTS]]
    return tag("details", tag("summary", "The prompts, in reading order"), tag("ol", *said))


def after(preview: Preview) -> str:
    return f"{count(preview.images_seen)} images, {duration(preview.seconds)}"


def sampled(run: Run) -> str:
    settings = {"seed": run.samples.get("seed"), **within(run.samples, "sampling")}
    guidance = [guidance_in_words(settings)] if "guidance" in settings else []
    others = {name: value for name, value in settings.items() if name not in GUIDES}
    shown = [f"{plain(name)} {setting(value)}" for name, value in others.items() if value != USUAL.get(name)]
    said = ", ".join([*shown, *guidance])
    labelled = run.facts.get("classes") and not run.samples.get("prompts")
    labels = labels_in_words(run.samples.get("labels") or []) if labelled else ""
    return " ".join(filter(None, ("Samples.", labels, f"Made with {said}." if said else "")))


def setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def labels_in_words(labels: Sequence[Any]) -> str:
    """Labels in reading order: by their cycle if they have one, as those of `calotype sample` do."""
    names = ["no label" if name is None else str(name) for name in labels]
    cycle = list(dict.fromkeys(names))
    if len(cycle) < 2:
        return "".join(f"Label: {name}." for name in cycle)
    if all(name == cycle[place % len(cycle)] for place, name in enumerate(names)):
        return f"Labels in turn: {listed(cycle)}."
    return f"Labels in reading order: {listed(names, 48)}."


# -- What was meant, and what it cost ----------------------------------------------------------------------------------


def the_plan(run: Run) -> Html | None:
    choices = [
        tuple(str(one.get(key, "")) for key in ("what", "value", "why")) for one in run.plan.get("choices") or []
    ]
    costs = list(predicted_and_measured(run))
    if not choices and not costs:
        return None
    return section(
        "The plan",
        table(("What", "Choice", "Why"), choices, "words") if choices else None,
        table(("Cost", "Predicted", "Measured", "Difference"), costs, "figures") if costs else None,
    )


def predicted_and_measured(run: Run) -> Iterator[Row]:
    """What was predicted, beside what it came to."""
    plan, spent = within(run.plan, "predicted"), numbers(within(run.facts, "seconds"))
    budget, peak = number(run.plan.get("budget_seconds")), number(plan.get("peak_memory_bytes"))
    predicted = numbers(within(plan, "seconds"))
    for name in sorted(predicted, key=[*spent, *predicted].index):
        yield cost(name, predicted[name], spent.get(name), duration)
    if budget:
        yield cost("whole run, beside its budget", budget, sum(spent.values()) or None, duration)
    if peak:
        yield cost("peak memory", peak, number(run.facts.get("peak_memory_bytes")), memory)
    for what in ("parameters", "images"):
        for leg, value in numbers(within(plan, what)).items():
            found = number(within(run.facts, "parameters").get(leg)) if what == "parameters" else seen(run, leg)
            if found is not None:
                yield cost(f"{leg}, {'images seen' if what == 'images' else what}", value, found, count)


def cost(name: str, predicted: float, measured: float | None, say: Callable[[float | None], str]) -> Row:
    return name, say(predicted), say(measured), deviation(predicted, measured)


def time_spent(run: Run) -> Html | None:
    seconds = numbers(within(run.facts, "seconds"))
    whole = sum(seconds.values())
    if not whole:
        return None
    rows = [(name, duration(spent), *pace(run, name), bar(spent / whole)) for name, spent in seconds.items()]
    return section("Time", table(("What", "Time", "Images seen", "A second", "Share"), rows, "figures"))


def pace(run: Run, leg: str) -> tuple[str, str]:
    """Images seen, and images a second: the median of the log."""
    speeds = [speed for event in run.history("step", leg) if (speed := number(event.get("images_a_second")))]
    return count(images) if (images := seen(run, leg)) else "", short(median(speeds)) if speeds else ""


def seen(run: Run, leg: str) -> float | None:
    """Images, so far."""
    return number(run.latest("step", leg).get("images_seen"))


def bar(share: float) -> Html:
    return tag("span", tag("i", style=f"width:{100 * share:.1f}%"), f"{100 * share:.0f} %", class_="bar")


# -- What came of it ---------------------------------------------------------------------------------------------------


def learning(run: Run) -> Html | None:
    legs = [leg_plots(run, leg) for leg in run.legs]
    key = (
        "Thin lines: as logged. Strong lines: running means. Marks: looks in between, on pictures that are never "
        "trained on, unless they say trained."
    )
    return section("Learning", tag("p", key, class_="note"), *legs) if any(legs) else None


def reconstructions(run: Run) -> Html | None:
    """The first and the latest."""
    previews = run.previews("autoencoder")
    show = partial(picture, alt="Originals and reconstructions", longest=1400, limit=RECONSTRUCTION_BYTES)
    figures = [figure(show(one.file), f"After {after(one)}.", "plate") for one in previews[:1] + previews[1:][-1:]]
    how = "Pictures that are never trained on, each with its reconstruction to the right."
    return (
        section("Through the autoencoder", tag("p", how), tag("div", *figures, class_="strip"))
        if any(figures)
        else None
    )


def development(run: Run) -> Html | None:
    """Previews of every leg but the autoencoder's, each beside what its weights make where they are not averaged."""
    legs = [leg for leg in run.legs if leg != "autoencoder" and run.previews(leg)]
    strips = [strip_of(run, leg, PREVIEWS_BYTES // len(legs), max(2, MOST_PREVIEWS // len(legs))) for leg in legs]
    how = (
        "Equal seeds at every look, so equal places show what was learned. Where a stage enlarges: what it sees, what "
        "it makes of that, and the real picture."
    )
    return section("Development", tag("p", how), *strips) if strips else None


def strip_of(run: Run, leg: str, limit: int, most: int) -> Html:
    """At most `most` previews of a leg, from the first to the last."""
    previews = run.previews(leg)
    kept = min(len(previews), most)
    chosen = [previews[place * (len(previews) - 1) // max(1, kept - 1)] for place in range(kept)]
    show = partial(picture, longest=1000, limit=limit // (kept + 1))
    figures = [figure(show(one.file, f"Samples of the {leg}"), after(one), "frame") for one in chosen]
    raw = show(run.folder / "previews" / f"{leg}-raw.png", "The same without averaging")
    figures += [figure(raw, "At the end, with the weights of the last step instead of their average", "frame")]
    asked = prompted(previews[-1].prompts)
    return tag("div", tag("h3", title(called_leg(leg))), tag("div", *figures, class_="strip"), asked)


def recipe(run: Run) -> Html | None:
    if not run.recipe:
        return None
    return section("Recipe", tag("details", tag("summary", "recipe.toml"), tag("pre", tag("code", run.recipe))))


def notes(run: Run) -> Html | None:
    logged = [event.get("text") for event in run.log if event.get("event") == "note"]
    said = list(dict.fromkeys(str(one) for one in [*(run.plan.get("notes") or []), *logged] if one))
    more = [f"… and {len(said) - MOST_NOTES:,} more in log.jsonl"] if len(said) > MOST_NOTES else []
    return section("Notes", tag("ul", *(tag("li", one) for one in said[:MOST_NOTES] + more))) if said else None
