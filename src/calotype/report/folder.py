"""What a run folder says: its files as they are, whatever is there so far."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.files import read_json
from calotype.vocabulary import UserError

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run as they are, empty where they are missing or broken."""

    folder: Path
    facts: Event
    plan: Event
    samples: Event
    recipe: str
    log: list[Event]

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.resolve().name)

    @property
    def legs(self) -> list[str]:
        """In the order of their training."""
        in_log = [event["leg"] for event in self.log if isinstance(event.get("leg"), str)]
        return list(dict.fromkeys([*within(self.facts, "legs"), *in_log]))

    def history(self, kind: str, leg: str) -> list[Event]:
        """Events of a leg by images seen; those that a resumed run went back behind, and did again, are left out."""
        kept: list[Event] = []
        for event in self.log:
            seen = number(event.get("images_seen"))
            if event.get("event") == kind and event.get("leg") == leg and seen is not None:
                del kept[bisect.bisect_left(kept, seen, key=lambda old: float(old["images_seen"])) :]
                kept.append(event)
        return kept

    def latest(self, kind: str, leg: str) -> Event:
        return next(reversed(self.history(kind, leg)), {})

    def previews(self, leg: str) -> list[Preview]:
        """Those whose pictures are there, inside the folder."""
        home = self.folder.resolve()
        files = [(event, (home / str(event.get("file"))).resolve()) for event in self.history("preview", leg)]
        return [Preview(file, after(event)) for event, file in files if file.is_file() and file.is_relative_to(home)]


@dataclass(frozen=True)
class Preview:
    file: Path
    after: str


def read_run(folder: Path) -> Run:
    lines = (read_event(line) for line in text_of(folder / "log.jsonl").splitlines())
    facts, plan, samples = (mapping_of(folder / name) for name in ("run.json", "plan.json", "samples/samples.json"))
    recipe = text_of(folder / "recipe.toml")
    return Run(folder, facts, plan, samples, recipe, [event for event in lines if event])


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def mapping_of(path: Path) -> Event:
    try:
        found = read_json(path)
    except (UserError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def read_event(line: str) -> Event:
    """Empty for a line that was cut short when its process was killed."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def within(mapping: Mapping[str, Any], *keys: str) -> Event:
    """The mapping at the end of a path of keys, empty where there is none."""
    for key in keys:
        mapping = mapping.get(key) or {}
        if not isinstance(mapping, dict):
            return {}
    return dict(mapping)


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def numbers(mapping: Mapping[str, Any]) -> dict[str, float]:
    return {key: found for key, value in mapping.items() if (found := number(value)) is not None}
