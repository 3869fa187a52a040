"""The page of one run: what it does, why, how far it is, why it has stopped, and its pictures over time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calotype.report.curves import training_curves
from calotype.report.evaluation import evaluation_section
from calotype.report.folder import legs_of, previews, read_run
from calotype.report.format import count, duration, leg_name, sentence
from calotype.report.html import Content, Html, aside, details, masthead, section, square, tag
from calotype.report.page import (
    facts,
    guarded,
    notes_section,
    plan_section,
    recipe_section,
    samples_caption,
    time_section,
)
from calotype.report.sweep import sweep_section
from calotype.run import BEFORE_FOLDER, PORTRAITS, Run, read_mapping
from calotype.serve.answers import document, live
from calotype.serve.api import can_sample
from calotype.serve.launching import StartedRun, command_line, training_command, why_not_started, why_stopped
from calotype.serve.library import file_stamp
from calotype.serve.pages import field, link
from calotype.serve.trained import is_at_hand
from calotype.tables import number
from calotype.training.process import owner_of
from calotype.types import UserError

EXPLAINED = {
    "autoencoder": "Held-out pictures, each with its reconstruction to the right.",
    "denoiser": "The same seeds from the beginning of training to its end.",
}
ENLARGED = "Low-resolution input, output, and the real picture."


@dataclass(frozen=True)
class RunView:
    """A run as its page shows it; `about` and `lines` are of the process that the page has started for it, if any."""

    id: str
    run: Run
    about: dict[str, Any]
    lines: Sequence[str]
    starting: bool = False
    """Whether its process was started from the page, and has not yet begun to train."""
    stopping: bool = False
    """Whether its process was asked from the page to stop, and has not yet ended."""

    @cached_property
    def owner(self) -> int | None:
        return owner_of(self.run.folder)

    @property
    def state(self) -> str:
        """`killed` where it was training and its process is gone."""
        status = self.run.state.status
        return "killed" if status == "training" and self.owner is None else status

    @property
    def place(self) -> str:
        return f"/runs/{self.id}"


Part = Callable[[RunView], Html | None]


def page_of_run(view: RunView) -> str:
    # what changes while it trains is in parts that the script replaces
    parts = [tag("div", content_of_part(name, view), data_part=name) for name in PARTS]
    kicker = (
        f"{kind} diffusion" if (kind := view.run.plan.get("kind")) else "",
        square(number(view.run.plan.get("size"))),
    )
    top = masthead(kicker, view.run.folder.name)
    about = {"page": "run", "run": view.id, "size": str(file_stamp(view.run.folder / "log.jsonl")[1])}
    news = tag("p", id="news", role="status", class_="unseen")
    return document(view.run.folder.name, top, news, *parts, about=about)


def parts_of_run(view: RunView) -> dict[str, str]:
    """Markup by the names of parts."""
    return {name: live(part).code if (part := content_of_part(name, view)) else "" for name in PARTS}


def content_of_part(name: str, view: RunView) -> Html | None:
    """Damaged data costs one part of the page, not the page."""

    def part(run: Run) -> Html | None:
        return PARTS[name](view)

    part.__name__ = name
    return guarded(part, view.run)


# -- Status ------------------------------------------------------------------------------------------------------------


def status_part(view: RunView) -> Html:
    run, spent = view.run, time_spent(view.run)
    words = sentence(view.state) + (f" after {duration(spent)}" if spent else "")
    budget = number(run.plan.get("budget_seconds"))
    if view.state == "training" and budget and budget > spent:
        words = f"Training, {duration(spent)} so far; about {duration(budget - spent)} left"
    if view.stopping:
        words = "It was asked to stop, and is saving what it has learned"
    why, damage = why_stopped(run, view.about, view.lines), damage_of(run.folder)
    if view.starting:
        words, why = "It goes on in a moment: its pictures are being read", ""
    title = "Why it could not go on" if view.state == "finished" else "Why it has stopped"
    title, why, words = ("What is damaged", damage, "Damaged") if damage else (title, why, words)
    lede = tag("p", f"{words}.", class_="lede")
    parts = lede, stopped_note(title, why), actions(view), further_form(view, why), legs_list(view)
    state = "stopping" if view.stopping else "starting" if view.starting else view.state
    return tag("div", *parts, data_state=state)


def stopped_note(title: str, why: str) -> Html | None:
    return tag("div", tag("h2", title), tag("p", why), class_="stopped", role="status") if why else None


def damage_of(folder: Path) -> str:
    """Why its run.json cannot be read; empty where it can."""
    try:
        Run.open(folder)
    except UserError as error:
        return f"Its {str(error).removeprefix(f'{folder}{os.sep}')}. The parts below are of its other files."
    return ""


def time_spent(run: Run) -> float:
    """Seconds; of the leg that is being trained, as of its last line in the log."""
    seconds = dict(run.state.seconds)
    for leg, status in run.state.legs.items():
        if status == "training":
            seconds[leg] = max(seconds.get(leg, 0.0), number(run.latest("step", leg).get("seconds")) or 0.0)
    return sum(seconds.values(), 0.0)


def legs_list(view: RunView) -> Html | None:
    """How far each leg is."""
    if view.state == "finished":
        return None
    rows = []
    for leg, status in view.run.state.legs.items():
        latest = view.run.latest("step", leg)
        done = 1.0 if status == "finished" else number(latest.get("progress")) or 0.0
        seen = number(latest.get("images_seen"))
        note = f"{100 * done:.0f} %" + (f", {count(seen)} images seen" if seen else "")
        bar = tag("progress", max=1, value=f"{done:.3f}", aria_label=leg_name(leg))
        rows.append(tag("li", tag("span", leg_name(leg)), bar, tag("small", note)))
    return tag("ol", *rows, class_="legs") if rows else None


def actions(view: RunView) -> Html:
    buttons: list[Content] = []
    if can_sample(view.run.folder):
        buttons.append(
            link(f"{view.place}/gallery", "Make pictures" if view.state == "finished" else "Sample now", "button")
        )
    if view.owner is not None:
        asked = "true" if view.stopping else None
        words = "Stopping …" if view.stopping else "Stop"
        buttons.append(action(view, "stop", words, "It saves what it has learned, and can go on later.", asked))
    elif not view.starting and is_at_hand(view.run) and view.state not in ("finished", "unknown"):
        buttons.insert(0, action(view, "resume", "Resume", "It goes on where it was.", class_="button"))
    if (view.run.folder / "report.html").is_file():
        buttons.append(link(f"{view.place}/report", "Report"))
    buttons += [copy_button(command, words) for words, command in commands_of(view)]
    return tag("p", *buttons, tag("output", role="status"), class_="actions")


def action(
    view: RunView, name: str, words: str, hint: str, asked: str | None = None, class_: str | None = None
) -> Html:
    """A button; one that was used already is `asked`, and keeps the focus."""
    place = f"/api/runs/{view.id}/{name}"
    return tag("button", words, type="button", title=hint, data_post=place, aria_disabled=asked, class_=class_)


def further_form(view: RunView, why: str) -> Html | None:
    """Asks a finished run for more time; and where the pictures are now, if they are no longer there, or if that is
    what the last attempt advises.
    """
    gone, finished = not is_at_hand(view.run), view.state == "finished"
    moved = gone or "--data" in why
    if view.owner is not None or view.starting or view.state == "unknown" or not (moved or finished):
        return None
    data, words, fields = str(view.run.state.data), [], list[Html]()
    if moved:
        hint = "The whole path of a folder on this machine."
        fields.append(field("path", "Folder of its pictures", hint, value=None if gone else data))
        why_asked = f"Its pictures were in {data}, and are no longer there." if gone else "Its pictures have changed."
        words = [why_asked, "Say where they are now."]
    if finished:
        fields.append(field("budget", "Budget", "More time: 20s, 10m, 1h30m, 1d", value="30m"))
        words.append("Train further: its networks get more time, and the part before is kept.")
    button = tag("button", "Train further" if finished else "Resume", type="submit", class_="button")
    shown = tag("p", " ".join(words)), tag("div", *fields, class_="fields")
    buttons = tag("p", button, tag("output", role="status"), class_="actions")
    about = {"data_send": f"/api/runs/{view.id}/resume", "novalidate": "", "class_": "panel"}
    form = tag("form", *shown, buttons, **about)
    return form if moved else details("More time", form)


def copy_button(text: str, words: str) -> Html:
    return tag("button", words, type="button", data_copy=text, class_="quiet")


def commands_of(view: RunView) -> Iterator[tuple[str, str]]:
    """What to paste into a terminal for the same."""
    if command := view.about.get("command") or training_again(view.run):
        yield "Copy as command", str(command)
    if view.owner is None and view.state != "finished":
        yield "Copy resume", command_line(["resume", str(view.run.folder)])


def training_again(run: Run) -> str:
    """The command that trains the same; of a run that has gone on after it was finished, its first part."""
    first = run if run.state.part == 1 else read_run(run.folder / BEFORE_FOLDER / "1")
    data, origin, budget = run.state.data, first.state.origin, number(first.plan.get("budget_seconds"))
    if not budget:
        return ""
    options = ["--recipe", str(first.folder / "recipe.toml"), "--budget", f"{budget:.0f}s"]
    options += ["--from", origin.folder] if origin else []
    return command_line([*training_command([] if data == PORTRAITS else [data]), *options])


# -- Pictures ----------------------------------------------------------------------------------------------------------


def hero_part(view: RunView) -> Html | None:
    grid = view.run.folder / "samples" / "grid.png"
    if not grid.is_file():
        return None
    samples = read_mapping(view.run.folder / "samples" / "samples.json")
    image = tag("img", src=f"{view.place}/grid?at={grid.stat().st_mtime_ns}", alt="Samples", class_="sheet")
    caption = tag("figcaption", samples_caption(view.run, samples))
    return tag("div", tag("figure", image, caption, class_="plate"), class_="hero")


def development_part(view: RunView) -> Html | None:
    """The previews of each leg under a slider."""
    sliders = [slider(view, leg) for leg in reversed(legs_of(view.run))]
    return section("Over time", *sliders) if any(sliders) else None


def slider(view: RunView, leg: str) -> Html | None:
    made = previews(view.run, leg)
    if not made:
        return None
    entries = [
        {
            "src": f"{view.place}/previews/{leg}/{index}?at={preview.file.stat().st_mtime_ns}",
            "when": f"After {preview.when}.",
        }
        for index, preview in enumerate(made)
    ]
    last = len(entries) - 1
    image = tag("img", src=entries[-1]["src"], alt=f"Preview of the {leg}", class_="sheet", loading="lazy")
    ruler = tag(
        "input", type="range", min=0, max=last, value=last, step=1, aria_label=f"Time of the preview, {leg_name(leg)}"
    )
    caption = tag("figcaption", entries[-1]["when"], aria_live="polite")
    explained = EXPLAINED.get(leg, ENLARGED)
    shown = tag(
        "figure", image, ruler if last else None, caption, class_="frame over-time", data_frames=json.dumps(entries)
    )
    return tag("div", tag("h3", leg_name(leg)), tag("p", explained), shown)


def nearest_part(view: RunView) -> Html | None:
    file = view.run.folder / "previews" / "nearest.png"
    if not file.is_file():
        return None
    distances = read_mapping(view.run.folder / "previews" / "nearest.json")
    ours, theirs = number(distances.get("samples_median")), number(distances.get("held_out_median"))
    ratio = (
        f"The median distance is {ours / theirs:.2f} times that of test pictures; "
        if ours is not None and theirs
        else ""
    )
    caption = (
        f"Above: samples. Below: the nearest training picture of each. {ratio}far below 1 is a sign of memorisation."
    )
    image = tag(
        "img",
        src=f"{view.place}/nearest?at={file.stat().st_mtime_ns}",
        alt="Samples and nearest pictures",
        class_="sheet",
    )
    return section("Nearest training pictures", tag("figure", image, tag("figcaption", caption), class_="frame"))


# -- Text --------------------------------------------------------------------------------------------------------------


def printed_part(view: RunView) -> Html | None:
    if not view.lines:
        return None
    return section("Output", details("What its process has printed last", tag("pre", "\n".join(view.lines))))


def of_report(part: Callable[[Run], Html | None]) -> Part:
    return lambda view: part(view.run)


PARTS: dict[str, Part] = {
    "status": status_part,
    "samples": hero_part,
    "development": development_part,
    "facts": of_report(facts),
    "plan": of_report(plan_section),
    "evaluation": of_report(evaluation_section),
    "sweep": of_report(sweep_section),
    "nearest": nearest_part,
    "curves": of_report(training_curves),
    "time": of_report(time_section),
    "recipe": of_report(recipe_section),
    "notes": of_report(notes_section),
    "output": printed_part,
}


# -- A run without a plan ----------------------------------------------------------------------------------------------

LEDES = {
    "planning": "Its pictures are being read, and its plan is being made.",
    "cancelled": "It was cancelled.",
    "failed": "It did not start.",
}


def page_of_start(started: StartedRun, about: dict[str, Any], lines: Sequence[str]) -> str:
    """Of a run that has no folder yet: its pictures are being read and its plan is being made, or that has ended."""
    info = {"page": "start", "run": started.id, "over": "" if started.state == "planning" else "1"}
    part = tag("div", *start_part(started, about, lines), data_part="start")
    return document(started.name, part, about=info)


def start_part(started: StartedRun, about: dict[str, Any], lines: Sequence[str]) -> Iterator[Content]:
    going, place = started.state == "planning", f"/api/runs/{started.id}"
    cancelling = going and bool(about.get("cancelled"))
    yield masthead(["new run"], started.name, "It is being cancelled." if cancelling else LEDES[started.state])
    buttons: list[Content] = []
    if going:
        yield tag("progress", aria_label="Planning")
        yield aside("Training begins after half a minute or so; this page follows by itself.")
        asked = "true" if cancelling else None
        buttons.append(tag("button", "Cancel", type="button", data_post=f"{place}/cancel", aria_disabled=asked))
    else:
        yield stopped_note("Why it has stopped", why_not_started(about, lines))
        buttons.append(link("/new", "New run", "button"))
        buttons.append(tag("button", "Take off the list", type="button", data_post=f"{place}/forget", data_then="/"))
    if command := about.get("command"):
        buttons.append(copy_button(str(command), "Copy as command"))
    yield tag("p", *buttons, tag("output", role="status"), class_="actions")
    text = tag("pre", "\n".join(lines)) if lines else aside("It has printed nothing" + (" yet." if going else "."))
    yield section("Output", text)
