"""Several ranks train what one process trains, and end together."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small import CPU, HYBRID, LEGS, Keeper, be_quick, machine, noise_pictures, opened, request, write_pictures
from test_one_step import ONE_STEP
from test_train import interrupted_at, resume
from together import Together, be_impatient
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from calotype import ranks as module
from calotype.cli import commands
from calotype.cli.launching import command_in, reason
from calotype.cli.options import EvaluateOptions, SampleOptions
from calotype.cli.process import start_ranks
from calotype.data import folder as data_folder
from calotype.evaluation.features import Lite0
from calotype.files import read_json, read_tensors
from calotype.ranks import LostRanks, Ranks, agreed_start, join, joined_ranks, pass_on
from calotype.recipe import OptimizerConfig
from calotype.run import Run
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training import fitting
from calotype.training.examples import crop_examples
from calotype.training.legs import enlarger_leg
from calotype.training.loop import Division, train_steps
from calotype.training.process import Interrupted
from calotype.training.state import TrainState
from calotype.types import UserError


def first_stages(name, steps):
    return LEGS[name](**{name: {"images": 4 * steps, "learn": {"learning_rate": 1e-3}}})


def enlarging(objective, steps):
    """A stage above latents, by the denoising loss or in one step."""
    changes = {"16": {"images": 4 * steps, "learn": {"learning_rate": 1e-3}}}
    settings = parse_recipe(merge(merge(HYBRID, ONE_STEP if objective == "one_step" else {}), {"enlarge": changes}))
    pictures = noise_pictures()
    return enlarger_leg(settings, 16, pictures, crop_examples(settings, 16, pictures, CPU), CPU)


COMPARED = {
    "denoiser": (partial(first_stages, "denoiser", 50), 2),
    "autoencoder": (partial(first_stages, "autoencoder", 50), 1),
    "enlarging": (partial(enlarging, "denoising", 12), 2),
    "one step": (partial(enlarging, "one_step", 12), 1),
}
"""Legs of so many steps, and the rounds in which a rank works on its part of a batch."""


def trained(make, ranks, **settings):
    """The weights of a leg, their average, and the terms and norms of its last step."""
    leg = make()
    *_, last = train_steps(leg.objective, leg.states, leg.source, leg.progress, Division(**settings, ranks=ranks))
    named = {f"{of}.{key}": value for of, state in leg.states.items() for key, value in state.tensors().items()}
    numbers = {name: float(value) for name, value in (last.terms | last.norms).items()}
    return {name: value.flatten().tolist() for name, value in named.items()}, numbers


@pytest.mark.parametrize(("make", "rounds"), COMPARED.values(), ids=COMPARED)
def test_two_ranks_are_one_process_with_as_many_slices(make, rounds, tmp_path, monkeypatch):
    """The weight of a critic is that of the whole batch."""
    monkeypatch.setattr(fitting, "PATCHES", 2**13)

    def work():
        with joined_ranks("cpu") as ranks:
            return trained(make, ranks, rounds=rounds)

    first, second = Together(2, work, tmp_path).results()
    assert first == second
    weights, numbers = trained(make, Ranks(), slices=2, rounds=rounds)
    assert first[0].keys() == weights.keys() and first[1] == pytest.approx(numbers, rel=1e-4)
    for key, values in weights.items():
        torch.testing.assert_close(torch.tensor(first[0][key]), torch.tensor(values), rtol=1e-5, atol=1e-5, msg=key)


def test_a_weight_without_a_gradient_in_the_last_round_is_summed_over_ranks(tmp_path):
    def work():
        with joined_ranks("cpu") as ranks:
            state = TrainState(nn.Linear(1, 1), OptimizerConfig())
            state.share(ranks)
            weight, bias = state.parameters
            state.backward((ranks.index + 1) * (weight + bias).sum(), last=False)
            state.backward((ranks.index + 1) * weight.sum(), last=True)
            return [float(weight.grad), float(bias.grad)]

    assert Together(2, work, tmp_path).results() == [[6.0, 3.0]] * 2


def on_ranks(work, folder):
    """The exit codes and the errors of two ranks."""
    ranks = Together(2, lambda: str(work()), folder)
    return ranks.codes(), [ranks.error(index) for index in range(2)]


def test_a_run_goes_on_on_another_number_of_ranks(tmp_path, monkeypatch, finished):
    """Stopped on two by a signal that one of them gets; then by itself; then on two to its end.

    The first alone decodes pictures.
    """
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures")
    run = tmp_path / "run"

    def begin():
        if os.environ["RANK"] == "1":
            interrupted_at(monkeypatch, [("autoencoder", 8)])
            monkeypatch.setattr(data_folder, "read_picture", lambda *given: pytest.fail("were decoded again"))
        return commands.train(request(tmp_path / "pictures", run), Keeper())

    codes, errors = on_ranks(begin, tmp_path / "ranks")
    assert codes == [1, 1] and "Interrupted" in errors[0] and "SystemExit" in errors[1], errors
    assert Run.open(run).state.status == "interrupted" and Run.open(run).state.ranks == 2
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["autoencoder-0000000012"]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_at(patch, [("denoiser", 8)])
        resume(run)
    assert on_ranks(lambda: resume(run), tmp_path / "ranks-2") == ([0, 0], ["", ""])
    notes = [event["text"] for event in Run.open(run).events if event["event"] == "note"]
    assert any("1 rank instead of 2" in text for text in notes) and any(
        "2 ranks instead of 1" in text for text in notes
    )
    assert Run.open(run).state.status == "finished"
    assert_same_model(run, finished)


def assert_same_model(run, other):
    files = sorted((other / "model").glob("*.safetensors"))
    assert files and [path.name for path in files] == sorted(
        path.name for path in (run / "model").glob("*.safetensors")
    )
    for path in files:
        for name, value in read_tensors(path).items():
            here = read_tensors(run / "model" / path.name)[name]
            torch.testing.assert_close(here, value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("count", "rows"), [(5, [[0, 1, 2], [3, 4]]), (1, [[0], []])])
def test_the_first_rank_collects_the_rows_of_all_in_order(count, rows, tmp_path):
    def work():
        with joined_ranks("cpu") as ranks:
            return ranks.collect(torch.arange(count)[ranks.share(count)], count).tolist()

    assert Together(2, work, tmp_path).results() == [list(range(count)), rows[1]]


def test_many_rows_are_collected_a_few_at_a_time(tmp_path, monkeypatch):
    """The first rank takes longer than the others' patience for all, but not for a part."""
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    monkeypatch.setattr(module, "SENT_BYTES", 16)
    received, real = [], module.dist.recv

    def slow(into, index):
        time.sleep(0.8)
        received.append(len(into))
        real(into, index)

    monkeypatch.setattr(module.dist, "recv", slow)

    def work():
        with joined_ranks("cpu") as ranks:
            return ranks.collect(torch.arange(11)[ranks.share(11)], 11).tolist(), received

    first, second = Together(2, work, tmp_path).results()
    assert first == [list(range(11)), [2, 2, 1]] and second == [list(range(6, 11)), []]


