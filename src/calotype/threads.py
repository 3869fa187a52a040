"""Slices of a batch, each on a thread of its own.

Torch divides every operation among its threads, and waits for all of them after each. The operations of a small
denoiser are too short for that: it is faster to give each thread a slice of the batch, and to wait once a step of
training, or once for all steps of sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")


def at_once(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of all tasks; each runs on a thread of its own, the first on this one, and torch uses no others."""
    if len(tasks) == 1:
        return [tasks[0]()]
    with one_thread():
        others = [_pool(len(tasks) - 1).submit(task) for task in tasks[1:]]
        try:
            first = tasks[0]()
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]


def rows_of(count: int, slices: int) -> list[slice]:
    """Divides `count` images into at most so many slices, none of them empty and all about equally long."""
    slices = min(slices, count)
    bounds = [count * index // slices for index in range(slices + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch runs each operation on the thread that asks for it; the number of threads before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process; each sets its own number of OpenMP threads."""
    return ThreadPoolExecutor(threads, "slice", torch.set_num_threads, (1,))
