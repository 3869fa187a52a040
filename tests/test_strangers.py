"""Settings and folders that strangers send: whatever is wrong in them is one line that names it, at once.

`strangers` makes them from numbers; `make proofs` tries more of them.
"""

import os
import shutil
import time
import warnings
from pathlib import Path

import pytest
import strangers
from small import Keeper, second_leg

from calotype import load
from calotype.cli.commands import list_runs
from calotype.cli.options import RunsOptions
from calotype.data.split import split_rule
from calotype.planning import Plan
from calotype.report import write_report
from calotype.report.folder import settings_of
from calotype.run import Run
from calotype.settings import parse_recipe, read_overrides, read_recipe
from calotype.training import checkpoint
from calotype.training.fitting import read_constants
from calotype.types import UserError

MODELS = [Path(__file__).parent / "golden" / name for name in ("labels", "captions", "cascade")]
SECONDS = 5.0


def outcome(work, names=""):
    """The line of its `UserError`, which has `names` in it; empty where nothing was wrong. It is soon there."""
    began, message = time.process_time(), ""
    with warnings.catch_warnings(action="ignore"):
        try:
            work()
        except UserError as error:
            message = str(error)
    assert "\n" not in message and len(message) < 800, message
    assert not message or names in message, message
    assert time.process_time() - began < SECONDS, message
    return message


def recipe_outcome(file, number):
    """Of a recipe file, or of `--set` where the number is a multiple of 3."""
    if number % 3 == 0:
        return outcome(lambda: parse_recipe(read_overrides([strangers.override(number)])))
    file.write_bytes(strangers.recipe_text(number).encode("utf-8", "surrogatepass"))
    return outcome(lambda: parse_recipe(read_recipe(file)), "recipe")


def model_outcome(place, number):
    folder = strangers.copied_model(MODELS[number % len(MODELS)], place)
    strangers.mutate(folder, number)
    return outcome(lambda: load(folder, "cpu").sample(1, steps=1), str(folder))


@pytest.fixture(scope="module")
def leg_saved(tmp_path_factory):
    folder, leg = tmp_path_factory.mktemp("checkpoints"), second_leg()
    next(leg.steps())
    checkpoint.save(folder, "denoiser", leg.saved, leg.progress)
    return folder, leg


def checkpoint_outcome(leg_saved, place, number):
    folder, leg = leg_saved
    copied = strangers.copied_model(folder, place)
    (saved,) = copied.iterdir()
    strangers.mutate(saved, number)
    return outcome(lambda: checkpoint.restore(copied, "denoiser", leg.saved, leg.progress), saved.name)


def run_outcomes(run, place, number):
    """Of all that is read of a run: by `resume`, by `report`, and by `runs`."""
    folder = strangers.copied_model(run, Path(place) / "run")
    strangers.mutate_run(folder, number)
    readers = {
        "state": lambda: Run.open(folder),
        "recipe": lambda: parse_recipe(read_recipe(folder / "recipe.toml")),
        "plan": lambda: Plan.read(folder / "plan.json", parse_recipe(read_recipe(run / "recipe.toml"))),
        "split": lambda: split_rule(folder),
        "constants": lambda: read_constants(folder / "constants" / "denoiser"),
    }
    found = [outcome(read, str(folder)) for read in readers.values()]
    assert not outcome(lambda: write_report(folder)) and (folder / "report.html").is_file()
    no_list = outcome(lambda: list_runs(RunsOptions(folder.parent), Keeper()))
    assert bool(no_list) == (not os.path.lexists(folder / "run.json")), no_list
    return found


def test_recipes_and_settings_of_all_kinds(tmp_path):
    messages = [recipe_outcome(tmp_path / "recipe.toml", number) for number in range(400)]
    assert sum(map(bool, messages)) > 300


def test_models_of_all_kinds(tmp_path):
    messages = [model_outcome(tmp_path / "model", number) for number in range(100)]
    assert sum(map(bool, messages)) > 80


def test_checkpoints_of_all_kinds(leg_saved, tmp_path):
    messages = [checkpoint_outcome(leg_saved, tmp_path / "checkpoints", number) for number in range(60)]
    assert sum(map(bool, messages)) > 40


def test_runs_of_all_kinds(finished, tmp_path):
    messages = [any(run_outcomes(finished, tmp_path, number)) for number in range(25)]
    assert sum(messages) > 8


# -- Single cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "sampling.steps=1000000000", "autoencoder.network.channels=1000000", "denoiser.batch=100000000",
        "size=1000000", "denoiser.learn.learning_rate=inf", "autoencoder.learn.learning_rate=nan",
        "denoiser.batch=true",
        "denoiser.batch=-1", "seed=100000000000000000000", "autoencoder.losses.kl=1e300",
        "stages=[1,2,4,8,16,32,64,128,256]",
        "denoiser.backbone.depth=100000", "enlarge.64.exposure.pictures=1000000000", "denoiser.images=1e300",
        f"seed={'9' * 5000}", f"stages={'[' * 5000}", f"{'a.' * 5000}a=1", "denoiser.schedule.std=-inf",
    ],
)  # fmt: skip
def test_a_number_beyond_all_bounds_is_refused_with_its_key(override):
    message = outcome(lambda: parse_recipe(read_overrides([override])), "--set")
    assert override.partition("=")[0].replace("a." * 5000, "") in message


@pytest.mark.parametrize(
    ("steps", "size"),
    [("sampling = {steps = 10000}", 8192), ("denoiser = {batch = 65536, images = 10000000000000}", 1)],
)
def test_bounds_are_generous(tmp_path, steps, size):
    (tmp_path / "recipe.toml").write_text(f"size = {size}\n{steps}\n")
    assert parse_recipe(read_recipe(tmp_path / "recipe.toml")).size == size


def test_a_recipe_of_thousands_of_brackets_or_digits_names_its_key(tmp_path):
    for value in ("[" * 5000, "1" * 5000, "[\n" * 5000):
        (tmp_path / "recipe.toml").write_text(f"seed = 1\nstages = {value}")
        assert "stages" in outcome(lambda: read_recipe(tmp_path / "recipe.toml"), "recipe.toml")
        assert settings_of(Run(tmp_path)) == {}
    (tmp_path / "recipe.toml").write_text("seed = 1\n[denoiser]\nbatch = 2\nbatch = 3")
    assert "batch = 3" in outcome(lambda: read_recipe(tmp_path / "recipe.toml"), "recipe.toml")


def test_a_recipe_that_is_a_pipe_or_far_too_long_is_refused(tmp_path):
    strangers.os.mkfifo(tmp_path / "pipe.toml")
    assert "is a pipe" in outcome(lambda: read_recipe(tmp_path / "pipe.toml"), "pipe.toml")
    (tmp_path / "long.toml").write_text("#" * 2**21)
    assert "more than" in outcome(lambda: read_recipe(tmp_path / "long.toml"), "long.toml")


def test_a_manifest_vouches_for_all_that_is_read(tmp_path):
    """One that lists model.json alone counted as whole."""
    folder = strangers.copied_model(MODELS[0], tmp_path / "model")
    for file in folder.glob("*.safetensors"):
        shutil.copy(file, tmp_path / file.name)
        file.unlink()
    strangers.seal(folder)
    for file in tmp_path.glob("*.safetensors"):
        shutil.copy(file, folder / file.name)
    assert "not listed" in outcome(lambda: load(folder, "cpu"), str(folder))
