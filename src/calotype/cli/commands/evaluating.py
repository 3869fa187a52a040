"""Evaluation of one finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.cli.commands.reading import check_empty, read_as_run, read_own
from calotype.cli.console import Console
from calotype.cli.options import EvaluateOptions
from calotype.data.folder import Pictures
from calotype.demo.judges import PortraitJudge
from calotype.demo.portraits import read_drawn
from calotype.evaluation.candidate import Candidate, open_candidate, split_by, with_unseen
from calotype.evaluation.evaluate import EvaluationRequest, assist, evaluate_run
from calotype.evaluation.features import FeatureNetwork
from calotype.evaluation.networks import open_features
from calotype.evaluation.results import EVALUATION_FILE
from calotype.machine import find_device
from calotype.ranks import Ranks, joined_ranks
from calotype.report import write_report
from calotype.report.card import write_card
from calotype.report.evaluation import evaluation_lines
from calotype.run import PORTRAITS


def evaluate(options: EvaluateOptions, console: Console, network: FeatureNetwork | None = None) -> Path:
    """Measures samples of a finished run; returns the file that holds all results.

    Without `out` they go into the run, its report and its model's card too. `network` takes the place of
    the one that the options name. Of several ranks each makes its share of the samples, and the first measures them.
    """
    with joined_ranks(options.device, "evaluate") as ranks:
        return _evaluate(options, console, network, ranks) if ranks.first else _assist(options, network, ranks)


def _assist(options: EvaluateOptions, network: FeatureNetwork | None, ranks: Ranks) -> Path:
    """What a rank that is not the first does: it reads no pictures, and writes nothing."""
    with ranks.in_turn():
        where = find_device(options.device)
        network = network or open_features(options.features, options.features_weights, where)
        model = changed_in(open_candidate("A", options.run, str(where)), options.changes()).model
    assist(model, options.seed, network, ranks)
    return options.run


def _evaluate(options: EvaluateOptions, console: Console, network: FeatureNetwork | None, ranks: Ranks) -> Path:
    if options.out is not None:
        check_empty(options.out, EVALUATION_FILE)
    where, folder, changes = find_device(options.device), options.out or options.run, options.changes()
    with ranks.in_turn():
        network = network or open_features(options.features, options.features_weights, where)
        candidate = changed_in(open_candidate("A", options.run, str(where)), changes)
    pictures, trained = pictures_of(candidate, options.data, folder / "cache", console)
    known = trained is not None and candidate.run.state.data == PORTRAITS
    pictures, seen = with_unseen(candidate, pictures, trained)
    if trained is not None and (split := split_by(candidate, trained, lambda _: trained)):
        trained = replace(trained, split=split)  # without test pictures that were trained on in an earlier run
    request = EvaluationRequest(
        candidate, pictures, trained, folder / "cache", options.count, options.seed, network,
        console.bar, PortraitJudge(read_drawn(candidate.size)) if known else None, changes, seen,
        ranks,
    )  # fmt: skip
    for line in evaluation_lines(evaluate_run(request, folder)):
        console.say(line)
    if options.out is None:
        write_card(folder)
        write_report(folder)
    console.say(f"all numbers are in {folder / EVALUATION_FILE}")
    return folder / EVALUATION_FILE


def changed_in(candidate: Candidate, changes: dict[str, Any]) -> Candidate:
    return replace(candidate, model=replace(candidate.model, samplings=candidate.model.settings(changes)))


def pictures_of(
    candidate: Candidate, data: Path | None, cache: Path, console: Console
) -> tuple[Pictures, Pictures | None]:
    """What samples are compared with, and what the run was trained on: None where that is gone or has changed."""
    run = candidate.run
    pictures = read_as_run(run, data, candidate.size, cache, console)
    if candidate.run.state.is_of(pictures):
        return pictures, pictures
    return pictures, read_own(run, candidate.size, cache, console) if data else None
