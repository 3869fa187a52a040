"""`calotype sample`, `calotype interpolate` and `calotype enlarge`: pictures of a trained model."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.cli.commands.following import Silent
from calotype.cli.commands.reading import check_empty, levels_in, new_folder, safe_name
from calotype.cli.console import Console
from calotype.cli.options import EnlargeOptions, InterpolateOptions, SampleOptions
from calotype.data.caption_files import MAX_BYTES, decode_text
from calotype.data.captions import as_prompts
from calotype.data.images import UnreadableError, grid, read_image, read_mask
from calotype.data.listing import list_pictures
from calotype.files import read_bytes, write_json, write_png, write_whole
from calotype.model import Model, load
from calotype.ranks import ALONE, Ranks, joined_ranks
from calotype.training.process import Reporter
from calotype.types import NULL_LABEL, UserError

DEFAULT_COUNT = 16
FRAME_MILLISECONDS = 100
ANIMATIONS = (".webp", ".gif")
PAIR_SEPARATORS = {",": "a comma", "|": "a bar |"}
"""Between two values; prompts contain commas."""


def sample(options: SampleOptions, console: Console) -> Path:
    """Writes pictures, and returns their folder. Of several ranks each makes its share, and the first writes all."""
    with joined_ranks(options.device, "sample") as ranks:
        return _sample(options, console if ranks.first else Silent(), ranks)


def _sample(options: SampleOptions, console: Console, ranks: Ranks) -> Path:
    with ranks.in_turn():
        if options.prompt is not None and options.prompts is not None:
            raise UserError("--prompt and --prompts both give prompts; use one of them")
        prompts = read_prompts(options.prompts) if options.prompts else as_prompts(options.prompt)
        count = (len(prompts) if options.prompts else DEFAULT_COUNT) if options.count is None else options.count
        if options.out is not None and ranks.first:
            check_empty(options.out)
    folder = write_samples(options, count, prompts, console, new=True, ranks=ranks)
    console.say(f"{count} pictures in {folder}; all of them: {folder / 'grid.png'}")
    return folder


def write_samples(
    options: SampleOptions, count: int, prompts: Sequence[str], reporter: Reporter, new: bool = False,
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Writes `count` pictures of prompts in turn, a PNG file each, a grid of them, and how they were made as JSON.

    Of several `ranks` the first alone writes, and names mistakes before another can.
    Raises `UserError` for a mask or a strength without a picture; with `new` it raises `FileExistsError` rather than
    write over a file.
    """
    with ranks.in_turn():
        if count < 1:
            raise UserError(f"count is {count}, but must be at least 1")
        for name in ("strength", "mask"):
            if options.picture is None and getattr(options, name) is not None:
                raise UserError(f"--{name} is for image-to-image, but there is no picture; add --from PICTURE")
        model = load(options.run, options.device)
        for warning in model.truncations(prompts, options.negative):
            reporter.say(warning)
        names = names_of(model, options, count, prompts)
        drawn = requested_pictures(model, options, count, prompts, ranks.share(count))
    out, pictures = options.out, list[Image.Image]()
    with reporter.bar("samples") as progress:
        for index, image in enumerate(on_first(ranks, drawn, count)):
            out = out or new_folder(options.run / "samples")
            name = (prompts[index % len(prompts)] if prompts else "") or names[index]
            write_png(out / f"{options.seed}-{index:04d}-{safe_name(name)}.png", image, new)
            pictures.append(image)
            progress(index + 1, count)
    if not ranks.first:
        return options.run
    assert out is not None
    write_png(out / "grid.png", grid(pictures, grid_columns(count)), new)
    write_json(out / "samples.json", {"labels": names, **record_of(model, options, count, prompts)}, new)
    return out


def names_of(model: Model, options: SampleOptions, count: int, prompts: Sequence[str]) -> list[str]:
    """The class of each picture; `picture` where it has none."""
    unlabelled = options.picture is not None and options.label is None
    labels = [NULL_LABEL] * count if unlabelled else model.labels(count, options.label, prompts)
    return [model.classes[index] if index != NULL_LABEL else "picture" for index in labels]


def requested_pictures(
    model: Model, options: SampleOptions, count: int, prompts: Sequence[str], rows: slice
) -> Iterator[Image.Image]:
    """Those `rows` of the pictures that the options ask for, each as soon as it is finished."""
    picture = read_image(options.picture, levels=levels_in(options.run)) if options.picture else None
    return model.draw(
        count, options.label, options.seed, read_size(options.size), rows=rows, picture=picture,
        strength=options.strength,
        mask=read_mask(options.mask) if options.mask else None,
        prompt=prompts, negative=options.negative, **options.changes(),
    )  # fmt: skip


def on_first(ranks: Ranks, own: Iterator[Image.Image], count: int) -> Iterator[Image.Image]:
    """All `count` pictures, which have one size, on the first rank: its own as soon as each is finished, then those of
    the others. There they are made, and none is returned."""
    pictures = list[Image.Image]()
    for picture in own:
        pictures.append(picture)
        if ranks.first:
            yield picture
    if ranks.alone:
        return
    empty = np.empty((0, 0, 0, 3), np.uint8)
    pixels = torch.from_numpy(np.stack([*map(np.asarray, pictures)]) if pictures else empty)
    everyone = ranks.collect(pixels, count)
    if ranks.first:
        yield from (Image.fromarray(picture.numpy()) for picture in everyone[len(pictures) :])


