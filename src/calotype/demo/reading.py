"""Pictures by where they are: in a folder, or the embedded portraits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.data.folder import Pictures, read_folder
from calotype.data.rgb import Levels
from calotype.data.split import SplitRule, split_rule, stratified_split
from calotype.demo.portraits import read_portraits
from calotype.run import Run
from calotype.types import Progress, no_progress


def read_pictures(
    folder: Path | None,
    size: int,
    cache: Path | None = None,
    progress: Progress = no_progress,
    rule: SplitRule = stratified_split,
    classes: Sequence[str] | None = None,
    most: int | None = None,
    levels: Levels | None = None,
) -> Pictures:
    """As `read_folder`; without a folder the embedded portraits, split by `rule`."""
    if folder is None:
        return read_portraits(size, progress=progress, rule=rule)
    return read_folder(folder, size, cache, progress, rule, classes, most, levels)


def pictures_of_run(
    run: Run, folder: Path | None, size: int, cache: Path, progress: Progress = no_progress
) -> Pictures:
    """As a run reads its own: with its split, classes, black and white. Raises `UserError` as `read_folder`, and where
    its split is missing or damaged."""
    rule, state = split_rule(run.folder), run.state
    return read_pictures(folder, size, cache, progress, rule, state.classes, levels=state.black_and_white)
