"""The report of a run with a million logged steps is small, and written in seconds and constant memory.

`make proofs` runs it, with -s for the figures. A process of its own has none of the checks of shapes that tests have.
"""

import resource
import subprocess
import sys

from calotype.run import Run, RunState

MILLION, SPIKE = 10**6, 777_777
LINE = (
    '{"event": "step", "leg": "denoiser", "images_seen": %d, "progress": %f, "seconds": %f, '
    '"terms": {"denoiser.loss": %f}, "norms": {"denoiser": 1.0}, "images_a_second": 32.0}\n'
)
REPORT = """
import resource, sys
from pathlib import Path
from calotype.report.page import write_report
write_report(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def reported(folder, count):
    """Size of the page, seconds of processor time, and peak memory in MB."""
    folder.mkdir()
    Run(folder, RunState(name="run", legs={"denoiser": "training"})).save()
    with (folder / "log.jsonl").open("w") as file:
        file.writelines(
            LINE % (32 * at, at / count, 0.1 * at, 100.0 if at == SPIKE else 1.0) for at in range(1, count + 1)
        )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", REPORT, folder], capture_output=True, text=True, check=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return (folder / "report.html").stat().st_size, seconds, int(done.stdout) / 1024


def test_a_million_steps_cost_seconds_and_no_memory(tmp_path):
    few, many = reported(tmp_path / "few", 5_000), reported(tmp_path / "many", MILLION)
    for name, (size, seconds, memory) in (("5,000", few), ("1,000,000", many)):
        print(f"{name} steps: {size:,} bytes, {seconds:.1f} s of processor time, {memory:,.0f} MB")
    assert many[0] < 200_000 and many[1] < 120 and many[2] < few[2] + 100
