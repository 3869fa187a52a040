"""Every number that is stored is used: another one in its place comes to another end, or is refused by name.

Here a few of each kind; `make proofs` tries all of them.
"""

import copy
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file
from small import LEGS, fingerprint, first_leg
from test_overfitting import BETTER, GOOD, states, validated
from test_train import run_in, silent

from calotype.files import read_json, whole_folder, write_json, write_tensors
from calotype.run import Run
from calotype.training import leg as legs
from calotype.training.leg import train_leg
from calotype.training.process import Interrupted
from calotype.types import UserError

__all__ = ["states"]


@pytest.fixture(autouse=True)
def few_previews(monkeypatch):
    monkeypatch.setattr(legs, "PREVIEWS", (1.0,))


class StopAt(threading.Event):
    """Is set once a leg has seen so many images."""

    def __init__(self, leg, images):
        super().__init__()
        self.leg, self.images = leg, images

    def is_set(self):
        return self.images is not None and self.leg.progress.images_seen >= self.images


def trained(run, leg, until=None):
    """Whether it came to its end."""
    try:
        train_leg(run, leg, StopAt(leg, until), silent)
    except Interrupted:
        return False
    return True


def run_for(folder, leg):
    run = run_in(folder)
    run.state.legs = {leg.name: "waiting"}
    run.save()
    return run


def ruined():
    """An autoencoder whose critic does harm after the checkpoint, so that the guard takes its weights back."""
    leg = first_leg()
    psnrs = dict(zip(leg.guard.fractions, (28.0, 28.5, 28.0, 20.0, 28.4, 28.3), strict=True))
    leg.guard.psnr = lambda: psnrs[max(place for place in psnrs if place <= leg.progress.fraction + 1e-9)]
    return leg


STOPPED = {
    "autoencoder": (first_leg, 20, ("autoencoder.", "critic.", "state.json")),
    "critic": (ruined, 20, ("critic",)),
    "denoiser": (LEGS["denoiser"], 12, ("denoiser.", "state.json")),
}
"""What makes a leg, where it is stopped, and the files whose numbers count from there on: not what is taken back."""


def end_of(folder, make):
    """All that a leg comes to from the checkpoint in a run, but for its seconds; or how it is refused."""
    leg = make()
    try:
        trained(Run.open(folder), leg)
    except UserError as error:
        return f"refused: {error}"
    return fingerprint(leg.saved), leg.progress.total, leg.progress.images_seen


def changed(value):
    if not isinstance(value, torch.Tensor):
        return value + 4
    return value + 64 if value.is_floating_point() else value + 1  # an average forgets all but 2e-8 of it


def stopped_leg(folder, kind):
    """Its checkpoint, the places of all its numbers, and what it comes to."""
    make, until, counting = STOPPED[kind]
    trained(run_for(folder, leg := make()), leg, until)
    (path,) = (folder / "checkpoints").iterdir()
    files = {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    stored = read_json(path / "state.json")
    places = [(name, key) for name, tensors in files.items() for key in tensors]
    places += [("state.json", (table, key)) for table in stored for key in stored[table]]
    guards = ("state.json", ("steps", "critic-guard"))  # counts where the critic is taken back
    places = [place for place in places if ("critic-guard" if place == guards else place[0]).startswith(counting)]
    return path, files, stored, places, end_of(shutil.copytree(folder, folder.parent / "again"), make)


def unused(folder, kind, stopped, chosen):
    """Those places whose numbers may be others, and all ends the same."""
    path, files, stored, _, unchanged = stopped
    assert not isinstance(unchanged, str)
    for number, (name, key) in enumerate(chosen):
        copied = shutil.copytree(folder, folder.parent / f"{kind}-{number}")
        tensors, state = {file: dict(values) for file, values in files.items()}, copy.deepcopy(stored)
        table = state[key[0]] if name == "state.json" else tensors[name]
        last = key[1] if name == "state.json" else key
        table[last] = changed(table[last])
        with whole_folder(copied / "checkpoints" / path.name) as new:
            for file, values in tensors.items():
                write_tensors(new / file, values)
            write_json(new / "state.json", state)
        result = end_of(copied, STOPPED[kind][0])
        seconds = sum(Run.open(copied).state.seconds.values())
        if result == unchanged and not (last == "seconds" and seconds > stored["clock"]["seconds"] + 4):
            yield name, key
        shutil.rmtree(copied)


def one_of_each(places):
    """One of every kind in every file: network, average, optimizer's slots, what the guard keeps, clock, steps."""
    kinds = {}
    for name, key in places:
        table, last = key if name == "state.json" else (key.split(".")[0], key.rpartition(".")[2])
        kind = last if table in ("optimizer", "clock", "steps") else ""
        kinds.setdefault((name, table, kind), (name, key))
    return list(kinds.values())


@pytest.mark.parametrize("kind", ["critic", "denoiser"])
def test_numbers_of_every_kind_in_a_checkpoint_are_used(tmp_path, kind):
    stopped = stopped_leg(tmp_path / "run", kind)
    chosen = one_of_each(stopped[3])
    assert len(chosen) >= 7 and list(unused(tmp_path / "run", kind, stopped, chosen)) == []


def test_best_weights_that_are_lost_are_named_and_count_no_more(tmp_path, states):
    stopping = validated(tmp_path, states, [GOOD, BETTER])
    assert stopping.forget_lost() == "" and stopping.validation.best
    (tmp_path / "best-denoiser" / "denoiser.safetensors").write_bytes(b"half")
    assert "lost (best-denoiser: denoiser.safetensors has 4 bytes" in stopping.forget_lost()
    assert stopping.validation.best is None
