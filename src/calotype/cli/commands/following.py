"""Ranks that are not the first: they train what it has planned, from what it has written, and write nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from calotype.cli.commands.reading import read_of_run
from calotype.cli.commands.resuming import is_same, place_of_pictures
from calotype.data.folder import Pictures
from calotype.data.images import shown
from calotype.machine import find_device
from calotype.planning import Plan
from calotype.ranks import Ranks
from calotype.recipe import Recipe
from calotype.run import PORTRAITS, Run
from calotype.settings import parse_recipe, read_recipe
from calotype.training.examples import without_unread_captions
from calotype.training.pipeline import Pipeline
from calotype.training.process import ProgressBar, stoppable
from calotype.types import UserError


class Silent:
    """A console that shows nothing: the first rank does."""

    def say(self, text: str) -> None: ...

    def bar(self, step: str) -> AbstractContextManager[ProgressBar]:
        return nullcontext(lambda done, total, note="": None)

    def plan(self, plan: Plan) -> None: ...


def lead(ranks: Ranks, run: Run) -> None:
    """Tells the other ranks which run it is, and waits until they have opened it."""
    ranks.say(lambda: str(run.folder.resolve()))
    ranks.meet()


def follow(ranks: Ranks, device: str, force: bool) -> Path:
    """Trains the run of the first rank with it, to the end of its last leg.

    It must see the folder of the run and that of the pictures. Raises `UserError` where the pictures are others.
    """
    folder = Path(ranks.say(lambda: ""))
    run = Run.open(folder)
    run.writes = False
    ranks.meet()
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    pictures = read_as_first(run, recipe)
    run.state.constants = {}  # those of the folder count, which the first has checked
    if run.state.threads is not None:
        torch.set_num_threads(run.state.threads)
    plan, place = Plan.read(folder / "plan.json", recipe), find_device(device)
    with stoppable() as stop:
        Pipeline(run, recipe, plan, pictures, place, Silent(), stop, force, ranks).train()
    return folder


def read_as_first(run: Run, recipe: Recipe) -> Pictures:
    source = place_of_pictures(run, None)
    pictures = read_of_run(run, source, recipe.size, run.folder / "cache", Silent())
    if not is_same(run, pictures):
        raise UserError(
            f"the pictures in {shown(source or PORTRAITS)} are not those that the first rank sees there; every rank "
            f"must see the same folder"
        )
    return without_unread_captions(recipe, pictures)
