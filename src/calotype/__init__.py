"""Calotype trains an image generator on a folder of your own pictures.

model = calotype.load("runs/portraits")
pictures = model.sample(count=4, label="micah", seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Model", "UserError", "__version__", "load"]

if TYPE_CHECKING:
    from calotype.model import Model, load
    from calotype.types import UserError


def __getattr__(name: str) -> Any:
    """Loads torch only when something that needs it is asked for, so that the command line starts at once."""
    import importlib

    rooms = {"Model": "calotype.model", "load": "calotype.model", "UserError": "calotype.types"}
    if name not in rooms:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    return getattr(importlib.import_module(rooms[name]), name)