def record_of(model: Model, options: SampleOptions, count: int, prompts: Sequence[str]) -> dict[str, Any]:
    text = model.text(count, prompts, options.negative)
    samplings = model.settings(options.changes(), options.mask is not None)
    first, *above = (sampling.model_dump(mode="json") for sampling in samplings)
    prompted = {"prompts": text.prompts, "negative": options.negative} if text else {}
    given = {name: getattr(options, name) for name in ("size", "picture", "strength", "mask")}
    edit = {name: str(value) for name, value in given.items() if value is not None}
    return {"seed": options.seed, **prompted, "sampling": first, "enlarge": above, **edit}


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one per line. Raises `UserError` where it has none, or is no text file."""
    try:
        prompts = [line for line in decode_text(read_bytes(path, MAX_BYTES)).text.splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} is not a file of prompts, one per line: {reason}") from None
    if not prompts:
        raise UserError(f"{path} is empty; write prompts into it, one per line")
    return prompts


def read_size(text: str | None) -> tuple[int, int] | None:
    """`256x384`: width and height in pixels."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower())
    if sides is None:
        raise UserError(f"--size is {text!r}, but must be width x height in pixels, as in 256x384")
    return int(sides[1]), int(sides[2])


def grid_columns(count: int) -> int:
    """6 where that fills the rows, else about a square."""
    return 6 if count > 6 and count % 6 == 0 else max(1, round(count**0.5))


# -- Interpolation -----------------------------------------------------------------------------------------------------


def interpolate(options: InterpolateOptions, console: Console) -> Path:
    """Writes an animation between two pictures, or a strip where the file ends in .png, and returns the file."""
    if (kind := options.out.suffix.lower()) not in (*ANIMATIONS, ".png"):
        raise UserError(f"--out {options.out} must end in .webp or .gif (an animation) or .png (a strip)")
    if os.path.lexists(options.out):
        raise UserError(f"--out {options.out} already exists and is not overwritten; choose another name")
    seeds = pair("--seeds", options.seeds)
    if not all(re.fullmatch(r"-?\d{1,18}", seed) for seed in seeds):
        raise UserError(f"--seeds is {options.seeds!r}, but must be two whole numbers, as in --seeds 1,2")
    labels = pair("--labels", options.labels) if options.labels else None
    prompts = None if options.prompts is None else pair("--prompts", options.prompts, "|")
    model = load(options.run, options.device)
    for warning in model.truncations(prompts or options.prompt):
        console.say(warning)
    with console.bar("frames"), warnings.catch_warnings(action="ignore", category=UserWarning):
        pictures = model.interpolate(
            (int(seeds[0]), int(seeds[1])), options.frames, labels, read_size(options.size),
            prompts=prompts, prompt=options.prompt, **options.changes(),
        )  # fmt: skip
    write_whole(options.out, animated(pictures, kind), new=True)
    console.say(f"{options.frames} frames in {options.out}")
    return options.out


def animated(pictures: list[Image.Image], suffix: str) -> bytes:
    """The content of the file, which repeats for ever. WebP is lossless; GIF has 256 colours a frame."""
    file = io.BytesIO()
    if suffix == ".png":
        grid(pictures, len(pictures)).save(file, "PNG")
    else:
        settings: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0, "lossless": True}
        pictures[0].save(file, suffix[1:].upper(), duration=FRAME_MILLISECONDS, **settings)
    return file.getvalue()


def pair(option: str, text: str, separator: str = ",") -> tuple[str, str]:
    first, found, second = (part.strip() for part in text.partition(separator))
    if not (first and found and second) or separator in second:
        raise UserError(f"{option} is {text!r}, but must be two, with {PAIR_SEPARATORS[separator]} between them")
    return first, second


# -- Enlarging ---------------------------------------------------------------------------------------------------------


def enlarge(options: EnlargeOptions, console: Console) -> int:
    """Writes every picture enlarged, as PNG, and returns how many; unreadable pictures are named and left out."""
    model, paths, levels = load(options.run, options.device), list_pictures(options.pictures), levels_in(options.run)
    model.enlarging_index(options.size)
    model.labels(1, options.label)
    model.text(1, options.prompt)
    for warning in model.truncations(options.prompt):
        console.say(warning)
    check_empty(options.out)
    written = 0
    with console.bar("enlarge") as progress, warnings.catch_warnings(action="ignore", category=UserWarning):
        for index, path in enumerate(paths):
            try:
                asked = options.size, options.label, options.seed
                enlarged = model.enlarge(read_image(path, levels=levels), *asked, prompt=options.prompt)
                write_png(options.out / f"{index:04d}-{safe_name(path.stem)}.png", enlarged, new=True)
                written += 1
            except UnreadableError as error:
                console.say(str(error))
            progress(index + 1, len(paths), path.name)
    if not written:
        raise UserError(f"no picture in {options.pictures} could be read, so none was enlarged; see the reasons above")
    console.say(f"{written} pictures in {options.out}")
    return written
