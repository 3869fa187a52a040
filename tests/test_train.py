import builtins
import contextlib
import json
import math
import os
import pickle
import shutil
import signal
import threading
import time

import psutil
import pytest
import torch
from small import LEGS, Keeper, be_quick, fingerprint, first_leg, request, second_leg, write_pictures
from test_checkpoint import go_on

from calotype.cli import commands
from calotype.cli.options import ResumeOptions
from calotype.data.sources import LatentSource, PictureSource
from calotype.evaluation import features
from calotype.files import read_json, sha256
from calotype.model import load
from calotype.nets.perceptual import pretrained_lite0
from calotype.ranks import ALONE
from calotype.run import Run, RunState
from calotype.training import checkpoint, legs, pipeline
from calotype.training.leg import RunningMeans, begin_leg, save_leg, train_leg
from calotype.training.loop import BatchSource, TrainProgress, at_fractions, every, train_step, train_steps
from calotype.training.process import HOST, Interrupted, locked, stoppable
from calotype.types import Rng, UserError


def run_in(folder):
    folder.mkdir()
    run = Run(folder, RunState(legs={"autoencoder": "waiting", "denoiser": "waiting"}))
    run.save()
    return run


def silent(done, total, note=""):
    pass


# -- The loop ----------------------------------------------------------------------------------------------------------


def test_the_loop_sees_each_batch_once_and_yields_after_it():
    leg, seen = second_leg(), []
    real = leg.source.batch
    source = type(
        "Kept", (), {"batch": lambda self, start, count: seen.append(("batch", start)) or real(start, count)}
    )()
    assert isinstance(source, BatchSource)
    due = at_fractions([0.5, 0.6, 1.0])
    for _ in train_steps(leg.objective, leg.states, source, leg.progress):
        seen.append(("always", leg.progress.images_seen))
        if due(leg.progress):
            seen.append(("fraction", leg.progress.images_seen))
    starts = range(0, 32, 4)
    assert [at for what, at in seen if what == "batch"] == list(starts)
    assert [at for what, at in seen if what == "always"] == [start + 4 for start in starts]
    assert [at for what, at in seen if what == "fraction"] == [16, 20, 32]
    assert leg.states["denoiser"].steps == 8


def test_a_loop_that_has_ended_does_nothing():
    leg = second_leg()
    leg.progress.images_seen = leg.progress.total
    before = fingerprint(leg.states)
    for _ in leg.steps():
        pass
    assert fingerprint(leg.states) == before


@pytest.mark.parametrize(
    ("fractions", "seen", "steps", "due"),
    [
        ([0.5, 0.1, 1.0], 0.0, [0.05, 0.1, 0.2, 0.5, 0.9, 1.0], [0.1, 0.5, 1.0]),
        ([0.1, 0.2, 0.3], 0.0, [0.05, 0.35, 0.5], [0.35]),  # all at once where a step leaps over them
        ([0.1, 0.5], 0.1, [0.2, 0.5, 0.6], [0.5]),  # what was done before the stop is not done again
        ([0.5], 0.0, [0.4, 0.5, 0.3, 0.5], [0.5]),  # a leg that gets longer falls back
    ],
)
def test_due_once_at_each_fraction(fractions, seen, steps, due):
    progress, is_due = TrainProgress(100, 1, 0), at_fractions(fractions, seen)
    found = []
    for fraction in steps:
        progress.images_seen = round(100 * fraction)
        found += [fraction] if is_due(progress) else []
    assert found == due


def test_due_every_so_many_seconds_of_training():
    progress, is_due, found = TrainProgress(100, 1, 0), every(10.0), []
    for seconds in (0, 4, 9.9, 10, 12, 19.9, 21, 30.9, 31, 55, 56, 65):
        progress.seconds = float(seconds)
        found += [seconds] if is_due(progress) else []
    assert found == [10, 21, 31, 55, 65]


