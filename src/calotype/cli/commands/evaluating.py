"""Is a run any good, and does it copy?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.cli.commands.reading import read_as_run, read_own
from calotype.cli.console import Console
from calotype.data.folder import Pictures
from calotype.demo.portraits import read_drawn
from calotype.evaluation.candidate import Candidate, open_one
from calotype.evaluation.evaluate import Setup, evaluate_run
from calotype.evaluation.features import LITE0, FeatureNetwork
from calotype.evaluation.overlap import judged_by
from calotype.evaluation.summary import summary
from calotype.machine import find_device
from calotype.model import changed_all
from calotype.report import write_report
from calotype.report.card import write_card
from calotype.report.evaluation import FILE
from calotype.run import PORTRAITS


def evaluate(
    run: Path,
    data: Path | None,
    count: int,
    seed: int,
    out: Path | None,
    device: str,
    console: Console,
    network: FeatureNetwork = LITE0,
    **changes: Any,
) -> Path:
    """Measures `count` samples of a finished run; returns the file that holds all numbers.

    Without `out` they go into the run, its report and its model's card too. `network` looks at the pictures in the
    place of EfficientNet-Lite0. Samples are made as the model has stored it, but for `changes`: see `Model.sample`.
    """
    one, folder = changed_in(open_one("A", run, str(find_device(device))), changes), out or run
    pictures, trained = pictures_of(one, data, folder / "cache", console)
    drawn = read_drawn(one.size) if trained is not None and data_of_run(one) == PORTRAITS else ()
    pictures, seen = judged_by(one, pictures, trained)
    setup = Setup(one, pictures, trained, folder / "cache", count, seed, network, console.bar, drawn, changes, seen)
    found = evaluate_run(setup, folder)
    for line in summary(found):
        console.say(line)
    if out is None:
        write_card(run)
        write_report(run)
    return folder / FILE


def changed_in(one: Candidate, changes: dict[str, Any]) -> Candidate:
    return replace(one, model=replace(one.model, samplings=changed_all(one.model.samplings, changes)))


def data_of_run(one: Candidate) -> str:
    return one.run.state.data


def pictures_of(one: Candidate, data: Path | None, cache: Path, console: Console) -> tuple[Pictures, Pictures | None]:
    """What samples are held against, and what the run was trained on: None where that is gone or has changed."""
    run = one.run
    wanted = read_as_run(run, data, one.size, cache, console)
    if wanted.content == run.state.content:
        return wanted, wanted
    return wanted, read_own(run, one.size, cache, console) if data else None
