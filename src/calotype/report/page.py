"""`report.html`: the page of a run. A section without anything to show is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from calotype.files import write_whole
from calotype.report.curves import training_curves
from calotype.report.evaluation import evaluation_section
from calotype.report.folder import legs_of, origin_text, previews, read_run, recipe_text
from calotype.report.format import (
    Value,
    count,
    date,
    difference,
    duration,
    guidance,
    leg_name,
    listing,
    memory,
    sample_sizes,
    scaled,
    spaced,
)
from calotype.report.html import (
    Html,
    Row,
    aside,
    bullets,
    definitions,
    details,
    figure,
    masthead,
    page,
    prompt_list,
    section,
    square,
    strip,
    table,
    tag,
)
from calotype.report.sweep import sweep_section
from calotype.run import Run, read_mapping
from calotype.tables import number, numbers, within

HERO_BYTES, NEAREST_BYTES, RECONSTRUCTION_BYTES, PREVIEWS_BYTES = 1_000_000, 300_000, 400_000, 1_000_000
"""Limits of pictures: 3.1 MB with both reconstructions, 4.2 MB in base64."""
DEFAULTS = {
    "seed": None, "guidance_low": 0.0, "guidance_high": 1e6, "augmentation": 0.0, "conditioning": "whole",
    "epsilon_scaling": 0.0, "final_denoising": 0.0,
}  # fmt: skip
"""Sampling settings that are not shown."""
GUIDANCE = ("guide", "guidance", "guidance_slope", "prior_guidance")
"""Sampling settings that `guidance` shows."""
ROLES = {"train": "for training", "validation": "for validation", "test": "for testing"}
MOST_PREVIEWS, MOST_NOTES = 12, 100


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes `RUN/report.html` from what the folder of a run holds so far, and returns its path."""
    run, path = read_run(folder), out or folder / "report.html"
    parts = (
        heading, hero, facts, plan_section, evaluation_section, sweep_section, nearest_pictures, training_curves,
        reconstructions, development, time_section, recipe_section, notes_section,
    )  # fmt: skip
    write_whole(path, page(run.name, (guarded(part, run) for part in parts)))
    return path


def guarded(part: Callable[[Run], Html | None], run: Run) -> Html | None:
    """Damaged data costs one part of the page, not the page: a run of many hours must not fail at its report."""
    try:
        return part(run)
    except Exception as problem:
        name = spaced(part.__name__)
        return aside(f"This part ({name}) cannot be shown: {type(problem).__name__}: {problem}")


# -- Overview ----------------------------------------------------------------------------------------------------------


def heading(run: Run) -> Html:
    """The title, what was trained, and how far it came."""
    kind, state, spent = run.plan.get("kind"), run.state, sum(run.state.seconds.values())
    parts = [state.status.capitalize() + (f" after {duration(spent)}" if spent else "")]
    for leg in legs_of(run):
        progress = number(run.latest("step", leg).get("progress"))
        if progress is not None and state.legs.get(leg) != "finished":
            parts.append(f"the {leg} at {100 * progress:.0f} %")
    status = ", ".join(parts) + (f"; started {date(state.created)}." if state.created else ".")
    if state.status == "unknown":
        status = "The state is unknown: run.json is missing or damaged."
    return masthead((f"{kind} diffusion" if kind else "", square(number(run.plan.get("size")))), run.name, status)


def hero(run: Run) -> Html | None:
    """The final samples; before there are any, the latest preview."""
    samples = read_mapping(run.folder / "samples" / "samples.json")
    shown = figure(run.folder / "samples" / "grid.png", samples_caption(run, samples), 2000, HERO_BYTES)
    latest = next((made[-1] for leg in reversed(legs_of(run)) if (made := previews(run, leg))), None)
    if shown is None and latest is not None:
        caption = f"The latest preview, after {latest.when}; the run has no samples yet."
        shown = figure(latest.file, caption, 2000, HERO_BYTES)
    prompts = [str(prompt) for prompt in samples.get("prompts") or []]
    return shown and tag("div", shown, prompt_list(prompts), class_="hero")


