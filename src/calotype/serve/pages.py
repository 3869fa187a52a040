"""The pages of a new run, of several runs side by side, and of the words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase

from calotype.report.folder import read_run, settings_of
from calotype.report.format import UNKNOWN, date
from calotype.report.html import Content, Html, aside, definitions, masthead, section, strip, table, tag
from calotype.report.runs import comparing_plots, figures_table
from calotype.run import Run
from calotype.serve.answers import document
from calotype.serve.words import TERMS
from calotype.tables import all_keys, value_at

MOST_SIDE_BY_SIDE, MOST_DIFFERENCES = 8, 80


def link(place: str, words: str, kind: str | None = None) -> Html:
    return tag("a", words, href=place, class_=kind)


# -- A new run ---------------------------------------------------------------------------------------------------------


def field(name: str, label: str, hint: str = "", **attributes: object) -> Html:
    box = tag("input", **{"type": "text", "autocomplete": "off", **attributes}, data_field=name)
    return tag("label", tag("span", label), box, hint and tag("small", hint), class_="field")


def select(name: str, label: str, options: dict[str, str], chosen: str = "", hint: str = "") -> Html:
    entries = [
        tag("option", words, value=value, selected="" if value == chosen else None) for value, words in options.items()
    ]
    box = tag("select", *entries, data_field=name)
    return tag("label", tag("span", label), box, hint and tag("small", hint), class_="field")


def new_page() -> str:
    form = tag(
        "form",
        drop_area(),
        field(
            "path",
            "Or a folder on this machine",
            "Its whole path. Empty, with nothing dropped: the embedded portraits.",
        ),
        tag(
            "div",
            field("name", "Name of the run", required="", maxlength=80),
            select("size", "Side of the pictures", {str(size): f"{size} px" for size in (32, 64, 128, 256, 512)}, "64"),
            field(
                "budget",
                "Time for all of it",
                "20s, 10m, 1h30m, 1d",
                value="30m",
                required="",
            ),
            select("kind", "Model", {"latent": "latent diffusion", "cascade": "cascade in pixels"}, "latent"),
            class_="fields",
        ),
        tag(
            "p",
            tag("button", "Start training", type="submit", class_="button"),
            tag("output", role="status"),
            class_="actions",
        ),
        id="new",
        class_="panel",
    )
    note = aside(
        "Latent diffusion trains an autoencoder first, and is the faster one; a cascade makes small pictures and "
        "enlarges them. The plan divides the budget. Training is a separate process, which goes on when you close this "
        "page or stop the server. After a moment, the page of the run shows the plan with its reasons."
    )
    lede = "A folder of pictures and a time are enough; the plan chooses the rest."
    return document("New run", masthead([], "New run", lede), form, note, about={"page": "new"})


def drop_area() -> Html:
    """Where a folder of pictures is dropped."""
    return tag(
        "div",
        tag(
            "p",
            "Drop a folder of pictures here, or ",
            tag(
                "label",
                "choose one",
                tag("input", type="file", id="files", webkitdirectory="", multiple="", class_="unseen"),
            ),
            ".",
        ),
        tag(
            "p",
            "Subfolders become labels; a text file beside a picture is its caption. Files are copied beside the runs.",
            class_="note",
        ),
        tag("progress", max=1, value=0, hidden="", aria_label="Uploaded"),
        tag("p", role="status", class_="note"),
        class_="drop",
        id="drop",
    )


# -- Several runs ------------------------------------------------------------------------------------------------------


def compare_page(folders: Sequence[tuple[str, Path]]) -> str:
    """Figures, curves over each other, and how the recipes differ."""
    runs = {key: read_run(folder) for key, (_, folder) in zip(ascii_uppercase, folders, strict=False)}
    places = dict(zip(ascii_uppercase, (run for run, _ in folders), strict=False))
    names = definitions(
        {
            f"Run {key}": tag("span", link(f"/runs/{places[key]}", run.folder.name), f", {date(run.state.created)}")
            for key, run in runs.items()
        }
    )
    query = "&".join(f"runs={run}" for run, _ in folders)
    covers = strip(compared_samples(key, places[key], run.folder) for key, run in runs.items())
    return document(
        "Runs side by side",
        masthead(["runs side by side"], f"{len(runs)} runs", facts=names),
        tag(
            "p", link(f"/api/compare?{query}", "JSON"), " ", link(f"/api/compare.csv?{query}", "CSV"), class_="actions"
        ),
        figures_table(runs),
        section("Samples", covers),
        section("Training curves", strip(comparing_plots(runs), "plots")),
        section("Recipes", differing_settings(runs) or "All settings are equal."),
        about={"page": "compare"},
    )


def compared_samples(key: str, run: str, folder: Path) -> Html:
    grid = folder / "samples" / "grid.png"
    there = grid.is_file()
    place = f"/runs/{run}/grid?at={grid.stat().st_mtime_ns if there else 0}"
    image = tag("img", src=place, alt=f"Samples of {folder.name}", loading="lazy") if there else None
    caption = tag("figcaption", f"{key}: {folder.name}" + ("." if there else ": no samples yet."))
    return tag("figure", image, caption, class_="frame")


def differing_settings(runs: dict[str, Run]) -> Html | None:
    rows: list[list[Content]] = [[broken_name(key), *map(setting_text, values)] for key, values in setting_rows(runs)]
    more = len(rows) - MOST_DIFFERENCES
    shown = table(("Setting", *runs), rows[:MOST_DIFFERENCES])
    return tag("div", shown, aside(f"… and {more} more in the JSON.") if more > 0 else None) if rows else None


def broken_name(key: str) -> Html:
    """The name of a setting, of which narrow screens begin a new line behind a dot."""
    first, *more = key.split(".")
    return tag("span", first, *(part for name in more for part in (".", Html("<wbr>"), name)), class_="setting")


def setting_rows(runs: dict[str, Run]) -> Iterator[tuple[str, list[object]]]:
    """Settings that are not the same in all runs, with the value of each."""
    settings = [settings_of(run) for run in runs.values()]
    for key in dict.fromkeys(key for each in settings for key in all_keys(each)):
        values = [value_at(each, key) for each in settings]
        if not any(isinstance(value, dict) for value in values) and any(value != values[0] for value in values):
            yield key, values


def setting_text(value: object) -> str:
    return UNKNOWN if value is None else f"{value}"[:80]


# -- Words -------------------------------------------------------------------------------------------------------------


def words_page() -> str:
    rows = [(term, english, tag("span", vietnamese, lang="vi")) for term, (english, vietnamese) in TERMS.items()]
    lede = "Each term of these pages in a sentence; on the other pages they are underlined with dots."
    words = table(("Term", "English", "Tiếng Việt"), rows, "words")
    return document("Words", masthead([], "Words", lede), words, about={"page": "words"})
