"""Every test runs with the shapes checked, on one thread, from the same seed, and watched: see `auditing`."""

import atexit
import gc
import importlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import auditing
import jaxtyping
import pytest
import shapes
import torch

gc.disable()  # until all is imported, which is no garbage: see `pytest_collection_finish`
sys.dont_write_bytecode = False  # also where it was asked for: every process of a test would compile all of calotype
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("MKL_CBWR", "AUTO")  # as `calotype.cli.process.tune_process`, before the first product
os.environ["TORCHDYNAMO_DISABLE"] = (
    "1"  # torch's compiler cannot see through the checks of shapes: test_compiling is without
)
auditing.tests_run_here = True
sys.addaudithook(auditing.watch)


def has_room(folder):
    """Whether this folder in memory holds all that tests write, also the code of torch.compile, which is executed."""
    if not folder.is_dir():
        return False
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize > 2**32 and not about.f_flag & os.ST_NOEXEC


MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and has_room(MEMORY):  # on a disk tests wait for thousands of flushes: half of their time
    tempfile.tempdir = os.environ["TMPDIR"] = str(MEMORY)
SEEN = Path(tempfile.mkdtemp(prefix="calotype-seen-"), "seen")
atexit.register(shutil.rmtree, SEEN.parent, ignore_errors=True)
os.environ["CALOTYPE_SEEN"] = str(SEEN)  # of the processes that tests start: see `watched`
WATCHED = str(Path(__file__).parent / "watched")
os.environ["PYTHONPATH"] = os.pathsep.join([WATCHED, *filter(None, [os.environ.get("PYTHONPATH")])])
jaxtyping.jaxtyped = shapes.jaxtyped
jaxtyping.install_import_hook("calotype", "beartype.beartype")  # before anything of calotype is imported
importlib.import_module("torch._dynamo")  # the first optimizer would, after what is imported has been frozen
torch.set_num_threads(1)


LACKING = re.compile(r"(Skipped: )?(needs|could not import)\b")
"""How the reason of a skip begins where a package or a program is not installed."""


def failed_if_lacking(report):
    """Under `FAIL_ON_SKIP`, which `make proofs` sets, a test that cannot run for want of a package has failed."""
    if os.environ.get("FAIL_ON_SKIP") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if LACKING.match(reason):
            report.outcome, report.longrepr = "failed", f"{reason}; under FAIL_ON_SKIP this is a failure"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return failed_if_lacking((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return failed_if_lacking((yield))


def pytest_collection_finish():
    """What is imported stays: each part of a run collects garbage, and would look through all of it."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """What the tests of a file have imported and left stays, too."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are tiny: on a busy machine a second thread only waits, 10 times as long


@pytest.fixture(autouse=True)
def no_code_from_data():
    """In no test calotype unpickles, unmarshals or executes anything that it has read."""
    yield
    happened, auditing.seen[:] = list(auditing.seen), []
    if SEEN.exists():
        happened += SEEN.read_text().splitlines()
        SEEN.unlink()
    assert not happened


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run that has ended, on ten pictures of two classes. For reading only."""
    return finished_run(tmp_path_factory, "SETTINGS")


@pytest.fixture(scope="session")
def finished_cascade(tmp_path_factory):
    """The same in pixels. For reading only."""
    return finished_run(tmp_path_factory, "CASCADE")


@pytest.fixture(scope="session")
def finished_hybrid(tmp_path_factory):
    """The same in latents, then in pixels. For reading only."""
    return finished_run(tmp_path_factory, "HYBRID")


def finished_run(tmp_path_factory, settings):
    import small

    with pytest.MonkeyPatch.context() as patch:
        small.be_quick(patch)
        return small.train_small(tmp_path_factory.mktemp("finished"), settings=getattr(small, settings))
