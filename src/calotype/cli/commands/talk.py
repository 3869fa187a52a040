"""How a command talks to whoever called it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from calotype.planning import Plan
from calotype.training.reporter import Progress, Reporter, counting

__all__ = ["Console", "Progress", "counting"]


@runtime_checkable
class Console(Reporter, Protocol):
    """How a command talks: lines, bars for what takes long, and the plan."""

    def plan(self, plan: Plan) -> None: ...
