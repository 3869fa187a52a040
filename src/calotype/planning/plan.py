"""The plan of a run: its recipe, the reasons for it, and what it will cost."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from calotype.recipe import Recipe
from calotype.training.control import Phases, TimeBudget


class Choice(BaseModel):
    what: str
    value: str
    why: str
    by_user: bool = False


class Plan(BaseModel):
    """As stored in `plan.json`, but for the recipe, which is stored in `recipe.toml`."""

    recipe: Recipe = Field(exclude=True)
    device: str
    budget_seconds: float
    choices: list[Choice] = []
    predicted: dict[str, Any] = {}
    """Parameters, images, steps, seconds and bytes; most of them by leg."""
    phases: dict[str, Phases] = {}
    """Seconds of an image in each part of a leg."""
    flops: dict[str, float] = {}
    """Floating-point operations of an image in each leg, forward and backward; plans of version 0.1 have none."""
    paced: list[str] = []
    """Legs whose length follows the clock; the others see as many images as the user has set."""
    final_count: int = 16
    """Samples to make at the end."""
    level_crops: dict[str, int] = {}
    """Crops on which the augmentation level of each stage that enlarges is searched; 0: it stays as in the recipe."""
    notes: list[str] = []

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.recipe.kind, "size": self.recipe.size, **self.model_dump(mode="json")}

    @classmethod
    def from_json(cls, recipe: Recipe, about: dict[str, Any]) -> Plan:
        return cls.model_validate({**about, "recipe": recipe})

    def parameters(self, leg: str) -> int:
        """Of the network that a leg trains, without the critic."""
        return int(self.predicted["parameters"][network_of(leg)])

    @property
    def time_budget(self) -> TimeBudget:
        """What training needs of this plan."""
        seconds = self.predicted["seconds"]
        return TimeBudget(self.budget_seconds, seconds, self.phases, self.paced, self.level_crops)


def network_of(leg: str) -> str:
    """Which network a leg trains, by the leg that trains it first."""
    return leg.replace("exposure", "enlarge")