def test_two_ranks_sample_the_pictures_of_one_process(tmp_path, finished):
    """The names, the grid and how they were made, too."""

    def options(out):
        return SampleOptions(finished, count=5, out=out, seed=3, device="cpu")

    both = Together(2, lambda: str(commands.sample(options(tmp_path / "two"), Keeper())), tmp_path / "ranks")
    assert both.results() == [str(tmp_path / "two"), str(finished)]
    commands.sample(options(tmp_path / "one"), Keeper())
    assert read_json(tmp_path / "two" / "samples.json") == read_json(tmp_path / "one" / "samples.json")
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert len(one) == 6 and one.keys() == two.keys()
    for name, picture in one.items():
        assert np.abs(np.asarray(picture, int) - np.asarray(two[name], int)).max() <= 1, name


def test_a_mistake_on_two_ranks_is_named_once(tmp_path, finished):
    options = SampleOptions(finished, count=3, label="unknown", out=tmp_path / "out", device="cpu")
    codes, errors = on_ranks(lambda: commands.sample(options, Keeper()), tmp_path / "ranks")
    assert codes == [1, 1] and "label 'unknown' is unknown" in errors[0] and "UserError" not in errors[1]
    assert not (tmp_path / "out").exists()


def test_two_ranks_evaluate_as_one_process_does(tmp_path, finished):
    """More samples than are made at once, and an odd number of them."""

    def options(out):
        return EvaluateOptions(finished, count=37, out=out, device="cpu")

    Together(2, lambda: str(commands.evaluate(options(tmp_path / "two"), Keeper(), Lite0())), tmp_path / "r").results()
    commands.evaluate(options(tmp_path / "one"), Keeper(), Lite0())
    one, two = (flat(read_json(tmp_path / name / "evaluation.json")) for name in ("one", "two"))
    assert one.keys() == two.keys() and one == pytest.approx(two, rel=1e-3, abs=1e-4)


