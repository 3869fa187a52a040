"""What the pages read of a run's folder; a file that is missing or damaged counts as empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.report.format import count, duration
from calotype.run import Run
from calotype.settings import MAX_RECIPE
from calotype.tables import number, parse_toml, within
from calotype.types import UserError

MOST_ORIGINS = 8


@dataclass(frozen=True)
class Preview:
    file: Path
    when: str
    """After how many images and how much time."""
    prompts: tuple[str, ...]


def read_run(folder: Path) -> Run:
    try:
        return Run.open(folder)
    except UserError:
        return Run(folder)


def legs_of(run: Run) -> list[str]:
    """In the order of their training."""
    logged = [event["leg"] for event in run.events if isinstance(event.get("leg"), str)]
    return list(dict.fromkeys([*run.state.legs, *logged]))


def previews(run: Run, leg: str) -> list[Preview]:
    """Those whose files exist in this folder: a path that leads out of it is ignored."""
    home = run.folder.resolve()
    existing = []
    for event in run.history("preview", leg):
        file = (home / str(event.get("file"))).resolve()
        if file.is_relative_to(home) and file.is_file():
            when = f"{count(event['images_seen'])} images, {duration(number(event.get('seconds')))}"
            existing.append(Preview(file, when, tuple(map(str, event.get("prompts") or []))))
    return existing


def origin_text(run: Run) -> str:
    """What a run has started from, the latest first; empty where it has started from nothing."""
    origin, texts = run.state.origin, list[str]()
    while origin is not None and len(texts) < MOST_ORIGINS:
        texts.append(f"{origin.run} (model {origin.model[:12]})")
        origin = origin.before
    if run.state.origin is None:
        return ""
    part = f"part {run.state.part} of this run; " if run.state.part > 1 else ""
    return f"{part}{', before that from '.join(texts)}; {duration(run.state.origin.seconds)} before this"


def recipe_text(run: Run) -> str:
    """At most `MAX_RECIPE` bytes of it; "" where there is none."""
    file = run.folder / "recipe.toml"
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return opened.read(MAX_RECIPE).decode("utf-8", "replace")


def settings_of(run: Run) -> dict[str, Any]:
    """The recipe as tables; none where it is no TOML."""
    try:
        return parse_toml(recipe_text(run))
    except ValueError:
        return {}


def takes_prompts(run: Run) -> bool:
    """Whether its model was trained with captions."""
    return within(settings_of(run), "denoiser", "text").get("kind", "none") != "none"
