"""What happens to a run when processes are started at once, killed, hung up on, or no longer read from."""

import contextlib
import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import Keeper, be_quick, request, second_leg, write_pictures
from test_cli import SMALL, WHILE_IT_LEARNS, folder, python, resumed, tell, training
from test_train import interrupted_at, products, run_in, silent

from calotype import files
from calotype.cli import commands
from calotype.cli.commands.reading import MAX_BYTES_OF_NAME, name_that_fits
from calotype.cli.options import ResumeOptions
from calotype.cli.process import LastingStream, compiled_folder
from calotype.data.hashes import FEWEST_KEPT, hash_files, hashes_file
from calotype.files import is_whole, read_json, whole_folder, write_json
from calotype.run import Run
from calotype.settings import read_recipe
from calotype.training import checkpoint, pipeline
from calotype.training import leg as legs
from calotype.training.leg import train_leg
from calotype.training.process import (
    HOST,
    STOPPING,
    Interrupted,
    Stop,
    StoppableReporter,
    clean_up,
    holder_of,
    locked,
    owner_of,
    stoppable,
)
from calotype.types import UserError

__all__ = ["folder", "tell"]
GONE = 2**22 - 1
"""A number that no process has."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


def events(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def within_seconds(most):
    """Ends what waits for longer."""

    def end(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(most)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- Damaged checkpoints -----------------------------------------------------------------------------------------------


def stopped_run(folder, patch):
    """A run that was stopped in its first leg, with checkpoints after 8 and 12 images."""
    patch.setattr(legs, "SAVE_SECONDS", 0.0)
    interrupted_at(patch, [("autoencoder", 8)])
    with pytest.raises(Interrupted):
        commands.train(request(folder, folder.parent / "run"), Keeper())
    return folder.parent / "run"


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """For reading only."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        return stopped_run(write_pictures(tmp_path_factory.mktemp("stopped") / "pictures"), patch)


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return shutil.copytree(stopped_once, tmp_path / "run")


def test_a_damaged_checkpoint_is_named_on_the_console_and_in_the_log(tell, stopped, finished):
    (stopped / "checkpoints" / "autoencoder-0000000012" / "critic.safetensors").write_bytes(b"half")
    code, printed, wrong = tell("resume", stopped)
    assert (code, wrong) == (0, [])
    warning = "checkpoint autoencoder-0000000012 is damaged (critic.safetensors has 4 bytes instead of "
    notes = [event["text"] for event in events(stopped) if event["event"] == "note"]
    for lines in (printed, notes):
        (line,) = (line for line in lines if warning in line)
        assert line.endswith("using autoencoder-0000000008 instead")
    assert "autoencoder: went on from autoencoder-0000000008" in notes
    assert products(stopped) == products(finished)


def test_where_all_checkpoints_are_damaged_resuming_is_an_error_that_deletes_nothing(tell, stopped):
    kept = sorted((stopped / "checkpoints").iterdir())
    assert [path.name[-2:] for path in kept] == ["08", "12"]
    for path in kept:
        (path / "state.json").write_text("{")
    before = {path: path.read_bytes() for path in (stopped / "checkpoints").rglob("*") if path.is_file()}
    code, _, wrong = tell("resume", stopped)
    assert code == 2 and len(wrong) == 1
    assert all(f"{path.name} is damaged (state.json has 1 bytes instead of " in wrong[0] for path in kept)
    assert before == {path: path.read_bytes() for path in (stopped / "checkpoints").rglob("*") if path.is_file()}


def test_a_leg_hands_its_warnings_to_whoever_trains_it(tmp_path):
    run, leg, stop, warnings = run_in(tmp_path / "run"), second_leg(), Stop(), []
    stop.set()
    with pytest.raises(Interrupted):
        train_leg(run, leg, stop, silent, warnings.append)
    assert warnings == []
    (run.folder / "checkpoints" / "denoiser-0000000004" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"denoiser-0000000004 is damaged \(manifest.json is missing\)"):
        train_leg(run, second_leg(), stop, silent, warnings.append)
    assert read_json(run.folder / "run.json")["legs"]["denoiser"] == "training"


