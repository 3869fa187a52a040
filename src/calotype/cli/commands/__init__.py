"""The function that does the work of each command, and reports through a `Console`."""

from collections.abc import Callable
from typing import Any

from calotype.cli import options
from calotype.cli.commands.checking import check_data
from calotype.cli.commands.comparing import compare_runs
from calotype.cli.commands.evaluating import evaluate
from calotype.cli.commands.exporting import export, push_folder
from calotype.cli.commands.inspecting import inspect
from calotype.cli.commands.previewing import preview
from calotype.cli.commands.reading import export_portraits, pack_shards
from calotype.cli.commands.sampling import enlarge, interpolate, sample
from calotype.cli.commands.selftesting import selftest
from calotype.cli.commands.serving import serve
from calotype.cli.commands.showing import list_runs, report
from calotype.cli.commands.sweeping import sweep_run
from calotype.cli.commands.training import plan, resume, train
from calotype.cli.console import Console

FUNCTIONS: dict[type, Callable[[Any, Console], object]] = {
    options.TrainOptions: train,
    options.PlanOptions: plan,
    options.DemoOptions: train,
    options.ResumeOptions: resume,
    options.PreviewOptions: preview,
    options.SampleOptions: sample,
    options.InterpolateOptions: interpolate,
    options.EnlargeOptions: enlarge,
    options.ExportOptions: export,
    options.PushOptions: push_folder,
    options.EvaluateOptions: evaluate,
    options.CompareOptions: compare_runs,
    options.SweepOptions: sweep_run,
    options.RunsOptions: list_runs,
    options.ServeOptions: serve,
    options.ReportOptions: report,
    options.InspectOptions: inspect,
    options.SelftestOptions: selftest,
    options.PortraitsOptions: export_portraits,
    options.CheckOptions: check_data,
    options.ShardsOptions: pack_shards,
}
"""By the class of its options."""
