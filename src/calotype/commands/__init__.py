"""What can be asked of Calotype. Whoever talks to people calls these functions, and they talk through a `Voice`."""

from calotype.commands.comparing import compare
from calotype.commands.evaluating import evaluate
from calotype.commands.inspecting import inspect
from calotype.commands.interpolating import interpolate
from calotype.commands.reading import write_data
from calotype.commands.sampling import Sheet, enlarge, sample
from calotype.commands.talk import Progress, Voice
from calotype.commands.training import Wish, plan, resume, train

__all__ = [
    "Progress", "Sheet", "Voice", "Wish", "compare", "enlarge", "evaluate", "inspect", "interpolate", "plan", "resume",
    "sample",
    "train", "write_data",
]  # fmt: skip
