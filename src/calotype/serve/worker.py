"""The process that samples: it reads requests from standard input, and writes progress and pictures to standard output.

`python -m calotype.serve.worker DEVICE`. It is a process of its own so that a request that needs too much memory, or a
picture that kills a decoder, costs one request and not the server.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, PngImagePlugin

from calotype.data.formats import FORMATS
from calotype.data.images import grid, read_image, read_mask
from calotype.data.seen import SEEN_FILE
from calotype.diffusion.samplers import CALLS_A_STEP
from calotype.diffusion.stage import in_turn
from calotype.machine import find_device, out_of_memory
from calotype.model import Model, load
from calotype.run import Run, read_mapping
from calotype.serve.answers import without_folders
from calotype.serve.gallery import UNREADABLE
from calotype.serve.requests import LARGEST_PIXELS, MOST_WORK
from calotype.serve.trained import Trained, nearest_to
from calotype.serve.wire import MAX_PART, packed, unpack
from calotype.threads import rows_of
from calotype.training.snapshot import snapshot
from calotype.types import NULL_LABEL, UserError

KEPT_MODELS = 2
MAX_PIXELS = 2**24
"""Of a picture that is sent, before it is decoded."""
FILM_MILLISECONDS = 100
LOSSLESS_PIXELS, FILM_QUALITY = 2**24, 95
"""Frames of a film that have more pixels together are compressed with losses, so that browsers can play it."""


class CancelledError(Exception):
    """Nobody waits for the pictures any longer."""


# -- Models ------------------------------------------------------------------------------------------------------------


class Models:
    """The models that were used last, each until its files change."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.open = device, OrderedDict[tuple[str, int | tuple[str, ...] | None], Model]()

    def of(self, folder: Path) -> Model:
        """Of a finished run its model, of any other its newest checkpoint, or its model until it has one.

        Raises `UserError`.
        """
        key = str(folder), version_of(folder)
        if key not in self.open:
            self.open[key] = (
                snapshot(folder, self.device)[0] if is_unfinished(folder) else load(folder, str(self.device))
            )
        self.open.move_to_end(key)
        while len(self.open) > KEPT_MODELS:
            self.open.popitem(last=False)
        return self.open[key]


def is_unfinished(folder: Path) -> bool:
    return Run.open(folder).state.status != "finished"


def version_of(folder: Path) -> int | tuple[str, ...] | None:
    manifest, checkpoints = folder / "model" / "manifest.json", folder / "checkpoints"
    if manifest.is_file() and not is_unfinished(folder):
        return manifest.stat().st_mtime_ns
    return tuple(sorted(path.name for path in checkpoints.iterdir())) if checkpoints.is_dir() else None


# -- Requests ----------------------------------------------------------------------------------------------------------


def draw_samples(model: Model, asked: dict[str, Any], files: Sequence[bytes]) -> Iterator[bytes]:
    """PNG files of samples, or of variations of a picture where one is sent, with its mask if there are two files."""
    pictures = [decoded(content, reader_of(asked)) for content in files[:1]]
    masks = [repainted(decoded(content, read_mask)) for content in files[1:2]]
    drawn = model.draw(
        asked["count"], asked.get("label"), asked["seed"], size_of(asked), prompt=asked.get("prompt") or None,
        negative=asked.get("negative"), picture=next(iter(pictures), None), mask=next(iter(masks), None),
        strength=asked.get("strength"), **changes_of(asked),
    )  # fmt: skip
    labels = (
        [NULL_LABEL] * asked["count"]
        if pictures
        else model.labels(asked["count"], asked.get("label"), asked.get("prompt"))
    )
    for index, picture in enumerate(drawn):
        turn = {} if labels[index] == NULL_LABEL else {"label": model.classes[labels[index]]}
        yield as_png(picture, {**asked, "index": index, **turn})


def draw_interpolation(model: Model, asked: dict[str, Any], files: Sequence[bytes]) -> Iterator[bytes]:
    """One animation in WebP, from the first picture of a seed to that of another."""
    label = asked.get("label")
    labels = (label, asked.get("label_after") or label) if label else None
    frames = model.interpolate(
        (asked["seed"], asked["seed_after"]), asked["count"], labels, size_of(asked),
        prompt=asked.get("prompt") or None, negative=asked.get("negative"), **changes_of(asked),
    )  # fmt: skip
    there_and_back = [*frames, *frames[-2:0:-1]]
    file = io.BytesIO()
    lossless = len(there_and_back) * frames[0].width * frames[0].height <= LOSSLESS_PIXELS
    there_and_back[0].save(file, "WEBP", save_all=True, append_images=there_and_back[1:], loop=0, lossless=lossless,
                           quality=FILM_QUALITY, duration=FILM_MILLISECONDS)  # fmt: skip
    yield file.getvalue()


