"""A recipe, pictures and a run so small that training them takes a moment."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from calotype.cli import commands
from calotype.cli.commands import train
from calotype.cli.options import TrainOptions
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, pils_from_images
from calotype.data.latents import LatentCache
from calotype.data.split import Split
from calotype.evaluation.features import Lite0
from calotype.evaluation.references import FeatureStore, reference_set
from calotype.machine import Machine
from calotype.planning import measure
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace
from calotype.tables import merge
from calotype.training import fitting, leg, pipeline
from calotype.training.examples import Bucket, latent_examples
from calotype.training.legs import autoencoder_leg, denoiser_leg
from calotype.types import NULL_LABEL, Rng

CPU = torch.device("cpu")
SETTINGS = {
    "size": 16,
    "flip": True,
    "autoencoder": {
        "images": 32, "batch": 4, "crop": 12,
        "network": {"reduction": 4, "channels": 3, "widths": [8], "decoder_blocks": 1},
        "critic": {"width": 4, "depth": 2},
        "losses": {"critic_start": 0.25, "critic_used": 0.5},
    },
    "denoiser": {
        "images": 32, "batch": 4,
        "backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "dropout": 0.5},
    },
    "sampling": {"steps": 3},
}  # fmt: skip


CASCADE = {
    "kind": "cascade",
    "size": 16,
    "stages": [8, 16],
    "flip": True,
    "denoiser": SETTINGS["denoiser"],
    "sampling": SETTINGS["sampling"],
    "enlarge": {
        "16": {
            "images": 32, "batch": 4, "crop": 8,
            "backbone": {
                "kind": "unet", "patch": 2, "width": 8, "multiples": [1, 2], "blocks": 1, "attention_levels": [],
                "dropout": 0.5,
            },
            "sampling": {"steps": 2},
        }
    },
}  # fmt: skip
HYBRID = merge(
    SETTINGS,
    {"stages": [8, 16], "autoencoder": {"crop": 8}, "enlarge": CASCADE["enlarge"]},
)
"""Latents first, then pixels."""


def recipe(**changes):
    return parse_recipe(merge(SETTINGS, changes))


def machine():
    return Machine(CPU, "a small one", 1, 1e9, False, 2**30)


def be_quick(patch):
    """Few previews and crops for patch priors; machine and steps are not measured, but tried, to see that they work."""

    def once(work, device, repeats=5):
        work()
        return 0.01

    for module in (commands.training, commands.extending):
        patch.setattr(module, "examine", lambda device, threads=None: machine())
    patch.setattr(measure, "best_time", once)
    patch.setattr(measure, "counted", lambda work: 10**6)
    patch.setattr(pipeline, "counter", Uncounted)
    patch.setattr(leg, "PREVIEWS", (0.5, 1.0))
    patch.setattr(fitting, "PATCHES", 2**13)


class Uncounted:
    """In place of a counter of operations."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def get_total_flops(self):
        return 10**6


def noise_pixels(count, size=16, seed=0):
    """Pictures with colours of their own and coarse spots, so that there is something to learn."""
    rng = Rng((seed, "small pictures"))
    coarse = rng.at("spots").uniform(count, 3, 4, 4).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    colour = rng.at("colour").uniform(count, 3, 1, 1)
    fine = rng.at("fine").uniform(count, 3, size, size)
    return ((0.5 * colour + 0.4 * coarse + 0.1 * fine) * 255).to(torch.uint8)


def noise_pictures(count=10, size=16, classes=("a", "b"), seed=0):
    labels = torch.arange(count) % len(classes) if classes else torch.full((count,), NULL_LABEL)
    return Pictures(noise_pixels(count, size, seed), labels, classes, tenths(count), f"content {seed}")


def tenths(count):
    """A tenth to choose by, the next tenth for the test."""
    tenth = (torch.arange(count) / max(1, count // 10)).long()
    return Split(tenth > 1, tenth == 0, tenth == 1)


def write_pictures(folder, count=10, size=16, classes=("a", "b"), seed=0):
    """As PNG files, in class folders where there are classes."""
    pils = pils_from_images(images_from_pixels(noise_pixels(count, size, seed)))
    for index, picture in enumerate(pils):
        place = folder / classes[index % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index}.png")
    return folder


def opened(folder):
    """All pictures in a folder, by name."""
    return {path.name: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))}


def references(pictures, count, **settings):
    """The real pictures that samples are compared with; no features are taken."""
    return reference_set(FeatureStore(pictures, Lite0(), Path(), Keeper().bar, "real"), count, **settings)


class Keeper:
    """A voice that keeps what was printed."""

    def __init__(self):
        self.printed, self.bars, self.plans = [], [], []

    def say(self, text):
        self.printed.append(text)

    @contextmanager
    def bar(self, what):
        self.bars.append(what)
        yield lambda done, total, note="": None

    def plan(self, made):
        self.plans.append(made)


def request(folder, out, *overrides, size=16, budget=1e-6, settings=SETTINGS, **more):
    """No time at all: the legs are as long as the settings say, and there are 4 samples at the end."""
    return TrainOptions(folder, size, budget, out=out, overrides=[*as_overrides(settings), *overrides], **more)


def as_overrides(settings, prefix=""):
    """Nested settings as `--set` has them."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from as_overrides(value, f"{prefix}{key}.")
        elif not isinstance(value, bool):
            yield f"{prefix}{key}={value}"
        else:
            yield f"{prefix}{key}={str(value).lower()}"


def train_small(folder, *overrides, **changes):
    """A finished run in `folder/run` on ten pictures in `folder/pictures`."""
    write_pictures(folder / "pictures")
    return train(request(folder / "pictures", folder / "run", *overrides, **changes), Keeper())


def first_leg(**changes):
    return autoencoder_leg(recipe(**changes), noise_pictures(), CPU)


def second_leg(**changes):
    """In the latents of an autoencoder that has not learned beyond its closed-form start."""
    settings = recipe(**changes)
    pictures = noise_pictures()
    space = LatentSpace(autoencoder_leg(settings, pictures, CPU).trained)
    examples = latent_examples(settings, pictures, noise_cache(settings), CPU)
    return denoiser_leg(settings, [Bucket(pictures, examples)], space, CPU)


def noise_cache(settings, count=10):
    channels = settings.autoencoder.network.channels
    side = settings.size // settings.autoencoder.network.reduction
    mean = Rng(("small moments",)).normal(2, count, channels, side, side)
    return LatentCache(torch.cat([mean, torch.full_like(mean, -4.0)], 2).half())


LEGS = {
    "autoencoder": first_leg,
    "denoiser": second_leg,
    "unet": lambda: second_leg(denoiser={"backbone": {"kind": "unet", "width": 8, "dropout": 0.5}}),
}


def fingerprint(states):
    """Of every number that the states hold."""
    digest = hashlib.sha256()
    for name, train_state in sorted(states.items()):
        for key, value in sorted(train_state.tensors().items()):
            digest.update(f"{name} {key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