# -- A full disk -------------------------------------------------------------------------------------------------------


def test_a_disk_that_stays_full_is_one_line_about_what_came_first(tell, folder, monkeypatch, finished):
    """Then neither the report nor the state of the run can be written; the checkpoints are whole."""
    run, real, calls = folder.parent / "run", os.fsync, []

    def fsync(descriptor):
        if calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    def write_tensors(path, tensors):
        if path.parent.name.startswith(".denoiser-0000000012"):
            calls.append(path)
        files.write_tensors(path, tensors)

    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(checkpoint, "write_tensors", write_tensors)
        code, _, wrong = tell("train", folder, "--out", run, *SMALL)
    assert calls and code == 2 and len(wrong) == 1
    assert wrong[0].startswith("calotype: the next checkpoint of the denoiser takes ")
    assert wrong[0].endswith(f" MB more, then go on with: calotype resume {run}")
    kept = sorted(path.name for path in (run / "checkpoints").glob("denoiser-*"))
    assert kept == ["denoiser-0000000004", "denoiser-0000000008"]
    assert all(is_whole(run / "checkpoints" / name) for name in kept) and not list(run.rglob(".*.tmp"))
    assert tell("resume", run)[0] == 0 and products(run) == products(finished)


# -- A folder that goes ------------------------------------------------------------------------------------------------


def remove_run(run):
    shutil.rmtree(run)


def move_run(run):
    run.rename(run.with_name("elsewhere"))


def replace_run(run):
    """By that of another process, which has its lock already."""
    shutil.rmtree(run)
    run.mkdir()
    (run / "lock").write_text(f"{os.getppid()} {HOST}")


@pytest.mark.parametrize("leg", ["autoencoder", "denoiser"])
@pytest.mark.parametrize("change", [remove_run, move_run, replace_run])
def test_a_run_whose_folder_goes_stops_in_one_line_and_writes_into_no_other(tell, folder, monkeypatch, change, leg):
    run, real = folder.parent / "run", pipeline.train_leg

    def train_leg(of, trained, *more):
        if trained.name == leg:
            change(run)
        return real(of, trained, *more)

    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "train_leg", train_leg)
    code, _, wrong = tell("train", folder, "--out", run, *SMALL)
    assert code == 2 and len(wrong) == 1 and f"{run}, or its lock, was removed, moved or replaced" in wrong[0]
    left = [file.name for file in run.rglob("*")]
    assert left == (["lock"] if change is replace_run else [])
    if change is move_run:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "train_leg", real)
            assert tell("resume", run.with_name("elsewhere"))[0] == 0


def test_a_folder_that_goes_while_the_run_is_planned_is_named(tell, folder, monkeypatch):
    run, real = folder.parent / "run", commands.training.make_plan

    def make_plan(*given):
        shutil.rmtree(run)
        return real(*given)

    monkeypatch.setattr(commands.training, "make_plan", make_plan)
    code, _, wrong = tell("train", folder, "--out", run, *SMALL)
    assert code == 2 and len(wrong) == 1 and f"{run}, or its lock, was removed" in wrong[0] and not run.exists()


# -- What a killed process leaves --------------------------------------------------------------------------------------


def test_who_takes_the_lock_removes_what_killed_processes_had_begun(tmp_path):
    run = run_in(tmp_path / "run")
    gone, alive = f".model.{GONE}.tmp", f".sweep.json.{os.getpid()}.tmp"
    for path in (run.folder / gone, run.folder / "checkpoints" / f".denoiser-0000000099.{GONE}.tmp"):
        path.mkdir(parents=True)
        (path / "weights").touch()
    for inner in ("cache", "constants"):
        (run.folder / inner).mkdir()
        (run.folder / inner / f".pixels.npy.{GONE}.tmp").touch()
    (run.folder / alive).touch()
    (run.folder / ".hidden.tmp").touch()  # the user's
    with locked(run.folder):
        left = {path.name for path in run.folder.rglob("*")}
    assert left == {"run.json", "lock", "checkpoints", "cache", "constants", alive, ".hidden.tmp"}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_gets_its_name_back_if_its_process_was_killed_while_it_was_replaced(tmp_path, replaced):
    with whole_folder(tmp_path / f".model.{GONE}.old") as path:
        write_json(path / "model.json", "old")
    if replaced:
        with whole_folder(tmp_path / "model") as path:
            write_json(path / "model.json", "new")
    clean_up(tmp_path)
    assert is_whole(tmp_path / "model") and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert read_json(tmp_path / "model" / "model.json") == ("new" if replaced else "old")


