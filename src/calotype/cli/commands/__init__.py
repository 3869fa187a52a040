"""The commands as functions, which report through a `Console`."""

from calotype.cli.commands.checking import check_data
from calotype.cli.commands.comparing import compare
from calotype.cli.commands.evaluating import evaluate
from calotype.cli.commands.inspecting import inspect
from calotype.cli.commands.interpolating import interpolate
from calotype.cli.commands.reading import write_data
from calotype.cli.commands.sampling import SampleRequest, enlarge, read_prompts, sample
from calotype.cli.commands.showing import report, runs
from calotype.cli.commands.sweeping import sweep_run as sweep
from calotype.cli.commands.training import TrainRequest, plan, resume, train
from calotype.cli.console import Console
from calotype.evaluation.sweep import Grid
from calotype.training.process import Bar

__all__ = [
    "Bar",
    "Console",
    "Grid",
    "SampleRequest",
    "TrainRequest",
    "check_data",
    "compare",
    "enlarge",
    "evaluate",
    "inspect",
    "interpolate",
    "plan",
    "read_prompts",
    "report",
    "resume",
    "runs",
    "sample",
    "sweep",
    "train",
    "write_data",
]  # fmt: skip
