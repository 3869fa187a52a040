"""The training pictures of a run, for the nearest one beside each picture of its gallery."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.data.folder import Pictures
from calotype.data.images import cut, images_from_pil, pils_from_images
from calotype.data.remote import may_exist
from calotype.demo.reading import pictures_of_run
from calotype.evaluation.neighbours import Neighbours, neighbours_among
from calotype.run import PORTRAITS, Run
from calotype.settings import parse_recipe, read_recipe
from calotype.types import Progress, UserError


def is_at_hand(run: Run) -> bool:
    """Whether the pictures on which it was trained may still be there; without looking at them."""
    try:
        return run.state.data == PORTRAITS or may_exist(Path(run.state.data))
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_trained(run: Run, progress: Progress) -> Pictures:
    """The pictures on which a run was trained. Raises `UserError` where they are gone, or are others now."""
    size = parse_recipe(read_recipe(run.folder / "recipe.toml")).size
    if not is_at_hand(run):
        raise UserError("the pictures on which this run was trained are not where they were")
    source = None if run.state.data == PORTRAITS else Path(run.state.data)
    pictures = pictures_of_run(run, source, size, run.folder / "cache", progress)
    if not run.state.is_of(pictures):
        raise UserError("the pictures on which this run was trained have changed since")
    return pictures


class Trained:
    """The training pictures that were searched last, so that those of one run are read once."""

    def __init__(self) -> None:
        self.kept: tuple[tuple[str, str], Neighbours] | None = None

    def of(self, folder: Path, progress: Progress) -> Neighbours:
        """Raises `UserError`, and whatever `progress` raises."""
        run = Run.open(folder)
        key = str(folder), run.state.content
        if self.kept is None or self.kept[0] != key:
            self.kept = None  # two at once may be too much memory
            self.kept = key, neighbours_among(read_trained(run, progress), progress)
        return self.kept[1]


def nearest_to(pictures: Sequence[Image.Image], trained: Neighbours) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Of each picture the nearest training picture as PNG, its file, and the root mean squared difference, 0 to 2."""
    height, width = trained.pictures.pixels.shape[-2:]
    for picture in pictures:
        images = images_from_pil(cut(picture.convert("RGB"), width, height))
        nearest = trained.nearest(images)
        (beside,) = pils_from_images(trained.beside(images, nearest))
        beside.save(content := io.BytesIO(), "PNG")
        row = int(trained.rows[int(nearest.place[0])])
        name = Path(trained.pictures.file(row)).name  # without the folder: answers have no paths in them
        yield content.getvalue(), {"file": name, "apart": round(float(nearest.apart[0]), 4)}
