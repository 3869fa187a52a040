"""The gallery of a run: a form to sample, and the pictures that were made, each with its seed, label and prompt."""

from __future__ import annotations

import json
from typing import Any

from calotype.report.folder import takes_prompts
from calotype.report.html import Content, Html, aside, masthead, tag
from calotype.run import Run
from calotype.serve.answers import document
from calotype.serve.gallery import Gallery
from calotype.serve.pages import field, link, select
from calotype.serve.trained import is_at_hand

REQUEST_KINDS = {
    "sample": "Samples",
    "interpolate": "A film between two seeds",
    "develop": "One picture, step by step",
}
REPEATED = ("sample", "develop")
"""Kinds of pictures whose notes have all that the form needs to make them again."""
KIND_WORDS = {
    "edit": "variation",
    "interpolate": "film",
    "develop": "step by step",
    "enlarge": "enlarged",
}
ENLARGING = "By the stage of the model that enlarges; where it has none, by interpolation at twice the size"
PAINTING = "The picture; paint with the pointer, or move with the arrow keys and paint with the space bar"
MOST_SHOWN = 600
"""Pictures of a page; the archive has all."""


def page_of_gallery(run: str, of: Run) -> str:
    place, entries = f"/runs/{run}", Gallery(of.folder).entries()
    downloads = tag(
        "p",
        link(f"{place}/gallery.zip", "Download all"),
        link(f"{place}/gallery.zip?starred=1", "Download the starred"),
        nearest_button(of),
        link(place, "The run"),
        class_="actions",
    )
    figures = tag(
        "div",
        *(gallery_figure(run, entry) for entry in entries[:MOST_SHOWN]),
        id="gallery",
        class_="gallery",
    )
    none = aside("No pictures yet: those that you make appear here, and are kept with the run.")
    lede = "Equal seeds give equal pictures: a model makes a sample again from what stands below it."
    head = masthead(["pictures", of.folder.name], "Pictures", lede)
    title = f"Pictures of {of.folder.name}"
    news = tag("p", id="news", role="status", class_="unseen")
    parts = head, news, sampling_form(of), downloads, figures, none, editor(), removal()
    return document(title, *parts, about={"page": "gallery", "run": run})


def nearest_button(of: Run) -> Html | None:
    """Shows the nearest training picture beside each picture; only where the training pictures are at hand."""
    hint = "Beside each picture the most similar one of those that it was trained on"
    about = {"type": "button", "id": "nearest", "aria_pressed": "false", "class_": "quiet", "title": hint}
    return tag("button", "Nearest training pictures", **about) if is_at_hand(of) else None


def sampling_form(of: Run) -> Html:
    classes = of.state.classes
    fields = [select("kind", "What", REQUEST_KINDS, "sample")]
    if classes:
        fields.append(select("label", "Label", {"": "each in turn", **{name: name for name in classes}}))
    if takes_prompts(of):
        fields += [field("prompt", "Prompt", maxlength=2000), field("negative", "Negative prompt", maxlength=2000)]
    fields += [
        field("seed", "Seed", "Empty: another each time", inputmode="numeric", pattern=r"-?\d{1,15}"),
        field("seed_after", "Second seed", "Of a film", inputmode="numeric", pattern=r"-?\d{1,15}"),
        field("count", "How many", type="number", min=1, max=64, value=8),
    ]
    more = tag(
        "details",
        tag("summary", "Steps, guidance, size"),
        tag(
            "div",
            field("steps", "Steps", "Empty: the model's", type="number", min=1, max=250),
            field("guidance", "Guidance", "Empty: the model's; 1: none", type="number", min=0, max=1000, step="any"),
            field("size", "Size", "As 96x64; empty: that of training", pattern=r"\d{1,5}x\d{1,5}"),
            class_="fields",
        ),
    )
    own = tag("input", type="file", id="own", accept="image/*", class_="unseen")
    buttons = tag(
        "p",
        tag("button", "Make pictures", type="submit", class_="button"),
        tag("button", "Cancel", type="button", id="cancel", hidden=""),
        tag("label", "Vary or enlarge a picture of your own", own, class_="own"),
        tag("progress", max=1, value=0, hidden="", aria_label="Progress"),
        tag("output", role="status"),
        class_="actions",
    )
    return tag("form", tag("div", *fields, class_="fields"), more, buttons, id="sampling", class_="panel")


