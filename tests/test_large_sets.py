"""What is sampled of a large set, and what is counted of all of it."""

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CPU, SETTINGS, be_quick, machine, noise_pixels, recipe, write_pictures

from calotype.build import build_space
from calotype.data import duplicates, latents
from calotype.data import survey as surveying
from calotype.data.duplicates import near_duplicate_pairs
from calotype.data.folder import read_folder
from calotype.data.latents import Sides, cache_latents
from calotype.planning.make import make_plan
from calotype.types import NotFiniteError, UserError, no_progress


def test_a_plan_of_a_sample_counts_all_pictures(tmp_path, monkeypatch):
    """As one that has read them all does: what the disk must hold, and how many are trained on."""
    folder = write_pictures(tmp_path / "pictures", 60)
    some, every = read_folder(folder, 16, most=10), read_folder(folder, 16)
    assert len(some) == 10 and some.total == len(every) == every.total == 60
    assert some.classes == every.classes and "of 10 pictures, evenly spaced, of 60" in " ".join(some.notes)
    assert {row.numpy().tobytes() for row in some.pixels} < {row.numpy().tobytes() for row in every.pixels}
    be_quick(monkeypatch)
    sampled, whole = (
        make_plan(each, machine(), 3600.0, time.monotonic(), SETTINGS).predicted for each in (some, every)
    )
    assert sampled["disk_bytes"] == whole["disk_bytes"] and sampled["images"].keys() == whole["images"].keys()
    assert some.trained == 60 - (10 - len(some.train_indices))


def test_a_plan_of_a_sample_counts_the_file_of_pixels(tmp_path, monkeypatch):
    """That they are mapped from where memory is short; a run that has read all of them has written it already."""
    be_quick(monkeypatch)
    some = read_folder(write_pictures(tmp_path / "pictures", 60), 16, most=10)
    many = replace(some, sampled_from=10**7)
    short, ample = (
        make_plan(many, replace(machine(), memory=memory), 3600.0, time.monotonic(), SETTINGS).predicted["disk_bytes"]
        for memory in (2**30, 2**40)
    )
    assert short - ample == 10**7 * 3 * 16 * 16


def test_a_set_of_up_to_twice_the_sample_is_read_whole(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 20)
    assert read_folder(folder, 16, most=10).sampled_from is None


# -- Latents -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def space():
    torch.manual_seed(0)
    return build_space(recipe())


def mapped(space, folder, pixels, monkeypatch, flip=True):
    """With the limits of a large set at 4, and parts of 8 pictures."""
    with monkeypatch.context() as patch:
        patch.setattr(latents, "LARGE_SET", 4)
        patch.setattr(latents, "PART_PICTURES", 8)
        yield cache_latents(space, pixels, "content", Sides(flip), folder, CPU, no_progress)


