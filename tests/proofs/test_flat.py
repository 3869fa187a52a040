"""Thousands of steps take no more memory and no more open files than the first hundreds.

`make proofs` runs it, with -s for the figures and STEPS=8000 for as many steps. Saving, logging, previews and
validation are part of it.
"""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import CASCADE, SETTINGS, write_pictures
from test_cli import python

from calotype.run import Run
from calotype.tables import merge

STEPS = int(os.environ.get("STEPS", "2000"))
MOST_GROWTH = 4 * 2**20
"""Bytes of resident memory; a tensor of 256 values that is kept at each of 8,000 steps would be 8 MB."""
LONGER = {"images": 4 * STEPS}
KINDS = {
    "latent": merge(SETTINGS, {"denoiser": LONGER}),
    "autoencoder": merge(SETTINGS, {"autoencoder": LONGER}),
    "cascade": merge(CASCADE, {"enlarge": {"16": LONGER}}),
}
SCRIPT = """
import pytest
from pathlib import Path
import small
from calotype.cli.commands import train
from calotype.training import leg
folder, run, settings = ARGUMENTS
patch = pytest.MonkeyPatch()
small.be_quick(patch)
patch.setattr(leg, "SAVE_SECONDS", 2.0)
train(small.request(Path(folder), Path(run), settings=settings), small.Keeper())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_open_files_are_flat(tmp_path, kind):
    arguments = str(write_pictures(tmp_path / "pictures")), str(tmp_path / "run"), KINDS[kind]
    process, seen = python(f"ARGUMENTS = {arguments!r}", SCRIPT), []
    place = Path("/proc") / str(process.pid)
    while process.poll() is None:
        try:
            resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            seen.append((steps_of(tmp_path / "run", kind), resident, len(list((place / "fd").iterdir()))))
        except OSError:  # it has just ended
            break
        time.sleep(0.1)
    wrong = process.communicate()[1]
    assert process.returncode == 0, wrong
    early = [row for row in seen if STEPS / 8 < row[0] <= STEPS / 4]
    late = [row for row in seen if STEPS * 7 / 8 < row[0] < STEPS]
    assert len(early) > 5 and len(late) > 5
    (memory, files), (memory_late, files_late) = (
        [max(row[at] for row in rows) for at in (1, 2)] for rows in (early, late)
    )
    print(f"{kind}: {STEPS:,} steps, {memory / 1e6:.1f} MB and {memory_late / 1e6:.1f}, {files} files and {files_late}")
    assert memory_late - memory < MOST_GROWTH and files_late <= files


def steps_of(run, kind):
    """How many steps its long leg has made, by its log."""
    leg = {"latent": "denoiser", "autoencoder": "autoencoder", "cascade": "enlarge-16"}[kind]
    events = Run.open(run).events if (run / "log.jsonl").exists() else []
    return max(
        (event["images_seen"] // 4 for event in events if event.get("leg") == leg and "images_seen" in event), default=0
    )
