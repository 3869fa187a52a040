"""Thousands of recipes, and of folders of models, checkpoints and runs, of which one thing is wrong.

`make proofs` runs it, with STRANGERS=1000 for 3,000 recipes and 1,000 folders of models.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
from test_strangers import checkpoint_outcome, leg_saved, model_outcome, recipe_outcome, run_outcomes

__all__ = ["leg_saved"]  # the fixture
STRANGERS = int(os.environ.get("STRANGERS", "200"))
FIRST = 10_000 + 10**6 * int(os.environ.get("SEED", "0"))
"""Numbers from here on, which the suite does not try."""


def test_many_recipes(tmp_path):
    for number in range(FIRST, FIRST + 3 * STRANGERS):
        recipe_outcome(tmp_path / "recipe.toml", number)


@pytest.mark.parametrize("part", range(4))
def test_many_models(tmp_path, part):
    for number in range(FIRST + part, FIRST + STRANGERS, 4):
        model_outcome(tmp_path / "model", number)


def test_many_checkpoints(leg_saved, tmp_path):
    for number in range(FIRST, FIRST + STRANGERS):
        checkpoint_outcome(leg_saved, tmp_path / "checkpoints", number)


def test_many_runs(finished, tmp_path):
    for number in range(FIRST, FIRST + STRANGERS // 4):
        run_outcomes(finished, tmp_path, number)
