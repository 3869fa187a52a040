"""A critic that does harm is taken back; without a critic nothing of it is there."""

import json
import math
import threading
from dataclasses import replace

import pytest
from small import fingerprint, first_leg
from test_train import run_in, silent

from calotype.ranks import ALONE
from calotype.run import Run
from calotype.training import checkpoint
from calotype.training.control import CHECKS, LOWERED, CriticGuard
from calotype.training.leg import begin_leg, save_leg, train_leg
from calotype.training.loop import train_step
from calotype.training.process import Interrupted


def guarded(psnrs, **changes):
    """A leg whose guard sees these numbers, one a check, by how far the leg is."""
    leg = first_leg(**changes)
    guard = leg.guard
    seen = dict(zip(guard.fractions, psnrs, strict=True))
    guard.psnr = lambda: seen[max(place for place in seen if place <= leg.progress.fraction + 1e-9)]
    return leg, guard


LONGER = {"autoencoder": {"images": 80, "losses": {"critic_start": 0.25, "critic_used": 0.5}}}
FALLS = [28.0, 28.5, 27.8, 20.0, 28.4, math.nan]


def test_what_a_critic_ruins_comes_back_and_it_counts_for_less():
    leg = first_leg()
    train_state = leg.states["autoencoder"]
    psnrs = iter(FALLS)
    guard = CriticGuard(leg.objective, train_state, lambda: next(psnrs))
    prints, checks = [], []
    for images_seen in range(0, 24, 4):
        train_step(leg.objective, leg.states, leg.source.batch(images_seen, 4), leg.progress)
        prints.append(fingerprint({"autoencoder": train_state}))
        checks.append(guard.check())
        if checks[-1].taken_back:
            assert fingerprint({"autoencoder": train_state}) == prints[1] and train_state.steps == 2
        else:
            assert fingerprint({"autoencoder": train_state}) == prints[-1]
    assert [check.taken_back for check in checks] == [False, False, False, True, False, True]
    assert leg.objective.trust == LOWERED**2 and guard.best == 28.5
    assert "fell from 28.5 to 20.0 dB" in str(checks[3]) and "0.25 of its former weight" in str(checks[3])


def test_less_trust_is_a_smaller_gradient_from_the_critic():
    leg = first_leg()
    batch = leg.source.batch(0, 4)
    full, less = (loss(leg, batch, trust) for trust in (1.0, 0.25))
    assert less == pytest.approx(0.25 * full, rel=1e-5) and full != 0


def loss(leg, batch, trust):
    leg.objective.trust = trust
    return float(leg.objective.losses(batch, 0.9, leg.progress.rng())["autoencoder"].terms["adversarial"])


def test_a_resumed_run_is_the_same_to_the_bit_where_a_critic_was_taken_back(tmp_path):
    """Stopped before, between and after the checks that take the weights back."""
    whole, guard = guarded(FALLS, **LONGER)
    train_leg(run_in(tmp_path / "whole"), whole, threading.Event(), silent)
    assert guard.objective.trust == LOWERED**2
    run = run_in(tmp_path / "parts")
    for until in (36, 56, 68, 76, None):
        part, again = guarded(FALLS, **LONGER)
        stop = threading.Event()
        part = replace(part, source=Stopping(part.source, stop, until))
        try:
            train_leg(run, part, stop, silent)
        except Interrupted:
            assert part.progress.images_seen == until
    assert fingerprint(part.saved) == fingerprint(whole.saved) and again.best == guard.best
    assert again.objective.trust == guard.objective.trust
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [one["taken_back"] for one in events if one["event"] == "guard"] == [False] * 3 + [True, False, True]
    assert sum("the earlier weights were restored" in one.get("text", "") for one in events) == 2


class Stopping:
    """Asks to stop while the last batch before so many images is drawn."""

    def __init__(self, source, stop, until):
        self.source, self.stop, self.until = source, stop, until

    def batch(self, images_seen, count):
        if images_seen + count == self.until:
            self.stop.set()
        return self.source.batch(images_seen, count)


def test_a_critic_that_goes_wild_ruins_nothing(tmp_path):
    """Its gradient is a thousand times the reconstruction's."""
    wild = {"adversarial": 1e3, "adversarial_cap": 1e9, "critic_start": 0.25, "critic_used": 0.5}
    changes = {"images": 320, "losses": wild, "learn": {"learning_rate": 0.05, "decay": 0.0, "warmup": 0.0}}
    ends = []
    for name in ("guarded", "alone"):
        leg = first_leg(autoencoder=changes)
        psnr = leg.guard.psnr
        leg = replace(leg, guard=leg.guard if name == "guarded" else None)
        train_leg(run_in(tmp_path / name), leg, threading.Event(), silent)
        ends.append(psnr())
    log = [json.loads(line) for line in (tmp_path / "guarded" / "log.jsonl").read_text().splitlines()]
    checks = [one for one in log if one["event"] == "guard"]
    assert len(checks) == CHECKS and any(one["taken_back"] for one in checks)
    assert ends[0] >= checks[-1]["best"] - 1.0 and ends[1] < ends[0] - 1.0


def test_without_a_critic_nothing_of_it_is_there(tmp_path):
    leg = first_leg(autoencoder={"losses": {"adversarial": 0}})
    leg.objective.critic.register_forward_pre_hook(lambda *arguments: pytest.fail("the critic was asked"))
    assert set(leg.states) == {"autoencoder"} and leg.guard is None and set(leg.objective.networks) == {"autoencoder"}
    run = run_in(tmp_path / "run")
    train_leg(run, leg, threading.Event(), silent)
    files = {path.name for path in run.folder.glob("checkpoints/*/*")}
    assert files == {"autoencoder.safetensors", "state.json", "manifest.json"}
    assert "critic" not in (run.folder / "log.jsonl").read_text()


def test_a_guard_without_a_check_behind_it_takes_nothing_back():
    leg = first_leg()
    before = fingerprint(leg.states)
    check = CriticGuard(leg.objective, leg.states["autoencoder"], lambda: math.nan).check()
    assert not check.taken_back and leg.objective.trust == 1.0 and fingerprint(leg.states) == before


def test_with_other_validation_pictures_the_best_of_those_before_does_not_count(tmp_path):
    run = run_in(tmp_path / "run")
    leg, guard = guarded([28.0] * CHECKS, **LONGER)
    begin_leg(run, leg, ALONE, print)
    guard.check(28.0)
    save_leg(run, leg)
    for cleared, best in ((False, 28.0), (True, -math.inf)):
        if cleared:
            run.state.validation.clear()
        again, guard = guarded([28.0] * CHECKS, **LONGER)
        begin_leg(run, again, ALONE, print)
        assert guard.best == best and bool(guard.before) == (not cleared)
    again, guard = guarded([28.0] * CHECKS, **LONGER)  # a kill, before the next checkpoint
    begin_leg(Run.open(run.folder), again, ALONE, print)
    assert guard.best == -math.inf and not guard.before


def test_a_kill_while_the_guard_forgets_is_made_up_for(tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    leg, guard = guarded([28.0] * CHECKS, **LONGER)
    begin_leg(run, leg, ALONE, print)
    guard.check(28.0)
    save_leg(run, leg)
    run.state.validation.clear()
    run.save()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", lambda *more: (_ for _ in ()).throw(KeyboardInterrupt))
        begin_leg(Run.open(run.folder), guarded([28.0] * CHECKS, **LONGER)[0], ALONE, print)
    again, guard = guarded([28.0] * CHECKS, **LONGER)
    begin_leg(Run.open(run.folder), again, ALONE, print)
    assert guard.best == -math.inf and not guard.before