def samples_caption(run: Run, samples: dict[str, Any]) -> str:
    settings = {"seed": samples.get("seed"), **within(samples, "sampling")}
    shown = [
        f"{spaced(name)} {f'{value:g}' if isinstance(value, float) else spaced(str(value))}"
        for name, value in settings.items()
        if name not in GUIDANCE and value != DEFAULTS.get(name)
    ]
    shown += [guidance(settings)] if "guidance" in settings else []
    labels = labels_text(samples.get("labels") or []) if run.state.classes and not samples.get("prompts") else ""
    return " ".join(filter(None, ("Samples.", labels, f"Sampling: {', '.join(shown)}." if shown else "")))


def labels_text(labels: Sequence[Any]) -> str:
    """The labels in reading order, or their cycle if they repeat."""
    names = ["no label" if name is None else str(name) for name in labels]
    cycle = list(dict.fromkeys(names))
    if len(cycle) < 2:
        return "".join(f"Label: {name}." for name in cycle)
    if all(name == cycle[place % len(cycle)] for place, name in enumerate(names)):
        return f"Labels in turn: {listing(cycle)}."
    return f"Labels in reading order: {listing(names, 48)}."


def facts(run: Run) -> Html | None:
    state, parameters = run.state, numbers(within(run.plan, "predicted", "parameters"))
    sets = (f"{count(size)} {ROLES.get(role, spaced(role))}" for role, size in state.pictures.items())
    return definitions(
        {
            "Pictures": ", ".join([state.data, *sets]) if state.pictures else "",
            "Labels": listing(state.classes),
            "Started from": origin_text(run),
            "Parameters": ", ".join(f"{scaled(value)} in the {name}" for name, value in parameters.items()),
            "Device": str(run.plan.get("device") or ""),
            "Versions": ", ".join(f"{name} {value}" for name, value in state.versions.items()),
        }
    )


# -- Plan and cost -----------------------------------------------------------------------------------------------------


def plan_section(run: Run) -> Html | None:
    choices = (
        [str(choice.get(key, "")) for key in ("what", "value", "why")] for choice in run.plan.get("choices") or []
    )
    return section(
        "Plan",
        table(("Setting", "Choice", "Reason"), choices, "words"),
        table(("Cost", "Predicted", "Measured", "Difference"), cost_rows(run)),
    )


def cost_rows(run: Run) -> Iterator[Row]:
    """Predicted costs beside the measured ones; what is not finished is not held against its prediction."""

    def row(name: str, predicted: Value, measured: Value, text: Callable[[Value], str]) -> Row:
        return name, text(predicted), text(measured), difference(predicted, measured)

    predicted, state = within(run.plan, "predicted"), run.state
    unfinished = {leg for leg, status in state.legs.items() if status != "finished"}
    seconds = numbers(within(predicted, "seconds"))
    for name in sorted(seconds, key=[*state.seconds, *seconds].index):
        yield row(name, seconds[name], None if name in unfinished else state.seconds.get(name), duration)
    if budget := number(run.plan.get("budget_seconds")):
        spent = sum(state.seconds.values()) if state.status == "finished" else None
        yield row("whole run, against its budget", budget, spent or None, duration)
    if peak := number(predicted.get("peak_memory_bytes")):
        yield row("peak memory", peak, state.peak_memory_bytes, memory)
    for leg, value in numbers(within(predicted, "parameters")).items():
        if leg in state.parameters:
            yield row(f"{leg}, parameters", value, state.parameters[leg], count)
    for leg, value in numbers(within(predicted, "images")).items():
        if leg not in unfinished and (seen := images_seen(run, leg)) is not None:
            yield row(f"{leg}, images seen", value, seen, count)


def images_seen(run: Run, leg: str) -> float | None:
    return number(run.latest("step", leg).get("images_seen"))