# -- The lock ----------------------------------------------------------------------------------------------------------

CONTEND = """
import os, random, sys, time
from pathlib import Path
from calotype.training.process import locked
from calotype.types import UserError
folder, inside, start = Path({folder!r}), Path({folder!r}) / 'inside', time.time() + 0.5
def switch(*call):
    if random.random() < 0.03: time.sleep(0.0003)
def contend():
    while time.time() < start: pass
    random.seed(os.getpid())
    sys.setprofile(switch)
    for attempt in range(60):
        try:
            with locked(folder):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                time.sleep(0.0002)
                os.unlink(inside)
                (folder / 'won').touch()
        except UserError as error:
            assert 'in use by ' in str(error)
    os._exit(0)
children = []
for _ in range(4):
    if not (child := os.fork()):
        try: contend()
        except BaseException as error: print(repr(error), file=sys.stderr)
        os._exit(1)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_of_processes_that_take_the_lock_at_once_exactly_one_has_it(tmp_path):
    """Four processes, 60 attempts each, that are put to sleep now and then between any two calls of functions.

    Whoever is inside makes a file that must not be there yet.
    """
    run = run_in(tmp_path / "run")
    printed, wrong = python(CONTEND.format(folder=str(run.folder))).communicate(timeout=60)
    assert wrong == "" and printed == "[0, 0, 0, 0]\n" and (run.folder / "won").exists()
    assert owner_of(run.folder) is None and not (run.folder / "lock").exists()


HOLD = """
import sys, time
from pathlib import Path
from calotype.training.process import locked
with locked(Path({folder!r})):
    print('locked', flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_does_not_block_and_that_of_a_living_one_names_it(tmp_path):
    run = run_in(tmp_path / "run")
    process = python(HOLD.format(folder=str(run.folder)))
    assert process.stdout.readline() == "locked\n"
    assert owner_of(run.folder) == process.pid
    with pytest.raises(UserError, match=f"in use by process {process.pid} on {HOST};"), locked(run.folder):
        pass
    process.kill()
    process.communicate()
    assert (run.folder / "lock").exists() and owner_of(run.folder) is None
    with locked(run.folder):
        assert owner_of(run.folder) == os.getpid()
    assert not (run.folder / "lock").exists()


def test_only_a_process_that_holds_the_lock_is_its_holder(tmp_path):
    """Whoever can write the file could name any process in it, so that the page would stop that one."""
    run = run_in(tmp_path / "run")
    (run.folder / "lock").write_text(f"{os.getpid()} {HOST}")
    assert owner_of(run.folder) == os.getpid() and holder_of(run.folder) is None
    (run.folder / "lock").unlink()
    process = python(HOLD.format(folder=str(run.folder)))
    assert process.stdout.readline() == "locked\n"
    assert holder_of(run.folder).pid == process.pid
    (run.folder / "lock").write_text(f"{os.getpid()} {HOST}")  # it is locked, but not by us
    assert holder_of(run.folder) is None
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["lock", "log.jsonl"])
def test_what_a_run_of_a_stranger_links_to_is_neither_emptied_nor_written_to(tmp_path, name):
    run, other = run_in(tmp_path / "run"), tmp_path / "precious"
    other.write_text("mine\n")
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name).symlink_to(other)
    with pytest.raises(UserError, match=f"{name} is a link, expected a regular file"), locked(run.folder):
        run.log("started")
    assert other.read_text() == "mine\n" and (run.folder / name).is_symlink()


