"""Legs of every kind, stopped at random steps, end as they do without a stop; and each stored number is used.

`make proofs` runs it, with POINTS=50 for more stops of a leg, and PLACES=50 for fewer numbers. Both go through
`train_leg`, with log, previews, validation, early stopping and the guard of the critic, and compare every bit of
networks, averages and optimizers.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataclasses import replace

from small import (
    CASCADE,
    CPU,
    LEGS,
    Keeper,
    be_quick,
    fingerprint,
    first_leg,
    noise_pictures,
    recipe,
    request,
    write_pictures,
)
from test_stored import STOPPED, few_previews, run_for, stopped_leg, trained, unused
from test_train import interrupted_at
from test_views import side_cache

from calotype.cli import commands
from calotype.cli.options import ResumeOptions
from calotype.data.captions import Captions
from calotype.files import read_json, write_json
from calotype.run import Run
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace
from calotype.tables import merge
from calotype.training import leg as legs
from calotype.training.examples import Bucket, crop_examples, latent_examples, picture_examples
from calotype.training.legs import denoiser_leg, enlarger_leg, exposure_leg
from calotype.training.process import Interrupted
from calotype.types import UserError

__all__ = ["few_previews"]
POINTS = int(os.environ.get("POINTS", "10"))
PLACES = int(os.environ.get("PLACES", "1000"))
SEED = os.environ.get("SEED", "")
IMAGES = 4 * max(30, POINTS + 10)


def cascade(**changes):
    long = {"denoiser": {"images": IMAGES}, "enlarge": {"16": {"images": IMAGES}}}
    return parse_recipe(merge(CASCADE, long, changes))


def base(**changes):
    settings, pictures = cascade(**changes), noise_pictures()
    if settings.denoiser.text.kind != "none":
        pictures = replace(pictures, captions=Captions((("red, big", "blue"), ("green, small",)) * 5))
    small = pictures.shrunk(8)
    return denoiser_leg(settings, [Bucket(small, picture_examples(settings, small, CPU))], PixelSpace(), CPU)


def captioned():
    return base(denoiser={"text": {"kind": "bytes", "width": 8, "words": 4}})


def buckets():
    """Two, of other shapes: batches are drawn from one or the other."""
    settings = cascade()
    whole = noise_pictures().shrunk(8)
    wide = replace(whole, pixels=torch.cat([whole.pixels, whole.pixels], -1), content="wide")
    pairs = [Bucket(each, picture_examples(settings, each, CPU)) for each in (whole, wide)]
    return denoiser_leg(settings, pairs, PixelSpace(), CPU)


def muon():
    return base(denoiser={"learn": {"optimizer": "muon"}})


def views():
    own, pictures = recipe(flip=False, denoiser={"views": 5}), noise_pictures()
    examples = latent_examples(own, pictures, side_cache(1), CPU)
    return denoiser_leg(own, [Bucket(pictures, examples)], LatentSpace(first_leg().trained), CPU)


def enlarger(**changes):
    settings, pictures = cascade(**changes), noise_pictures()
    return enlarger_leg(settings, 16, pictures, crop_examples(settings, 16, pictures, CPU), CPU)


def exposure():
    changes = {"enlarge": {"16": {"exposure": {"images": IMAGES, "pictures": 4}}}}
    return exposure_leg(cascade(**changes), base().trained, enlarger().trained, noise_pictures(), CPU)


def longer(make, name):
    def made():
        leg = make()
        leg.progress.total = IMAGES
        return leg

    return made


KINDS = {name: longer(make, name) for name, make in LEGS.items()}
KINDS |= {each.__name__: each for each in (base, captioned, buckets, muon, views, enlarger, exposure)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_leg_that_is_stopped_at_random_steps_ends_the_same(tmp_path, kind, monkeypatch):
    """Random ones, those around the critic's start, the first, the last, and after the end; each process is new."""
    monkeypatch.setattr(legs, "PREVIEWS", (0.5, 1.0))
    leg = KINDS[kind]()
    assert trained(run_for(tmp_path / "undisturbed", leg), leg)
    expected = fingerprint(leg.saved)
    batch, rng = leg.progress.batch, random.Random(f"{kind}{SEED}")
    steps = leg.progress.total // batch
    points = {1, steps - 1, steps, *(min(steps, int(steps * share) + more) for share in (0.25, 0.5) for more in (0, 1))}
    points |= set(rng.sample(range(1, steps), min(POINTS, steps - 1)))
    run = run_for(tmp_path / "stopped", leg)
    for step in sorted(points):
        leg = KINDS[kind]()
        assert not trained(Run.open(run.folder), leg, step * batch) and leg.progress.images_seen == step * batch
    for _ in range(2):  # and once more, after the end
        leg = KINDS[kind]()
        assert trained(Run.open(run.folder), leg) and fingerprint(leg.saved) == expected