def draw_estimates(model: Model, asked: dict[str, Any], files: Sequence[bytes]) -> Iterator[bytes]:
    """One picture from noise to clean, a row a step: what the sampler has, and what the denoiser takes it for.

    Rows of smaller stages are enlarged, pixel by pixel, so that all are equally high.
    """
    pairs = model.estimates(
        asked.get("label"), asked["seed"], size_of(asked), prompt=asked.get("prompt") or None,
        negative=asked.get("negative"), **changes_of(asked),
    )  # fmt: skip
    size = pairs[-1][0].size
    rows = [picture.resize(size, Image.Resampling.NEAREST) for pair in pairs for picture in pair]
    yield as_png(grid(rows, 2, gap=0), asked)


def draw_enlarged(model: Model, asked: dict[str, Any], files: Sequence[bytes]) -> Iterator[bytes]:
    """By the model's last enlarging stage; where it has none, by interpolation at twice the size.

    With a `strength`, image-to-image follows the interpolation: of a model of one size it makes worse pictures.
    """
    picture, label, seed = decoded(files[0], reader_of(asked)), asked.get("label"), asked["seed"]
    prompt = asked.get("prompt") or None
    factor = model.stages[-1].factor if model.stages[-1].low_res_size else 2
    width, height = factor * picture.width, factor * picture.height
    if width * height > LARGEST_PIXELS:
        raise UserError(
            f"enlarged, the picture would have {width}x{height} pixels; at most {LARGEST_PIXELS:,} are made"
        )
    if model.stages[-1].low_res_size:
        if asked.get("strength"):
            raise UserError("this model has a stage that enlarges, which takes no strength; leave it out")
        yield as_png(model.enlarge(picture, label=label, seed=seed, prompt=prompt), asked)
        return
    larger = picture.resize((width, height), Image.Resampling.LANCZOS)
    if strength := asked.get("strength"):
        size = width, height
        (larger,) = model.redraw(
            larger, strength, label=label, seed=seed, size=size, prompt=prompt, **changes_of(asked)
        )
    yield as_png(larger, asked)


WORK: dict[str, Callable[[Model, dict[str, Any], Sequence[bytes]], Iterator[bytes]]] = {
    "sample": draw_samples, "edit": draw_samples, "interpolate": draw_interpolation, "develop": draw_estimates,
    "enlarge": draw_enlarged,
}  # fmt: skip


def require_affordable(model: Model, asked: dict[str, Any]) -> None:
    """Raises `UserError` for more pixels than a request may have, of the size that is asked for or the model's own."""
    width, height = size_of(asked) or (model.image_size, model.image_size)
    count, fewer = asked["count"], "fewer"
    if asked["kind"] == "develop":  # two pictures a call of the denoiser
        samplings = model.settings(changes_of(asked))
        calls = (each.steps * CALLS_A_STEP[each.sampler] + (each.final_denoising > 0) for each in samplings)
        count, fewer = 2 * sum(calls), "fewer steps"
    if asked["kind"] != "enlarge" and count * width * height > MOST_WORK:
        raise UserError(
            f"{count} pictures of {width}x{height} px are too many for one request; ask for {fewer} (at most "
            f"{MOST_WORK // (width * height)} pictures of this size), or for smaller ones"
        )


def require_sendable(picture: bytes) -> bytes:
    """Raises `UserError` for a file that is larger than a message to the server may be."""
    if len(picture) > MAX_PART:
        raise UserError(
            f"the file has {len(picture) / 1e6:,.0f} MB, but at most {MAX_PART / 1e6:,.0f} MB are sent; ask for fewer, "
            "smaller or less noisy pictures"
        )
    return picture


def changes_of(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in ("steps", "guidance", "sampler") if asked.get(name) is not None}


def size_of(asked: dict[str, Any]) -> tuple[int, int] | None:
    return (asked["width"], asked["height"]) if asked.get("width") else None


def reader_of(asked: dict[str, Any]) -> Callable[[Path], Image.Image]:
    """Reads a picture with black and white of the run, for those with more than 8 bits, as the command line does."""
    return partial(read_image, levels=Run.open(Path(asked["folder"])).state.black_and_white)


def decoded(content: bytes, read: Callable[[Path], Image.Image]) -> Image.Image:
    """A picture that was sent. Raises `UserError`."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # decoders raise errors of all kinds
        raise UserError(f"the picture cannot be read; send one of {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"the picture has {width}x{height} pixels, but at most {MAX_PIXELS:,} are taken")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return read(path)
        except UserError as error:
            raise UserError(f"the picture cannot be read: {getattr(error, 'reason', error)}") from None


def repainted(mask: Image.Image) -> Image.Image:
    """White where a picture is to be repainted. OpenAI's masks say that by what is fully transparent, ours by white."""
    if mask.mode != "RGBA":
        return mask
    return mask.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0).convert("RGB")


def as_png(picture: Image.Image, about: dict[str, Any]) -> bytes:
    """With how it was made in it, as text."""
    notes = PngImagePlugin.PngInfo()
    for name in ("model", "seed", "index", "label", "prompt", "negative", "steps", "guidance"):
        if about.get(name) is not None:
            notes.add_itxt(f"calotype:{name}", str(about[name]))
    picture.save(file := io.BytesIO(), "PNG", pnginfo=notes)
    return file.getvalue()