def time_section(run: Run) -> Html | None:
    """Of each step the time, and of a leg the images seen and the median of images per second."""
    spent, rows = run.state.seconds, []
    for name, seconds in spent.items():
        speeds = [value for event in run.history("step", name) if (value := number(event.get("images_a_second")))]
        seen, share = images_seen(run, name), 100 * seconds / (sum(spent.values()) or 1.0)
        bar = tag("span", tag("i", style=f"width:{share:.1f}%"), f"{share:.0f} %", class_="bar")
        speed = scaled(median(speeds)) if speeds else ""
        rows.append((name, duration(seconds), count(seen) if seen else "", speed, bar))
    return section("Time", table(("Step", "Time", "Images seen", "Images per second", "Share"), rows))


# -- Pictures ----------------------------------------------------------------------------------------------------------


def nearest_pictures(run: Run) -> Html | None:
    """Samples above the training pictures that are nearest to them."""
    distances = read_mapping(run.folder / "previews" / "nearest.json")
    ours, theirs = number(distances.get("samples_median")), number(distances.get("held_out_median"))
    ratio = f"{ours / theirs:.2f} times" if ours is not None and theirs else "unknown, as a multiple of"
    caption = (
        f"Above: samples. Below: the nearest of {count(number(distances.get('trained')))} training pictures and their "
        f"mirror images. The median distance is {ratio} that of pictures that are held out "
        f"(n = {sample_sizes(distances.get('n'))}); a ratio far below 1 is a sign of memorisation."
    )
    nearest = figure(run.folder / "previews" / "nearest.png", caption, 1200, NEAREST_BYTES)
    return section("Nearest training pictures", nearest)


def reconstructions(run: Run) -> Html | None:
    """The first and the latest reconstructions of the autoencoder."""
    first, last = (made := previews(run, "autoencoder"))[:1], made[1:][-1:]
    shown = strip(
        figure(preview.file, f"After {preview.when}.", 1400, RECONSTRUCTION_BYTES) for preview in first + last
    )
    explanation = tag("p", "Held-out pictures, each with its reconstruction to the right.")
    return section("Reconstructions", explanation, shown) if shown else None


def development(run: Run) -> Html | None:
    """Previews of every leg but the autoencoder's, with one of its weights of the last step, not averaged."""
    legs = [leg for leg in legs_of(run) if leg != "autoencoder" and previews(run, leg)]
    strips = [samples_of(run, leg, PREVIEWS_BYTES // len(legs), max(2, MOST_PREVIEWS // len(legs))) for leg in legs]
    explanation = (
        "All previews have the same seeds. For a stage that enlarges: its low-resolution input, its output and the "
        "real picture."
    )
    return section("Samples during training", tag("p", explanation), *strips) if strips else None


def samples_of(run: Run, leg: str, limit: int, most: int) -> Html:
    """At most `most` previews of a leg, evenly spread."""
    made = previews(run, leg)
    count, last = min(len(made), most), len(made) - 1
    chosen = [made[place * last // max(1, count - 1)] for place in range(count)]
    pictures = {preview.file: preview.when for preview in chosen}
    pictures[run.folder / "previews" / f"{leg}-raw.png"] = "At the end, without weight averaging (EMA)"
    figures = (figure(file, caption, 1000, limit // (count + 1), "frame") for file, caption in pictures.items())
    return tag("div", tag("h3", leg_name(leg)), strip(figures), prompt_list(made[-1].prompts))


# -- Files -------------------------------------------------------------------------------------------------------------


def recipe_section(run: Run) -> Html | None:
    text = recipe_text(run)
    return section("Recipe", text and details("recipe.toml", tag("pre", tag("code", text))))


def notes_section(run: Run) -> Html | None:
    logged = [event.get("text") for event in run.events if event.get("event") == "note"]
    texts = list(dict.fromkeys(str(text) for text in [*(run.plan.get("notes") or []), *logged] if text))
    more = [f"… and {len(texts) - MOST_NOTES:,} more in log.jsonl"] if len(texts) > MOST_NOTES else []
    return section("Notes", bullets(texts[:MOST_NOTES] + more))