def test_progress_counts_seconds_of_training_and_not_the_time_between(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress = TrainProgress(8, 4, seed=3, started=100.0)
    now[0] += 2
    progress.advance(4)
    saved = json.loads(json.dumps(progress.state()))
    now[0] += 1000
    other = TrainProgress(99, 4, seed=3)
    other.restore(saved)
    now[0] += 1
    assert other.rng() == progress.rng()
    other.advance(4)
    assert (other.images_seen, other.total, other.seconds, other.fraction) == (8, 8, 3.0, 1.0)
    assert other.rng() != progress.rng()


@pytest.mark.parametrize("leg", LEGS)
def test_a_leg_is_the_same_every_time_and_another_with_another_seed(leg):
    """`go_on` of test_checkpoint, 4 steps; the seed of torch's generator outside does not count."""
    torch.manual_seed(5)
    one = fingerprint(go_on(LEGS[leg](), 16).states)
    torch.manual_seed(6)
    assert fingerprint(go_on(LEGS[leg](), 16).states) == one
    if leg == "denoiser":
        assert fingerprint(go_on(second_leg(seed=1), 16).states) != one


@pytest.mark.parametrize("make", [first_leg, second_leg])
def test_training_makes_the_loss_smaller(make):
    """On all pictures that are trained on, with the same noise before and after, from the closed-form start on."""
    longer = {"images": 1920, "batch": 12}
    leg = make(autoencoder=longer, denoiser=longer)

    def loss():
        losses = leg.objective.losses(leg.source.batch(0, 90), 0.0, Rng(("the same",)))
        return losses[leg.name].total.item()

    before = loss()
    assert before == loss()
    go_on(leg)
    assert loss() < 0.995 * before


@pytest.mark.parametrize("network", ["autoencoder", "critic"])
def test_a_loss_that_is_not_a_number_stops_in_one_line(network):
    leg = go_on(first_leg(), 16)
    real = leg.objective.losses

    def losses(*given):
        found = real(*given)
        bad = found[network]
        terms.extend(bad.terms)
        return found | {network: type(bad)(bad.total * math.nan, bad.terms)}

    leg.objective.losses, terms = losses, []
    before = fingerprint({network: leg.states[network]})
    with pytest.raises(UserError, match=f"{network} after 16 images: .* nan .*; lower the learning rate") as error:
        train_step(leg.objective, leg.states, leg.source.batch(16, 4), leg.progress)
    assert "\n" not in str(error.value) and all(name in str(error.value) for name in terms)
    assert fingerprint({network: leg.states[network]}) == before


def test_the_log_averages_each_name_over_the_records_that_have_it():
    means = RunningMeans()
    for record in ({"a": 1.0}, {"a": 2.0, "b": torch.tensor(5.0)}, {"a": 6.0}):
        means.add(record)
    assert means.means() == {"a": 3.0, "b": 5.0}


# -- A run -------------------------------------------------------------------------------------------------------------


def test_a_leg_is_logged_saved_and_finished(tmp_path):
    run, leg = run_in(tmp_path / "run"), second_leg()
    train_leg(run, leg, threading.Event(), silent)
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("preview") == kinds.count("check") == 6 and events[-1]["measures"]["held_out_loss"] > 0
    assert all((run.folder / event["file"]).exists() for event in events if event["event"] == "preview")
    steps = [event for event in events if event["event"] == "step"]
    assert steps[-1]["images_seen"] == 32 and steps[-1]["terms"]["denoiser.loss"] > 0
    assert read_json(run.folder / "run.json")["legs"]["denoiser"] == "finished"
    again = second_leg()
    train_leg(run, again, threading.Event(), silent)
    assert fingerprint(again.states) == fingerprint(leg.states) and again.states["denoiser"].steps == 8


def test_a_run_that_is_asked_to_stop_saves_first(tmp_path):
    run, leg, stop = run_in(tmp_path / "run"), second_leg(), threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        train_leg(run, leg, stop, silent)
    found = second_leg()
    assert checkpoint.restore(run.folder / "checkpoints", "denoiser", found.states, found.progress)
    assert found.progress.images_seen == 4 and fingerprint(found.states) == fingerprint(leg.states)
    assert read_json(run.folder / "run.json")["legs"]["denoiser"] == "training"


def test_the_first_signal_asks_and_the_second_stops_at_once():
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have another
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        stop.clear()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, usual)


def test_other_threads_than_the_main_one_handle_no_signals():
    found = []

    def work():
        with stoppable() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_run_is_locked_against_a_living_process(tmp_path):
    run = run_in(tmp_path / "run")
    with locked(run.folder):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), locked(run.folder):
            pass
        assert (run.folder / "lock").exists()
    with locked(run.folder):
        pass


@pytest.mark.parametrize("owner", ["gone", "later", "", "not a number"])
def test_the_lock_of_a_process_that_is_gone_does_not_count(tmp_path, owner):
    """Nor that of one whose number another process has got since: in a container, all runs have the same number."""
    run = run_in(tmp_path / "run")
    lock = run.folder / "lock"
    lock.write_text({"gone": str(2**22 - 1), "later": str(os.getpid())}.get(owner, owner))
    if owner == "later":
        born = psutil.Process().create_time()
        os.utime(lock, (born - 60, born - 60))
    with locked(run.folder):
        assert lock.read_text() == f"{os.getpid()} {HOST}"