@pytest.mark.parametrize("name", ["lock", "log.jsonl"])
def test_a_pipe_in_a_run_of_a_stranger_is_refused_and_not_waited_for(tmp_path, name):
    run = run_in(tmp_path / "run")
    (run.folder / name).unlink(missing_ok=True)
    os.mkfifo(run.folder / name)
    with within_seconds(5), pytest.raises(UserError, match=f"{name} is a pipe"), locked(run.folder):
        run.log("started")


def test_a_finished_run_is_cleaned_up_too(finished, tmp_path):
    """Its process was killed in its last write, or a sweep while it replaced the model."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / f".run.json.{GONE}.tmp").touch()
    (run / "model").rename(run / f".model.{GONE}.old")
    console = Keeper()
    commands.resume(ResumeOptions(run), console)
    assert "finished already" in console.printed[0] and products(run) == products(finished)
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("locks", [True, False])
def test_a_lock_of_another_machine_counts_where_the_file_system_has_no_locks(tmp_path, monkeypatch, locks):
    """Where it has, they hold across machines, and what is not locked is stale: containers change their host's name."""

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    if not locks:
        monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / "lock").write_text(f"{os.getpid()} elsewhere")
    if locks:
        with locked(tmp_path):
            assert owner_of(tmp_path) == os.getpid()
    else:
        wrong = f"in use by process {os.getpid()} on elsewhere; .*; if it is gone, remove .*lock"
        with pytest.raises(UserError, match=wrong), locked(tmp_path):
            pass


def test_a_lock_whose_owner_is_not_yet_written_is_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.training.process.NAME_SECONDS", 0.05)
    with locked(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path):
            pass


def test_where_a_file_system_has_no_locks_the_number_of_the_process_counts(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "lock").write_text(str(process.pid))
        with pytest.raises(UserError, match=f"in use by process {process.pid}"), locked(tmp_path):
            pass
    finally:
        process.communicate(b"\n")
    with locked(tmp_path):
        assert owner_of(tmp_path) == os.getpid()


# -- Two at once -------------------------------------------------------------------------------------------------------

