"""What a run folder says: its files as they are, empty where they are missing or broken."""

from __future__ import annotations

import bisect
import tomllib
from dataclasses import dataclass
from pathlib import Path

from calotype.run import Event, of_this_version, read_events, read_mapping
from calotype.tables import number, within


@dataclass(frozen=True)
class Preview:
    file: Path
    images_seen: float
    seconds: float | None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    folder: Path
    facts: Event  # run.json
    plan: Event
    samples: Event  # samples/samples.json
    recipe: str
    log: list[Event]
    evaluation: Event  # evaluation.json, of `calotype evaluate`
    sweep: Event  # sweep.json, of `calotype sweep`
    nearest: Event  # previews/nearest.json

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.resolve().name)

    @property
    def legs(self) -> list[str]:
        """In the order of their training."""
        in_log = [event["leg"] for event in self.log if isinstance(event.get("leg"), str)]
        return list(dict.fromkeys([*within(self.facts, "legs"), *in_log]))

    @property
    def settings(self) -> Event:
        """What the recipe says."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}

    @property
    def chain(self) -> list[int]:
        """Sides of the pictures after each stage; empty where the recipe does not say."""
        stages = self.settings.get("stages") or [self.settings.get("size")]
        return stages if isinstance(stages, list) and all(isinstance(side, int) for side in stages) else []

    def history(self, kind: str, leg: str) -> list[Event]:
        """Events of a leg by images seen, without those that a resumed run went back behind and did again."""
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
        """Those whose pictures are there: files of this folder, not of anywhere else."""
        home = self.folder.resolve()
        previews = [
            Preview(
                (home / str(event.get("file"))).resolve(),
                float(event["images_seen"]),
                number(event.get("seconds")),
                tuple(map(str, event.get("prompts") or [])),
            )
            for event in self.history("preview", leg)
        ]
        return [one for one in previews if one.file.is_relative_to(home) and one.file.is_file()]


def read_run(folder: Path) -> Run:
    names = ("samples/samples.json", "evaluation.json", "sweep.json", "previews/nearest.json")
    facts, plan = of_this_version(read_mapping(folder / "run.json")), read_mapping(folder / "plan.json")
    samples, evaluation, sweep, nearest = (read_mapping(folder / name) for name in names)
    log, recipe = read_events(folder / "log.jsonl"), _read_text(folder / "recipe.toml")
    return Run(folder, facts, plan, samples, recipe, log, evaluation, sweep, nearest)


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""
