"""A save that ends at any of its writes, renames and flushes, by an error of the disk or by `kill -9`.

What was there before is whole, or what was to come is; the next start removes what is neither.
"""

import errno
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small import LEGS, fingerprint
from test_checkpoint import go_on, restore, save

from calotype.data.caches import cached_pixels, open_cache, write_cache
from calotype.files import is_whole, read_json, whole_folder, write_json, write_tensors, write_whole
from calotype.run import Run, RunState
from calotype.training.process import clean_up
from calotype.types import UserError

CALLS = [(os, "fsync"), (os, "posix_fallocate"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")]
CALLS += [(shutil, "rmtree"), (os, "link")]


class Ending:
    """Ends the process, or raises an error of the disk, at one of the calls: before it, or after half of a write.

    `calls` counts them.
    """

    def __init__(self, patch, at, kill, error):
        self.calls, self.at, self.kill, self.error = 0, at, kill, error
        for owner, name in CALLS:
            patch.setattr(owner, name, self.counting(getattr(owner, name), name not in ("unlink", "rmtree")))
        patch.setattr(Path, "open", self.opening(Path.open))

    def due(self):
        self.calls += 1
        if self.calls - 1 == self.at and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.calls - 1 == self.at

    def counting(self, real, needs_space):
        def call(*arguments, **more):
            if (needs_space or self.kill) and self.due():
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **more)

        return call

    def opening(self, real):
        def opened(path, mode="r", *arguments, **more):
            file = real(path, mode, *arguments, **more)
            return Writing(file, self) if "w" in mode else file

        return opened


class Writing:
    """A file whose writes come to the disk in two halves."""

    def __init__(self, file, ending):
        self.file, self.ending = file, ending

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        if self.ending.due():
            raise OSError(self.ending.error, os.strerror(self.ending.error))
        return self.file.write(content[len(content) // 2 :])


def ended(work, at, kill, number):
    """Calls `work` in a process of its own, which ends at that call. Returns whether it came to that."""
    if not (child := os.fork()):
        try:
            with pytest.MonkeyPatch.context() as patch:
                Ending(patch, at, kill, number)
                work()
            os._exit(0)
        except OSError as error:
            os._exit(28 if error.errno == number else 1)
        except UserError as error:  # of a checkpoint on a full disk
            os._exit(28 if "more, then go on with" in str(error) else 1)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL if kill else 28), f"call {at}: exit code {code}"
    return code != 0


class CheckpointCase:
    """The next checkpoint of a leg, or the newest one again."""

    def __init__(self, folder, images):
        self.leg, self.found, self.prints = LEGS["denoiser"](), LEGS["denoiser"](), []
        for until in (8, 16, images):
            if self.leg.progress.images_seen < until:
                go_on(self.leg, until)
            if until < images or images == 16:
                save(folder / "checkpoints", self.leg)
            self.prints.append(fingerprint(self.leg.states))

    def work(self, folder):
        save(folder / "checkpoints", self.leg)

    def check(self, folder):
        restore(folder / "checkpoints", self.found)
        assert fingerprint(self.found.states) in self.prints[1:]
        assert all(is_whole(path) for path in (folder / "checkpoints").iterdir())


class FolderCase:
    """A model, constants, the best weights of a leg: a folder that takes the place of another."""

    def __init__(self, folder):
        self.write(folder, 0.0)

    def write(self, folder, value):
        with whole_folder(folder / "model") as path:
            write_tensors(path / "denoiser.safetensors", {"a": torch.full((50,), value)})
            write_json(path / "model.json", {"value": value})

    def work(self, folder):
        self.write(folder, 1.0)

    def check(self, folder):
        assert is_whole(folder / "model") and read_json(folder / "model" / "model.json")["value"] in (0.0, 1.0)


class StateCase:
    """run.json."""

    def __init__(self, folder):
        Run(folder, RunState(name="old")).save()

    def work(self, folder):
        Run(folder, RunState(name="new")).save()

    def check(self, folder):
        assert Run.open(folder).state.name in ("old", "new")


class CacheCase:
    """Latents, and pixels that do not fit into memory; both are made again where they are not whole."""

    def __init__(self, folder):
        pass

    def work(self, folder):
        write_cache(folder / "cache" / "latents.safetensors", {"moments": torch.arange(100.0)})
        cached_pixels(folder / "cache" / "pixels.npy", (5, 3, 16, 16), self.fill)

    def fill(self, pixels):
        pixels[:] = np.arange(256).reshape(16, 16)
        return ["facts"]

    def check(self, folder):
        cached = open_cache(folder / "cache" / "latents.safetensors")
        assert cached is None or cached["moments"].equal(torch.arange(100.0))
        pixels, facts = cached_pixels(folder / "cache" / "pixels.npy", (5, 3, 16, 16), self.fill)
        assert facts == ["facts"] and (pixels == np.arange(256).reshape(16, 16)).all()


class NewFileCase:
    """A file that is written over no other, as `sample --out` does."""

    def __init__(self, folder):
        pass

    def work(self, folder):
        for name in "ab":
            write_whole(folder / name, "whole", new=True)

    def check(self, folder):
        assert all(path.read_text() == "whole" for path in folder.iterdir())


CASES = {
    "new files": NewFileCase,
    "the next checkpoint": lambda folder: CheckpointCase(folder, 20),
    "the same checkpoint": lambda folder: CheckpointCase(folder, 16),
    "a folder": FolderCase,
    "the state": StateCase,
    "caches": CacheCase,
}


ENDINGS = {"full": (False, errno.ENOSPC), "broken": (False, errno.EIO), "killed": (True, None)}
ALL = {f"{case}, {ending}": (case, *ENDINGS[ending]) for case in CASES for ending in ENDINGS}
for slow in ("the same checkpoint, broken", "the same checkpoint, full", "the next checkpoint, broken"):
    del ALL[slow]


@pytest.mark.parametrize(("case", "kill", "number"), ALL.values(), ids=ALL)
def test_wherever_a_save_ends_what_was_there_before_is_whole_or_what_was_to_come_is(tmp_path, case, kill, number):
    case, calls = CASES[case](tmp_path / "before"), 0
    (tmp_path / "before").mkdir(exist_ok=True)
    while True:
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(calls))
        came_to_it = ended(partial(case.work, folder), calls, kill, number)
        if not kill or not came_to_it:
            left = [path for path in folder.rglob(".*") if not came_to_it or path.suffix != ".old"]
            assert left == [], "without a kill nothing is left behind"
        clean_up(folder)
        assert list(folder.rglob(".*")) == []
        case.check(folder)
        if not came_to_it:
            break
        calls += 1
    assert calls >= 4


def test_a_map_of_a_file_has_its_space_before_it_is_filled(tmp_path, monkeypatch):
    """Otherwise a full disk would kill the process with SIGBUS."""

    def full(descriptor, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        cached_pixels(tmp_path / "pixels.npy", (5, 3, 16, 16), lambda pixels: pytest.fail("was filled"))
    assert list(tmp_path.iterdir()) == []


def test_a_log_goes_on_on_a_line_of_its_own_after_a_kill(tmp_path):
    run = Run(tmp_path)
    run.log("one", n=1)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "two", "n"')
    run.log("three", n=3)
    run.log("four", n=4)
    assert [event["event"] for event in Run(tmp_path).events] == ["one", "three", "four"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "no hash"])
def test_a_cache_that_is_damaged_is_made_again(tmp_path, damage):
    path = tmp_path / "pixels.npy"
    cached_pixels(path, (5, 3, 16, 16), lambda pixels: pixels.fill(7))
    write_cache(tmp_path / "latents.safetensors", {"moments": torch.ones(9)})
    for file in (path, tmp_path / "latents.safetensors"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content[:-1] if damage == "cut" else content)
    if damage == "no hash":  # of an earlier version
        write_tensors(tmp_path / "latents.safetensors", {"moments": torch.ones(9)})
        write_json(path.with_suffix(".json"), [])
    assert open_cache(tmp_path / "latents.safetensors") is None
    assert (cached_pixels(path, (5, 3, 16, 16), lambda pixels: pixels.fill(9))[0] == 9).all()