AT_ONCE = """
import os, sys, time, traceback
from pathlib import Path
import pytest
import small
from calotype.cli import app as cli
from calotype.cli import commands
small.be_quick(pytest.MonkeyPatch())
def meet(name):
    # goes on when both processes are here
    Path(f'{{name}}-{{os.getpid()}}').touch()
    end = time.monotonic() + 20
    while len([*Path.cwd().glob(name + '-*')]) < 2 and time.monotonic() < end: time.sleep(0.001)
def while_they_read():
    real = commands.training.read
    def read(*arguments, **named):
        pictures = real(*arguments, **named)
        meet('read')
        return pictures
    commands.training.read = read
def call(here, words):
    os.chdir(here)
    sys.argv = ['calotype', *words]
    sys.stdout, sys.stderr = open(f'{{os.getpid()}}.out', 'w'), open(f'{{os.getpid()}}.err', 'w')
    if here.endswith('apart'): while_they_read()
    meet('start')
    try: cli.main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code or 0)
    except BaseException: traceback.print_exc()
    os._exit(99)
for here, calls in {calls!r}.items():
    children = []
    for words in calls:
        if not (child := os.fork()): call(here, words)
        children.append(child)
    for child in children: print(here, child, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, stopped_once):
    """Where two command lines each ran at the same time; and their process numbers, exit codes and standard errors."""
    place = tmp_path_factory.mktemp("at once")
    pictures = write_pictures(place / "pictures")
    run = shutil.copytree(stopped_once, place / "run")
    trainings = [["train", str(pictures), *SMALL, "--set", f"seed={seed}"] for seed in (1, 2)]
    calls = {
        "apart": trainings,
        "together": [[*words, "--out", "same"] for words in trainings],
        "resumed": [["resume", str(run)]] * 2,
    }
    for name in calls:
        (place / name).mkdir()
    script = AT_ONCE.format(calls={str(place / name): words for name, words in calls.items()})
    printed, wrong = python(script).communicate(timeout=240)
    assert wrong == ""
    ends = [line.rsplit(" ", 2) for line in printed.splitlines()]
    found = [(Path(here).name, int(child), int(code), Path(here, f"{child}.err")) for here, child, code in ends]
    return place, {
        name: [(child, code, error.read_text()) for here, child, code, error in found if here == name] for name in calls
    }


def test_two_trainings_that_start_at_once_get_two_folders(at_once):
    """Both have read their pictures before either goes on."""
    place, ends = at_once
    assert [(code, wrong) for _, code, wrong in ends["apart"]] == [(0, "")] * 2
    folders = sorted((place / "apart" / "runs").iterdir())
    assert [path.name for path in folders] == ["pictures-16-1", "pictures-16-2"]
    seeds = [read_recipe(path / "recipe.toml")["seed"] for path in folders]
    assert sorted(seeds) == [1, 2]
    for path, seed in zip(folders, seeds, strict=True):
        assert read_json(path / "run.json")["status"] == "finished" and not (path / "lock").exists()
        assert read_json(path / "model" / "model.json")["recipe"]["seed"] == seed and is_whole(path / "model")


def test_two_trainings_with_the_same_out_are_one_run_and_one_error(at_once):
    place, ends = at_once
    codes = [code for _, code, _ in ends["together"]]
    assert sorted(codes) == [0, 2]
    wrong = ends["together"][codes.index(2)][2]
    assert wrong.count("\n") == 1 and ("in use by process" in wrong or "is not an empty folder" in wrong)
    run, seed = place / "together" / "same", codes.index(0) + 1
    assert read_json(run / "run.json")["status"] == "finished" and read_recipe(run / "recipe.toml")["seed"] == seed
    assert read_json(run / "model" / "model.json")["recipe"]["seed"] == seed and is_whole(run / "model")


def test_of_two_that_resume_at_once_one_goes_on_and_the_other_names_it(at_once, finished):
    place, ends = at_once
    (winner,) = (child for child, code, _ in ends["resumed"] if code == 0)
    (wrong,) = (wrong for _, code, wrong in ends["resumed"] if code == 2)
    assert f"in use by process {winner}" in wrong and products(place / "run") == products(finished)


# -- The folder of a run -----------------------------------------------------------------------------------------------


def abort(patch, problem):
    """Once the pictures are read; something lies in the cache then, as of a folder that does not fit into memory."""

    def fail(*arguments):
        (cache,) = (path for path in Claimed.folder.glob("*cache"))
        assert (Claimed.folder / "lock").exists() and [*cache.iterdir()]
        if isinstance(problem, int):
            signal.raise_signal(problem)
        raise problem

    real = commands.training.read

    def read(folder, size, cache, console, rule, **others):
        Claimed.folder = cache.parent
        cache.mkdir()
        (cache / "pixels.npy").touch()
        return real(folder, size, cache, console, rule, **others)

    patch.setattr(commands.training, "read", read)
    patch.setattr(commands.training, "make_plan", fail)


class Claimed:
    folder = None


@pytest.mark.parametrize(
    ("problem", "code"),
    [(UserError("no"), 2), (KeyboardInterrupt(), 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
@pytest.mark.parametrize("out", ["", "new/deeper", "empty"])
def test_an_aborted_plan_leaves_no_folder(tell, folder, monkeypatch, tmp_path, out, problem, code):
    """But one that was there before stays."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    abort(monkeypatch, problem)
    ended, _, _ = tell("train", folder, *SMALL, *(["--out", out] if out else []))
    assert ended == code and Claimed.folder.name == (out.split("/")[-1] or "pictures-16-1")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_lock_that_a_killed_process_left_in_out_does_not_make_it_full(folder, tmp_path, monkeypatch):
    """It was killed while it planned, so that there is nothing to go on with."""
    monkeypatch.setattr(commands.training, "produce", lambda run, *more: run.folder)
    (tmp_path / "run" / "cache").mkdir(parents=True)
    for left in ("lock", "plan.json", "cache/pixels", f".split.json.{GONE}.tmp"):
        (tmp_path / "run" / left).write_text(str(GONE))
    run = commands.train(request(folder, tmp_path / "run"), Keeper())
    assert read_json(run / "run.json")["legs"] == {"autoencoder": "waiting", "denoiser": "waiting"}


