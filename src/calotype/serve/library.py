"""The runs in a folder by their ids: no path ever comes from a request, nor goes into an answer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from calotype.report.runs import RunSummary, summarize_folder
from calotype.serve.answers import RefusedRequest, without_folders
from calotype.training.process import owner_of

ID_LETTERS, SUMMARIES_KEPT = 12, 2**14
WATCHED_FILES = ("run.json", "log.jsonl", "evaluation.json", "sweep.json", "plan.json", "console.json")
SUMMARY_KEYS = (
    "name", "state", "kind", "chain", "data", "created", "seconds", "parameters", "psnr", "held_out_loss", "fd_lite0",
    "fd_low", "fd_high", "fd_n", "fd_floor", "fd_ceiling", "problem",
)  # fmt: skip


def id_of(name: str) -> str:
    """Of a run, by the name of its folder."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:ID_LETTERS]


def state_key(folder: Path) -> tuple[Any, ...]:
    """Changes whenever what pages show of a run may have changed."""
    return owner_of(folder), *(file_stamp(folder / name) for name in WATCHED_FILES), file_stamp(folder / "previews")


def file_stamp(path: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class Library:
    """The runs right below `folder`. What was read of a run is kept until its files change."""

    folder: Path

    def folders(self) -> Iterator[tuple[str, Path]]:
        """Ids and folders; links, which may lead out of here, are left out."""
        if not self.folder.is_dir():
            return
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and os.path.lexists(Path(entry.path) / "run.json"):
                    yield id_of(entry.name), Path(entry.path)

    def find(self, run: str) -> Path:
        """Raises `RefusedRequest` for an unknown id."""
        for known, folder in self.folders():
            if known == run:
                return folder
        raise RefusedRequest(404, "there is no such run here; it may have been renamed or removed", "run")

    def named(self, name: str) -> Path:
        """The run whose folder has this name, or this id. Raises `RefusedRequest`."""
        for known, folder in self.folders():
            if name in (known, folder.name):
                return folder
        raise RefusedRequest(404, f"there is no model {name!r:.80} here; GET /v1/models lists them", "model")

    def summary(self, folder: Path) -> RunSummary:
        return summary_at(folder, state_key(folder))

    def summaries(self) -> list[tuple[str, RunSummary]]:
        """Newest first."""
        runs = [(run, self.summary(folder)) for run, folder in self.folders()]
        return sorted(runs, key=lambda pair: (pair[1].created, pair[1].folder.name), reverse=True)


@lru_cache(SUMMARIES_KEPT)
def summary_at(folder: Path, key: tuple[Any, ...]) -> RunSummary:
    """Of a run while its `state_key` is this one."""
    summary = summarize_folder(folder)
    return replace(summary, problem=without_folders(summary.problem, folder))


def as_json(run: str, summary: RunSummary) -> dict[str, Any]:
    """What programs are told of a run: its id, and no path."""
    return {"id": run, "folder": summary.folder.name} | {key: getattr(summary, key) for key in SUMMARY_KEYS}