# -- Each stored number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STOPPED)
def test_every_number_in_a_checkpoint_is_used(tmp_path, kind):
    stopped = stopped_leg(tmp_path / "run", kind)
    chosen = random.Random(f"{kind}{SEED}").sample(stopped[3], min(PLACES, len(stopped[3])))
    assert len(chosen) > 20 and list(unused(tmp_path / "run", kind, stopped, chosen)) == []


KEYS = {  # of run.json: another value of each, and whether it is only told, or refused
    "data": ("/nowhere", "refused"),
    "content": ("other", "refused"),
    "labels": ("other", "refused"),
    "classes": (["a", "c"], "refused"),
    "imported_weights": ("other", "refused"),
    "settings": ({"seed": 5}, "refused"),
    "version": (99, "refused"),
    "constants": ({"denoiser": "other"}, "refused"),
    "threads": (3, "told"),
    "versions": ({"torch": "0.9"}, "told"),
    "legs": ({"autoencoder": "finished", "denoiser": "finished"}, "refused"),
    "status": ("finished", "told"),
    "inspection": ({"verdict": "Bad.", "score": 0.0, "advice": "Start again."}, "refused"),
    "name": ("other", "told"),
    "created": ("2020-01-01T00:00:00+00:00", "told"),
    "pictures": ({"train": 3}, "told"),
    "split": ({"version": 1, "validation": 0.2, "test": 0.2}, "told"),
    "seconds": ({"autoencoder": 1000.0}, "told"),
    "wall_seconds": (1000.0, "told"),
    "operations": ({"fit": 10**15}, "told"),
    "parameters": ({"autoencoder": 7}, "told"),
    "validation": ({"autoencoder": {"best": {"images_seen": 4, "held_out_loss": 1.0, "train_loss": 1.0}}}, "told"),
    "peak_memory_bytes": (5, "told"),
    "ranks": (2, "told"),
    "uncaptioned": ("other", "told"),
    "outdated": (["denoiser"], "told"),
    "black_and_white": ({"16 bits": [0, 1000]}, "told"),
    "overfitted": ({"autoencoder": "It keeps its best weights."}, "told"),
    "levels": ({"16": {"best": 0.1, "tried": [[0.0, 0.5], [0.1, 0.4]]}}, "refused"),  # it has one stage
    "part": (2, "told"),
    "job": ("another", "told"),
}
MEASURED_AGAIN = {"status", "threads", "ranks", "uncaptioned", "parameters", "peak_memory_bytes", "versions"}
NAMED = {"ranks": "1 rank instead of 2", "versions": "instead of 0.9"}
"""What is printed of those that change the last bits."""


def test_every_key_of_a_runs_state_is_used(tmp_path, monkeypatch):
    """Another value is refused, or named, or in what is reported."""
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures")
    stop_in(monkeypatch, tmp_path)
    run = tmp_path / "run"
    before = read_json(run / "run.json")
    assert before.keys() <= KEYS.keys()
    for key, (value, expected) in KEYS.items():
        folder = shutil.copytree(run, tmp_path / f"run-{key}")
        other = {**before[key], **value} if isinstance(before.get(key), dict) else value
        alone = {"uncaptioned": None} if key == "content" else {}  # the same pictures are known by either
        write_json(folder / "run.json", {**before, **alone, key: other})
        console, now = Keeper(), None
        try:
            commands.resume(ResumeOptions(folder), console)
            now = read_json(folder / "run.json")
        except UserError as error:
            assert expected == "refused" and str(folder.name)[:3] in str(error), (key, error)
        assert (now is None) == (expected == "refused"), key
        assert any(NAMED.get(key, "") in text for text in console.printed) or now is None, key
        if now is not None and key not in MEASURED_AGAIN:
            assert now[key] != before[key], key
        shutil.rmtree(folder)


def stop_in(monkeypatch, place):
    """A run that was stopped while its denoiser learned."""
    with monkeypatch.context() as patch:
        patch.setattr(legs, "SAVE_SECONDS", 0.0)
        interrupted_at(patch, [("denoiser", 8)])
        with pytest.raises(Interrupted):
            commands.train(request(place / "pictures", place / "run"), Keeper())
