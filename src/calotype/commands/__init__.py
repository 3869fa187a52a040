"""What can be asked of Calotype. Whoever talks to people calls these functions, and they talk through a `Voice`."""

from calotype.commands.checking import check_data
from calotype.commands.comparing import compare
from calotype.commands.evaluating import evaluate
from calotype.commands.inspecting import inspect
from calotype.commands.interpolating import interpolate
from calotype.commands.reading import write_data
from calotype.commands.sampling import Sheet, enlarge, read_prompts, sample
from calotype.commands.showing import report, runs
from calotype.commands.sweeping import sweep_run as sweep
from calotype.commands.talk import Progress, Voice
from calotype.commands.training import Wish, plan, resume, train
from calotype.evaluate.sweep import Grid

__all__ = [
    "Grid", "Progress", "Sheet", "Voice", "Wish", "check_data", "compare", "enlarge", "evaluate", "inspect",
    "interpolate", "plan", "read_prompts", "report", "resume", "runs", "sample", "sweep", "train", "write_data",
]  # fmt: skip