def flat(value, place=""):
    """The numbers in JSON, by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: number for name, each in items for key, number in flat(each, f"{place}/{name}").items()}
    return {place: value} if isinstance(value, int | float) else {}


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [("cuda:1", 2, "several ranks take cpu, or cuda"), ("cuda", 0, "has 0"), ("auto", 1, "2 ranks need a GPU each")],
)
def test_each_rank_needs_a_gpu_of_its_own(device, gpus, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message):
        join(device)


def test_ranks_that_are_started_again_share_no_words_with_those_before(monkeypatch):
    """Their store is the same; one that comes alone gives up."""
    store, starts = dist.HashStore(), []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            names = {*pool.map(lambda index: agreed_start(store, index, 3), [2, 1, 0])}
        assert len(names) == 1 and not names & {*starts}
        starts += names
    monkeypatch.setattr(module, "JOINING", 0.1)
    for index in (0, 1):
        with pytest.raises(UserError, match=rf"rank {index} of 3 found no others within 0 s"):
            agreed_start(store, index, 3)


def test_no_more_ranks_than_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "execv", lambda *command: pytest.fail("was started"))
    with pytest.raises(UserError, match="--ranks is 5, but this machine has 4 cores"):
        start_ranks(5)


@pytest.mark.parametrize(("device", "memory", "busy"), [("cpu", 2**29, 2), ("cuda", 2**30, 64)])
def test_a_machine_counts_its_ranks(device, memory, busy, monkeypatch):
    """Four of eight are here: on CPUs they divide memory, and each GPU has its own."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    alone = replace(machine(), device=torch.device(device), memory=2**30 if device == "cuda" else 2**31, busy_batch=8)
    shared = alone.shared_by(8)
    assert (shared.ranks, shared.memory, shared.busy_batch_of_all) == (8, memory, busy)
    assert (shared.flops, shared.all_flops) == (alone.flops, 8 * alone.flops) and "8 ranks" in str(shared)


@pytest.mark.parametrize(
    ("code", "line", "last"),
    [
        (2, "calotype: why", "calotype: why"),
        (-9, "calotype: why", "calotype: why"),
        (-9, None, "rank 1 was killed by SIGKILL"),
    ],
)
def test_the_launcher_ends_with_the_reason_that_a_rank_has_passed_on(code, line, last, tmp_path):
    if line:
        pass_on(line, str(tmp_path / "error.json"))
    assert last in reason(1, ProcessFailure(1, 1234, code, str(tmp_path / "error.json")))


@pytest.mark.parametrize(
    ("command", "advice"), [("train", "resume"), ("demo", "resume"), ("sample", "sample"), ("evaluate", "evaluate")]
)
def test_what_to_do_after_a_loss_is_of_the_command(command, advice, tmp_path):
    lost = str(LostRanks([1], replace(Ranks(), count=2, command=command)))
    failure = ProcessFailure(1, 1234, -9, str(tmp_path / "error.json"))
    for text in (lost, reason(1, failure, command_in(["-m", "calotype", command]))):
        assert f"calotype {advice}" in text and ("resume" in text) == (advice == "resume")


# -- Ranks that are lost -----------------------------------------------------------------------------------------------


def collecting(ranks, after=lambda: None):
    """Steps together without an end; `after` the third."""
    for step in range(10**6):
        ranks.sum(torch.ones(1))
        if step == 2 and not ranks.first:
            after()


ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "stuck": lambda: time.sleep(1000),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_rank_that_is_dead_or_stuck_is_named_and_ended(end, tmp_path, monkeypatch):
    be_impatient(monkeypatch)

    def work():
        with joined_ranks("cpu") as ranks:
            collecting(ranks, ENDS[end])

    ranks = Together(2, work, tmp_path)
    assert ranks.codes(60) == [1, -signal.SIGKILL]
    assert "LostRanks: rank 1 of 2 gave no sign any more" in ranks.error(0)


def test_a_first_rank_that_is_stuck_is_named_and_ended_by_those_that_wait_for_it(tmp_path, monkeypatch):
    be_impatient(monkeypatch)

    def work():
        with joined_ranks("cpu") as ranks:
            ranks.say(ENDS["stuck"])

    ranks = Together(2, work, tmp_path)
    assert ranks.codes(60) == [-signal.SIGKILL, 1]
    assert "LostRanks: rank 0 of 2 gave no sign any more" in ranks.error(1)


def test_who_waits_for_a_dead_rank_says_so(tmp_path, monkeypatch):
    be_impatient(monkeypatch)

    def work():
        with joined_ranks("cpu") as ranks:
            if not ranks.first:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.meet()

    ranks = Together(2, work, tmp_path)
    assert ranks.codes(15) == [1, -signal.SIGKILL] and "rank 1 of 2 gave no sign" in ranks.error(0)


def test_the_error_of_the_first_rank_ends_the_others_in_silence(tmp_path):
    def work():
        with joined_ranks("cpu") as ranks:
            ranks.say(lambda: 1 / 0)

    ranks = Together(2, work, tmp_path)
    assert ranks.codes() == [1, 1] and "ZeroDivisionError" in ranks.error(0)
    assert "SystemExit: 1" in ranks.error(1) and "Error:" not in ranks.error(1)