# -- All of it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    be_quick(monkeypatch)


LEG_OF = {"pictures": "autoencoder", "latents": "denoiser", "base": "denoiser"}


def interrupted_at(monkeypatch, places):
    """Ctrl-C while the batch after so many images of a leg is drawn, once each."""
    left = set(places)
    for source in (PictureSource, LatentSource):

        def batch(self, start, count, real=source.batch):
            name = self.rng.path[-1]
            leg = LEG_OF.get(name, name)
            if (leg, start) in left:
                left.remove((leg, start))
                signal.raise_signal(signal.SIGINT)
            return real(self, start, count)

        monkeypatch.setattr(source, "batch", batch)


def products(run):
    """All that a run is for: the model and the samples."""
    kept = [*(run / "model").iterdir(), *(run / "samples").glob("*.png")]
    return {path.name: sha256(path) for path in kept}


def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch, finished, quick):
    """Through the commands: stopped twice in the first leg, at its end, and in the second."""
    write_pictures(tmp_path / "pictures")
    run, states = tmp_path / "run", []
    interrupted_at(monkeypatch, [("autoencoder", 8), ("autoencoder", 16), ("autoencoder", 28), ("denoiser", 20)])
    for work in (lambda: commands.train(request(tmp_path / "pictures", run), Keeper()), *[lambda: resume(run)] * 4):
        with contextlib.suppress(Interrupted):
            work()
        states.append(read_json(run / "run.json"))
    assert [state["status"] for state in states] == ["interrupted"] * 4 + ["finished"]
    assert [state["legs"]["denoiser"] for state in states] == ["waiting"] * 3 + ["training", "finished"]
    assert products(run) == products(finished)
    assert read_json(run / "run.json")["seconds"].keys() == read_json(finished / "run.json")["seconds"].keys()


def resume(run):
    return commands.resume(ResumeOptions(run), Keeper())


def test_a_finished_run_is_left_as_it_is(finished):
    before, console = products(finished), Keeper()
    assert commands.resume(ResumeOptions(finished), console) == finished
    assert "finished already" in console.printed[0] and products(finished) == before


def test_other_pictures_are_refused(tmp_path, monkeypatch, quick):
    write_pictures(tmp_path / "pictures")
    interrupted_at(monkeypatch, [("autoencoder", 8)])
    with pytest.raises(Interrupted):
        commands.train(request(tmp_path / "pictures", tmp_path / "run"), Keeper())
    write_pictures(tmp_path / "pictures", count=3, seed=1)
    with pytest.raises(UserError, match=r"have changed: .* since"):
        resume(tmp_path / "run")


def test_a_run_that_is_in_use_is_left_alone(tmp_path, monkeypatch, quick):
    """Not even its state is written by who is refused."""
    write_pictures(tmp_path / "pictures")
    run = tmp_path / "run"
    interrupted_at(monkeypatch, [("autoencoder", 8)])
    with pytest.raises(Interrupted):
        commands.train(request(tmp_path / "pictures", run), Keeper())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with locked(run), pytest.raises(UserError, match="in use by process"):
        resume(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_nothing_of_a_run_is_a_pickle(monkeypatch, tmp_path, quick):
    """Writing and reading back: only the weights of the perceptual distance are one, and they are read already."""

    def no(*arguments, **more):
        raise AssertionError("a pickle")

    network = pretrained_lite0()
    for module in (features, legs, pipeline):
        monkeypatch.setattr(module, "pretrained_lite0", lambda device: network)
    write_pictures(tmp_path / "pictures")
    for owner, names in ((pickle, "load loads dump dumps Pickler Unpickler"), (torch, "load save"), (builtins, "eval")):
        for name in names.split():
            monkeypatch.setattr(owner, name, no)
    interrupted_at(monkeypatch, [("denoiser", 8)])
    with pytest.raises(Interrupted):
        commands.train(request(tmp_path / "pictures", tmp_path / "run"), Keeper())
    resume(tmp_path / "run")
    load(tmp_path / "run").sample(1)
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".toml", ".safetensors", ".png", ".html", ".md"}


def test_a_leg_whose_checkpoints_are_gone_says_that_it_starts_anew(tmp_path):
    leg, run, noted = LEGS["denoiser"](), run_in(tmp_path / "run"), []
    begin_leg(run, leg, ALONE, noted.append)
    assert not noted
    save_leg(run, go_on(leg, 8))
    shutil.rmtree(run.folder / "checkpoints")
    begin_leg(run, LEGS["denoiser"](), ALONE, noted.append)
    assert len(noted) == 1 and "has no checkpoint of it, so it starts from 0" in noted[0]
