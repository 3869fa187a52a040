"""Runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.cli.commands.reading import read, read_own
from calotype.cli.console import Console
from calotype.data.folder import Pictures
from calotype.data.split import rule_of
from calotype.evaluation import compare as comparison
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.compare import Access
from calotype.machine import find_device
from calotype.run import PORTRAITS, Run


def compare(
    runs: Sequence[Path], data: Path | None, out: Path, count: int, seed: int, device: str, console: Console
) -> Path:
    """What the lecture claims of latent diffusion and cascades, measured on finished runs."""

    def pictures(name: str, size: int) -> Pictures:
        embedded = name == PORTRAITS and not (data and data.exists())
        return read(None if embedded else Path(name), size, out / "cache", console, rule_of(runs[0]))

    def own(one: Candidate) -> Pictures | None:
        return read_own(Run.open(one.run.folder), one.size, out / "cache", console)

    where = str(find_device(device))
    return comparison.compare(runs, data, out, count, seed, where, Access(pictures, own), console.bar)