# -- Progress and cancelling -------------------------------------------------------------------------------------------


@contextmanager
def watched(model: Model, step: Callable[[], None]) -> Iterator[None]:
    """Calls `step` before every call of a network, which is about once a step of the sampler."""
    hooks = [stage.denoiser.backbone.register_forward_pre_hook(lambda *given: step()) for stage in model.stages]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def calls_of(model: Model, asked: dict[str, Any]) -> int:
    """About how many calls of networks a request takes."""
    samplings = model.settings(changes_of(asked))
    width, height = size_of(asked) or (model.image_size, model.image_size)
    parts = in_turn(asked["count"], height, width)
    threads = torch.get_num_threads() if model.device.type == "cpu" else 1
    slices = sum(len(rows_of(part.stop - part.start, threads)) for part in parts)
    first, *others = samplings
    calls = first.calls(bool(asked.get("negative"))) + sum(sampling.calls() for sampling in others)
    return max(1, slices * calls)


class Worker:
    """One request after the other; cancellations are read meanwhile."""

    def __init__(self, source: BinaryIO, sink: BinaryIO, device: str) -> None:
        self.source, self.sink = source, sink
        self.models, self.trained = Models(find_device(device)), Trained()
        self.cancelled, self.arrived = set[str](), threading.Condition()
        self.waiting: list[tuple[dict[str, Any], list[bytes]] | None] = []
        self.writing = threading.Lock()

    def say(self, about: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
        with self.writing:
            self.sink.write(packed(about, parts))
            self.sink.flush()

    def listen(self) -> None:
        while (message := unpack(self.source)) is not None:
            with self.arrived:
                if "cancel" in message[0]:
                    self.cancelled.add(message[0]["cancel"])
                else:
                    self.waiting.append(message)
                self.arrived.notify()
        os._exit(0)  # the server is gone, and nobody waits for what is being sampled

    def run(self) -> None:
        threading.Thread(target=self.listen, daemon=True).start()
        self.say({"ready": True})
        while True:
            with self.arrived:
                self.arrived.wait_for(lambda: self.waiting)
                message = self.waiting.pop(0)
            assert message is not None
            self.answer(*message)

    def answer(self, asked: dict[str, Any], files: list[bytes]) -> None:
        job = asked["job"]
        try:
            self.say({"job": job, "total": 0, "done": 0})
            if asked["kind"] == "nearest":
                self.search(job, Path(asked["folder"]), files)
                return
            model = self.models.of(Path(asked["folder"]))
            require_affordable(model, asked)
            calls, total = 0, calls_of(model, asked)

            def step() -> None:
                nonlocal calls
                calls += 1
                if job in self.cancelled:
                    raise CancelledError
                if calls == 1 or calls % max(1, total // 100) == 0:
                    self.say({"job": job, "total": total, "done": min(calls, total)})

            with watched(model, step):
                for index, picture in enumerate(WORK[asked["kind"]](model, asked, files)):
                    self.say({"job": job, "index": index}, [require_sendable(picture)])
            self.say({"job": job, "end": "finished"})
        except CancelledError:
            self.say({"job": job, "end": "cancelled"})
        except UserError as error:
            self.end(asked, "refused", str(error))
        except Exception as error:
            traceback.print_exc()
            if out_of_memory(error):
                self.end(asked, "refused", "out of memory; ask for fewer or smaller pictures")
            else:
                self.end(asked, "failed", f"{type(error).__name__}: {error}")

    def end(self, asked: dict[str, Any], end: str, reason: str) -> None:
        folder = Path(asked["folder"])
        data = read_mapping(folder / "run.json").get("data")
        known = [folder.parent, *([Path(data).parent] if isinstance(data, str) else [])]
        reason = without_folders(reason, *known)
        self.say({"job": asked["job"], "end": end, "reason": reason})

    def search(self, job: str, folder: Path, files: list[bytes]) -> None:
        """The nearest training picture of each file; of one that cannot be decoded why, so that it hides no other.

        A note says `earlier` where the run has learned from others before, whose pixels it does not keep.
        """

        def progress(done: int, total: int) -> None:
            if job in self.cancelled:
                raise CancelledError
            if done == total or done % max(1, total // 100) == 0:
                self.say({"job": job, "total": total, "done": done})

        trained = self.trained.of(folder, progress)
        earlier = {"earlier": True} if (folder / SEEN_FILE).is_file() else {}
        for file in files:
            progress(0, 1)
            try:
                ((content, note),) = nearest_to([decoded(file, read_image)], trained)
            except UserError as error:
                content, note = b"", {UNREADABLE: str(error)}
            self.say({"job": job, "note": {**note, **earlier}}, [content])
        self.say({"job": job, "end": "finished"})


def work() -> None:
    """Whatever prints meanwhile prints to standard error: standard output is for messages."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Worker(sys.stdin.buffer, sink, sys.argv[1]).run()


if __name__ == "__main__":
    work()