def gallery_figure(run: str, entry: dict[str, Any]) -> Html:
    place, film = f"/runs/{run}/pictures/{entry['id']}", entry.get("kind") == "interpolate"
    steps = entry.get("kind") == "develop"
    image = tag(
        "img", src=place, alt=caption_of(entry), loading="lazy", decoding="async", class_="steps" if steps else "sheet"
    )
    ruler = tag("input", type="range", min=0, max=100, value=100, step="any", aria_label="From noise to the picture")
    shown: list[Content] = [image, ruler, tag("small", "Left: noisy. Right: the estimate.")] if steps else [image]
    buttons: list[Content] = []
    if entry.get("kind") not in ("interpolate", "develop"):
        buttons += [
            tag("button", "Vary", type="button", data_vary="1", title="Image-to-image, or the brush: inpainting"),
            tag("button", "Enlarge", type="button", data_enlarge="1", title=ENLARGING),
        ]
    if entry.get("kind") in REPEATED:
        hint = "Put its settings into the form"
        buttons.append(tag("button", "Again", type="button", data_again="1", title=hint))
    name = "film.webp" if film else "picture.png"
    buttons.append(tag("a", "Save", href=place, download=f"{entry.get('seed', 0)}-{entry.get('index', 0)}-{name}"))
    bar = tag("div", *buttons, class_="bar-of-picture")
    about = json.dumps({key: value for key, value in entry.items() if key not in ("order", "star")})
    return tag(
        "figure",
        *shown,
        nearest_of(place, entry),
        starred_caption(entry),
        bar,
        data_picture=entry["id"],
        data_about=about,
        data_wide="1" if steps else None,
    )


def starred_caption(entry: dict[str, Any]) -> Html:
    """Its star, how it was made, and the button that removes it."""
    pressed = "true" if entry.get("star") else "false"
    star = tag("button", type="button", data_star="1", aria_pressed=pressed, aria_label="Star", title="Star")
    remove = tag("button", "×", type="button", data_remove="1", aria_label="Remove", title="Remove")
    return tag("figcaption", star, tag("span", caption_of(entry)), remove)


def nearest_of(place: str, entry: dict[str, Any]) -> Html | None:
    """The nearest training picture, where it is known."""
    if (nearest := entry.get("nearest")) is None:
        return None
    image = tag("img", src=f"{place}/nearest", alt="Nearest training picture", loading="lazy", class_="sheet")
    words = f"nearest training picture: {nearest['file']}, {nearest['apart']:.2f} apart"
    words += "; pictures of earlier trainings are not searched" if nearest.get("earlier") else ""
    return tag("div", image, tag("small", words), class_="beside")


def caption_of(entry: dict[str, Any]) -> str:
    """Seed and index, label and prompt, and what else was asked for."""
    seeds = f"seed {entry.get('seed', 0)}" + (f" to {entry['seed_after']}" if "seed_after" in entry else "")
    index = f", no. {entry['index'] + 1}" if entry.get("index") and entry.get("kind") in ("sample", "edit") else ""
    words = [KIND_WORDS.get(str(entry.get("kind")), ""), str(entry.get("label") or ""), str(entry.get("prompt") or "")]
    settings = {
        "negative prompt": entry.get("negative"), "steps": entry.get("steps"), "guidance": entry.get("guidance"),
        "strength": entry.get("strength"),
    }  # fmt: skip
    words += [f"{name} {value}" for name, value in settings.items() if value is not None]
    words += [f"{entry['width']}x{entry['height']} px"] if {"width", "height"} <= {*entry} else []
    return " · ".join(filter(None, (seeds + index, *words)))


def editor() -> Html:
    """The dialog for variations: without a stroke of the brush all of the picture is varied, else what it marks."""
    return tag(
        "dialog",
        tag(
            "form",
            tag("h2", "Variations"),
            tag(
                "p",
                "Paint over what is to be made anew (inpainting), or leave the picture unpainted to vary all of it. "
                "Without a pointer: the arrow keys move the brush, and the space bar paints.",
            ),
            tag(
                "div",
                tag("canvas", id="brush", tabindex="0", aria_label=PAINTING),
                class_="easel",
            ),
            tag(
                "div",
                field("width", "Brush", type="range", min=1, max=40, value=12),
                field("strength", "Strength", "Empty: 0.6; painted: 1", type="number", min=0.05, max=1, step=0.05),
                field("seed", "Seed", "Empty: another each time", inputmode="numeric", pattern=r"-?\d{1,15}"),
                field("count", "How many", type="number", min=1, max=64, value=4),
                class_="fields",
            ),
            tag(
                "p",
                tag("button", "Make variations", type="submit", class_="button"),
                tag("button", "Undo the paint", type="button", id="unpaint"),
                tag("button", "Enlarge it", type="button", id="enlarge", title=ENLARGING),
                tag("button", "Close", type="button", id="close"),
                class_="actions",
            ),
            id="editing",
        ),
        id="editor",
        aria_label="Variations of a picture",
    )


def removal() -> Html:
    """The dialog before a picture is removed; the script writes into it which one."""
    buttons = tag(
        "p",
        tag("button", "Remove", type="submit", value="remove", class_="button"),
        tag("button", "Keep it", type="submit", value=""),
        class_="actions",
    )
    form = tag("form", tag("h2", "Remove this picture?"), tag("p"), buttons, method="dialog")
    return tag("dialog", form, id="removal", aria_label="Remove this picture?")
