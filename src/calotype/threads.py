"""Slices of a batch, each on a thread of its own.

Torch divides every operation among its threads, and waits for all of them after each. The operations of a small
denoiser are too short for that: it is faster to give each thread a slice of the batch, and to wait once a step of
training, or once for all steps of sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def at_once(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of all tasks; each runs on a thread of its own, the first on this one, and torch uses no others.

    Raises what a task has raised; of several errors not that of a task that waited for another at a `AllReduce`.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    with one_thread():
        others = [_pool(len(tasks) - 1).submit(task) for task in tasks[1:]]
        first = _done(tasks[0])
        wait(others)
    done = [first, *others]
    if errors := [error for task in done if (error := task.exception())]:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return [task.result() for task in done]


def shared_out(tasks: Sequence[Callable[[], Result]], threads: int) -> list[Result]:
    """The results of all tasks; each of so many threads takes the next as soon as it is free. Raises as `at_once`."""
    if threads == 1:
        return [task() for task in tasks]
    left, results = iter(range(len(tasks))), dict[int, Result]()

    def work() -> None:
        for place in left:
            results[place] = tasks[place]()

    at_once([work] * threads)
    return [results[place] for place in range(len(tasks))]


class AllReduce:
    """Where all of so many tasks that run at once bring a value, once, and get the sum of all."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self._values = dict[int, Tensor]()

    def sum(self, index: int, value: Tensor) -> Tensor:
        """The sum over the tasks, in the order of their numbers. Raises `BrokenBarrierError` where one has failed."""
        self._values[index] = value
        self._barrier.wait()
        return torch.stack([self._values[index] for index in sorted(self._values)]).sum(0)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """A task that fails in here fails those that wait for it."""
        try:
            yield
        except BaseException:
            self._barrier.abort()
            raise


@torch.no_grad()
def in_slices(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `function` makes of images, without gradients; on a CPU they are divided among torch's threads."""
    threads = torch.get_num_threads() if images.device.type == "cpu" else 1
    part = torch.no_grad()(lambda rows: function(images[rows]))  # each thread has gradients of its own to switch off
    return torch.cat(at_once([partial(part, rows) for rows in rows_of(len(images), threads)]))


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


def _done(task: Callable[[], Result]) -> Future[Result]:
    future = Future[Result]()
    try:
        future.set_result(task())
    except BaseException as error:
        future.set_exception(error)
    return future


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process; each sets its own number of OpenMP threads."""
    return ThreadPoolExecutor(threads, "slice", torch.set_num_threads, (1,))