def test_run_json_comes_after_all_that_resuming_needs(folder, tmp_path, monkeypatch):
    def spend(run, what, seconds):
        assert (run.folder / "recipe.toml").exists() and (run.folder / "plan.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "spend", spend)
    with pytest.raises(KeyboardInterrupt):
        commands.train(request(folder, tmp_path / "run"), Keeper())
    assert not (tmp_path / "run").exists()


# -- Streams that close ------------------------------------------------------------------------------------------------


def test_training_goes_on_in_silence_when_its_pipe_is_closed(folder, finished):
    """As `calotype train ... | head -1` closes it; the second pipe is standard error's."""
    words = ["train", str(folder), "--out", str(folder.parent / "run"), *SMALL]
    process = python(
        "import sys, pytest, small",
        "from calotype.cli import app as cli",
        "small.be_quick(pytest.MonkeyPatch())",
        f"sys.argv = ['calotype', *{words!r}]",
        "cli.main()",
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0
    run = folder.parent / "run"
    assert read_json(run / "run.json")["status"] == "finished" and products(run) == products(finished)


def test_under_nohup_training_outlives_its_terminal(folder, finished):
    """A terminal has bars of progress, drawn by a thread; when it is gone, writing to it is an I/O error."""
    master, slave = pty.openpty()
    process, go_on = training(
        folder, WHILE_IT_LEARNS, stdout=slave, stderr=slave,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    os.close(slave)
    assert os.read(master, 1)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    go_on.touch()
    assert process.wait(60) == 0
    run = folder.parent / "run"
    assert read_json(run / "run.json")["status"] == "finished" and products(run) == products(finished)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_only_a_reader_that_is_gone_is_passed_over(tmp_path, number):
    """A full disk is an error as before."""

    class Stream:
        def write(self, text):
            raise OSError(number, os.strerror(number))

        flush = fileno = lambda self: self.write("")

    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space"):
            print("text", file=LastingStream(Stream()), flush=True)
    else:
        print("text", file=LastingStream(Stream()), flush=True)


def test_compiled_code_has_a_place_where_the_cache_of_the_user_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled_folder() == tmp_path / "cache" / "calotype" / "compiled" and [*tmp_path.iterdir()] == []
    (tmp_path / "cache").touch()  # a file
    assert compiled_folder().is_dir()


def test_compiled_code_has_a_place_where_the_home_is_that_of_another_user(monkeypatch):
    """As with `sudo -u`, which may leave HOME as it was."""

    def stat(path, **given):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setenv("XDG_CACHE_HOME", "/nobody/cache")
    monkeypatch.setattr(Path, "stat", stat)
    assert compiled_folder().is_absolute()


def test_who_has_neither_a_home_nor_a_place_for_temporary_files_has_a_command_line(tmp_path, monkeypatch):
    """As a user without a name has in a container that is read-only."""

    def nowhere(*given, **more):
        raise RuntimeError("Could not determine home directory.")

    def full(**given):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert compiled_folder().is_dir()
    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert not compiled_folder().exists() and not hashes_file(tmp_path).exists()
    (tmp_path / "a.png").touch()
    assert hash_files(tmp_path, ["a.png"] * FEWEST_KEPT)[0].keys() == {"a.png"}


@pytest.mark.parametrize("letter", ["a", "ả", "\udce9"])
def test_the_name_of_a_run_fits_beside_its_number(letter):
    """As that of pictures in a folder whose name is as long as names may be."""
    short = name_that_fits(255 // len(os.fsencode(letter)) * letter)
    assert MAX_BYTES_OF_NAME - 3 < len(os.fsencode(short)) <= MAX_BYTES_OF_NAME and {*short} == {letter}
    assert name_that_fits("cats") == "cats"


# -- Signals -----------------------------------------------------------------------------------------------------------


def test_a_hangup_saves_and_stops(folder, finished):
    """The kernel and the shell both send one when a connection is dropped."""
    process, go_on = training(folder, WHILE_IT_LEARNS)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)  # so that the system does not make one of them
    process.send_signal(signal.SIGHUP)
    go_on.touch()
    _, wrong = process.communicate(timeout=60)
    assert process.returncode == 129 and wrong.count("\n") == 1 and "training so far is saved" in wrong
    run = folder.parent / "run"
    assert Run.open(run).state.status == "interrupted" and not (run / "lock").exists()
    assert resumed(run) == products(finished)


@pytest.mark.parametrize(
    ("number", "code", "times"),
    [(signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 2), (signal.SIGHUP, 129, 2)],
)
def test_exit_codes_tell_the_signal(tell, folder, monkeypatch, number, code, times):
    """Whether it saved first, or stopped at once as it was asked again."""
    real = pipeline.train_leg

    def train_leg(run, leg, stop, *more):
        for _ in range(times):
            signal.raise_signal(number)
            time.sleep(0.12 if number == signal.SIGTERM else 0)
        return real(run, leg, stop, *more)

    monkeypatch.setattr(pipeline, "train_leg", train_leg)
    before = [signal.getsignal(one) for one in STOPPING]
    ended, _, wrong = tell("train", folder, "--out", folder.parent / "run", *SMALL)
    assert ended == code and len(wrong) == 1 and "Continue with: calotype resume" in wrong[0]
    assert read_json(folder.parent / "run" / "run.json")["status"] == "interrupted"
    saved = (folder.parent / "run" / "checkpoints").exists()
    assert saved == (times == 1 or number == signal.SIGHUP)
    assert [signal.getsignal(one) for one in STOPPING] == before


@pytest.mark.parametrize(
    ("first", "second", "apart", "at_once"),
    [
        (signal.SIGTERM, signal.SIGTERM, 0.0, False),  # of `timeout`, to the process and to its group
        (signal.SIGTERM, signal.SIGHUP, 0.5, False),  # of a session that ends
        (signal.SIGTERM, signal.SIGTERM, 0.2, True),
        (signal.SIGHUP, signal.SIGHUP, 1.5, True),
        (signal.SIGINT, signal.SIGTERM, 0.2, True),
        (signal.SIGTERM, signal.SIGINT, 0.0, True),
    ],
)
def test_a_second_signal_of_any_kind_stops_at_once_but_not_an_echo_of_the_first(first, second, apart, at_once):
    now = time.monotonic()
    usual = [signal.signal(number, signal.default_int_handler) for number in STOPPING]
    try:
        with pytest.raises(KeyboardInterrupt) if at_once else contextlib.nullcontext(), stoppable() as stop:
            signal.raise_signal(first)
            stop.asked = now - apart
            signal.raise_signal(second)
        assert stop.is_set() and stop.signal_number == first
    finally:
        for number, handler in zip(STOPPING, usual, strict=True):
            signal.signal(number, handler)


def test_a_signal_while_the_samples_are_made_stops_the_run_and_resuming_makes_them(tell, folder, monkeypatch, finished):
    class Terminated(StoppableReporter):
        @contextlib.contextmanager
        def bar(self, step):
            with super().bar(step) as bar:
                yield lambda done, total, note="": [signal.raise_signal(signal.SIGTERM), bar(done, total, note)]

    with monkeypatch.context() as patch:
        patch.setattr(commands.training, "StoppableReporter", Terminated)
        code, _, wrong = tell("train", folder, "--out", folder.parent / "run", *SMALL)
    assert code == 143 and len(wrong) == 1 and len(list((folder.parent / "run" / "samples").iterdir())) == 1
    assert resumed(folder.parent / "run") == products(finished)


def test_a_hangup_that_is_ignored_from_the_start_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
