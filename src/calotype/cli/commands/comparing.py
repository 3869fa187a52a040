"""Runs side by side."""

from __future__ import annotations

from pathlib import Path

from calotype.cli.commands.reading import check_empty, read, read_own
from calotype.cli.console import Console
from calotype.cli.options import CompareOptions
from calotype.data.folder import Pictures
from calotype.data.split import split_rule
from calotype.evaluation.candidate import Candidate, open_candidates
from calotype.evaluation.compare import compare
from calotype.evaluation.results import COMPARISON_FILE
from calotype.machine import find_device
from calotype.report.comparison import write_comparison
from calotype.run import PORTRAITS


def compare_runs(options: CompareOptions, console: Console) -> Path:
    """What the lecture claims of latent diffusion and cascades, measured on finished runs. Returns the folder."""
    runs, data, out = options.runs, options.data, options.out

    def pictures(name: str, size: int) -> Pictures:
        embedded, first = name == PORTRAITS and not (data and data.exists()), candidates[0].run
        rule, source = split_rule(first.folder), None if embedded else Path(name)
        return read(source, size, out / "cache", console, rule, levels=first.state.black_and_white)

    def own(candidate: Candidate) -> Pictures | None:
        return read_own(candidate.run, candidate.size, out / "cache", console)

    candidates = open_candidates(runs, str(find_device(options.device)))
    check_empty(out, COMPARISON_FILE)
    result = compare(candidates, data, out, options.count, options.seed, pictures, own, console.bar)
    console.say(f"done: look at {write_comparison(out, result)}")
    return out