def close(halves, others):
    """Batches of other sizes differ in the last bit of a float32, which may be the last of float16."""
    return torch.allclose(halves.float(), others.float(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_mapped_latents_have_the_means_of_those_in_memory(flip, space, tmp_path, monkeypatch):
    """And a log-variance for each channel, by which the statistics of the space are the same."""
    pixels = noise_pixels(20)
    whole = cache_latents(space, pixels, "content", Sides(flip), tmp_path / "memory", CPU, no_progress)
    for large in mapped(space, tmp_path / "mapped", pixels, monkeypatch, flip):
        assert large.sides == whole.sides == 1 + flip and [len(part[0]) for part in large.parts] == [8, 8, 4]
        rows, sides = torch.tensor([19, 0, 8, 7, 19]), torch.tensor([0, flip, 0, flip, flip]).long()
        means, moments = large.at(sides, rows), whole.at(sides, rows)
        assert close(means.chunk(2, 1)[0], moments.chunk(2, 1)[0]) and means.dtype == torch.half
        of = [torch.cat([*each.of(torch.arange(20))]) for each in (large, whole)]
        assert close(of[0].chunk(2, 1)[0], of[1].chunk(2, 1)[0])
        measured = []
        for each in (large, whole):
            space.measure(each.of(torch.arange(20)))
            measured.append((space.mean.clone(), space.spread.clone()))
        assert torch.allclose(*(mean for mean, _ in measured)) and torch.allclose(
            *(of for _, of in measured), rtol=2e-3
        )


def test_a_part_is_encoded_and_written_a_batch_at_a_time(space, tmp_path, monkeypatch):
    """A part may have thousands of large pictures, and memory for a batch of them is enough."""
    held, real = [], latents.encode
    monkeypatch.setattr(
        latents, "encode", lambda space, part, *rest: held.append(len(part)) or real(space, part, *rest)
    )
    monkeypatch.setattr(latents, "LARGE_SET", 4)
    monkeypatch.setattr(latents, "PART_PICTURES", 8)
    cache = cache_latents(space, noise_pixels(12), "content", Sides(True), tmp_path, CPU, no_progress, batch=3)
    assert held == [3, 3, 2, 3, 3, 2, 3, 1, 3, 1] and [part.shape[:2] for part in cache.parts] == [(2, 8), (2, 4)]


def test_only_parts_that_are_missing_or_damaged_are_encoded_again(space, tmp_path, monkeypatch):
    pixels, encoded, real = noise_pixels(20), [], latents.encode
    monkeypatch.setattr(
        latents, "encode", lambda space, part, *rest: encoded.append(len(part)) or real(space, part, *rest)
    )
    for first in mapped(space, tmp_path, pixels, monkeypatch, False):
        before = [part.copy() for part in first.parts]
    assert encoded == [8, 8, 4]
    folder = next(tmp_path.glob("latents-*"))
    part = folder / "part-000001.npy"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    (folder / "part-000002.json").unlink()
    for again in mapped(space, tmp_path, pixels, monkeypatch, False):
        assert all(map(np.array_equal, again.parts, before))
    assert encoded[3:] == [8, 4]
    for _ in mapped(space, tmp_path, pixels, monkeypatch, True):  # another key: the old ones go
        assert len([*tmp_path.glob("latents-*")]) == 1


def test_latents_that_are_not_finite_are_named_by_their_rows(space, tmp_path, monkeypatch):
    real = latents.encode

    def broken(*arguments):
        moments = real(*arguments)
        moments[-1, 0] = float("nan")
        return moments

    monkeypatch.setattr(latents, "encode", broken)
    with pytest.raises(NotFiniteError) as error:
        next(mapped(space, tmp_path, noise_pixels(20), monkeypatch))
    assert error.value.rows == [7] and not [*tmp_path.rglob("*.npy")]


# -- A survey ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "expected"), [(60, [(30, 3), (40, 7), (50, 3)]), (10, [(30, 3)]), (3, [(40, 7)])])
def test_some_of_many_pictures_are_compared_with_all(most, expected, monkeypatch):
    monkeypatch.setattr(duplicates, "OTHERS_AT_A_TIME", 16)
    hashes = list(np.random.default_rng(0).integers(-1, 2, (60, 480)).astype(np.int8))
    hashes[30], hashes[50], hashes[40] = hashes[3], hashes[3], hashes[7]
    assert near_duplicate_pairs(hashes, most) == expected


def test_a_survey_of_a_large_set_reads_some_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(surveying, "MOST_SURVEYED", 10)
    result = surveying.survey(write_pictures(tmp_path, 30), 16)
    assert len(result.pictures) == 10 and result.notes[0].startswith("10 of 30 pictures were read")


@pytest.mark.skipif(os.name == "nt", reason="no such limit there")
@pytest.mark.parametrize("allowed", [True, False])
def test_latents_of_more_parts_than_files_may_be_open(tmp_path, monkeypatch, allowed):
    """The limit is raised as far as the system lets it; where it does not, that is said, and nothing is made again."""
    import resource

    monkeypatch.setattr(latents, "PART_PICTURES", 1)
    if not allowed:
        monkeypatch.setattr(latents, "allow_open_files", lambda more: None)
    made = []

    def encoded(rows, mirrored):
        made.append(rows.start)
        yield torch.zeros(1, 4, 2, 2, dtype=torch.half)

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/dev/fd").iterdir()]) + 30, before[1]))
    try:
        with nullcontext() if allowed else pytest.raises((UserError, OSError), match="Too many open files"):
            latents.cache_mapped(tmp_path / "latents", (1, 60, 2, 2, 2), encoded, lambda done, total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert made == [*range(len(made))] and (len(made) == 60) == allowed
