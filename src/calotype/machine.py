"""The machine: device, memory, threads and precision, measured and not looked up in a table; or as it is described."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from calotype.threads import at_once, one_thread
from calotype.types import UserError

BUSY_BATCHES = {"cpu": 1, "mps": 4, "cuda": 8}
"""See `Machine.busy_batch`; of machines that cannot be measured."""
UTILIZATION = 0.4
"""Fraction of the FLOP/s of a single convolution that a whole training step reaches, where nothing else limits it."""
LAYER_BATCH, LAYER_TOKENS, LAYER_WIDTH = 32, 64, 128
"""The batch of the transformer layer whose training is timed: that of the smallest denoiser on latents of 8 x 8."""


@dataclass(frozen=True)
class Machine:
    device: torch.device
    name: str
    threads: int
    flops: float
    """Floating-point operations a second of a convolution, in the better precision; on a CPU at most so many that a
    training step reaches `UTILIZATION` of them. Matrix units (AMX) multiply ten times as fast as they train."""
    fast_bfloat16: bool
    """Whether bfloat16 arithmetic is faster than float32 here; on many CPUs it is ten times slower."""
    memory: int
    """Free bytes where the networks live."""
    busy_batch: int = 1
    """How many times larger than on a CPU batches must be to keep the device busy."""
    here: bool = True
    """Whether it can be measured; else it is as `describe_machine` was given it."""
    ranks: int = 1
    """Processes that train together, each on as much; `flops`, `threads`, `memory` and `busy_batch` are of one."""

    def __str__(self) -> str:
        counted = f", {self.threads} thread{'s' * (self.threads != 1)}"
        threads = counted if self.here and self.device.type == "cpu" else ""
        ranks = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return f"{self.device.type} ({self.name}{threads}, {self.memory / 2**30:,.1f} GB free{ranks})"

    def shared_by(self, ranks: int) -> Machine:
        """Of several ranks, those on this machine divide its main memory."""
        return replace(self, ranks=ranks, memory=self.memory // (ranks_here() if self.device.type == "cpu" else 1))

    @property
    def busy_batch_of_all(self) -> int:
        """As `busy_batch`, of all ranks; a core is busy with a few images."""
        return max(1, self.ranks // 4) if self.device.type == "cpu" else self.busy_batch * self.ranks

    @property
    def all_flops(self) -> float:
        return self.ranks * self.flops

    @property
    def why_precision(self) -> str:
        """The reason for the precision that a plan takes."""
        return "both were timed here; this is faster" if self.here else f"usual on {self.device.type}; not timed"


def find_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Raises `UserError` for a device that is not here."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name != "auto" and name not in here:
        raise UserError(
            f"device is {name!r}, but this machine has {', '.join(here)}; leave --device out to use {here[0]}"
        )
    return torch.device(here[0] if name == "auto" else name)


def describe_machine(name: str, flops: float, memory: int) -> Machine:
    """A machine that need not be here: its device, floating-point operations a second and bytes.

    Raises `UserError` for a device that torch does not know, or that is left open.
    """
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"device is {name!r}, but a described machine needs cpu, cuda or mps: add --device cuda")
    device = torch.device(name)
    text = f"described, {flops:.3g} FLOP/s"
    return Machine(device, text, 1, flops, device.type == "cuda", memory, BUSY_BATCHES[device.type], here=False)


def examine(name: str = "auto", threads: int | None = None) -> Machine:
    """Finds the device, then times a convolution to choose the threads and the precision (about half a second).

    A resumed run keeps its `threads`: sums in another order would be other sums.
    """
    device = find_device(name)
    if threads is None:
        threads = choose_threads() if device.type == "cpu" else torch.get_num_threads()
    torch.set_num_threads(threads)
    batch = 8 if device.type == "cpu" else 512
    precisions = torch.float32, torch.bfloat16
    float32, bfloat16 = (time_convolution(device, dtype, batch) for dtype in precisions)
    if float32 / 3 < bfloat16 < 3 * float32:  # near enough for another job of that moment to decide: once more
        again = (time_convolution(device, dtype, batch) for dtype in precisions)
        float32, bfloat16 = map(min, (float32, bfloat16), again)
    seconds = min(float32, bfloat16) / batch
    small = seconds if device.type == "cpu" else time_convolution(device, torch.bfloat16, 8) / 8
    busy_batch = 2 ** max(0, min(3, int(math.log2(small / seconds))))
    flops = 2 * 9 * 64 * 64 * 32 * 32 / seconds
    if device.type == "cpu":
        flops = min(flops, max(layer_rate(dtype, threads) for dtype in precisions) / UTILIZATION)
    return Machine(
        device, device_name(device), threads, flops, bfloat16 < 0.8 * float32, free_memory(device), busy_batch
    )


def choose_threads() -> int:
    """All cores, or half of them where these are faster: on a busy machine threads wait for each other."""
    timings: dict[int, float] = {}
    for threads in {cores(), max(1, cores() // 2)}:
        torch.set_num_threads(threads)
        timings[threads] = time_convolution(torch.device("cpu"), torch.float32, 8)
    return min(timings, key=timings.__getitem__)


def cores() -> int:
    """That this process may use: its share of those that all ranks on this machine have."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // ranks_here())


def ranks_here() -> int:
    """How many ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def time_convolution(device: torch.device, dtype: torch.dtype, count: int) -> float:
    image = torch.randn(count, 64, 32, 32, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    return best_time(lambda: F.conv2d(image, weight, padding=1), device)


def layer_rate(dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations a second in the training of a transformer layer on each of so many threads of the CPU
    at once. Two threads that share a core are hardly faster than one."""
    width = LAYER_WIDTH
    layer = torch.nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, batch_first=True, norm_first=True)
    tokens = torch.randn(LAYER_BATCH, LAYER_TOKENS, width)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            loss = layer(tokens).float().square().mean()
        torch.autograd.grad(loss, weights)

    weights = [*layer.parameters()]
    with one_thread():
        seconds = best_time(lambda: at_once([step] * threads), torch.device("cpu"), 3)
    return threads * 12 * LAYER_BATCH * LAYER_TOKENS * width * (6 * width + LAYER_TOKENS) / seconds


def best_time(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    work()
    return min(timed(work, device) for _ in range(repeats))


def timed(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # a file of Linux
        if model := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return model[1].strip()
    return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python or torch says that memory is at its end, on a CPU or another device."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    return known or isinstance(error, MemoryError)


def release_memory(device: torch.device) -> None:
    """Frees what only cycles of references hold, and gives back what torch, or the C library, keeps of freed memory.

    To be called between the parts of a run: a step that called it would pay for new pages.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def held_memory(device: torch.device) -> int:
    """The bytes that this process holds now, on the device or (CPU, MPS) in main memory."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far, on the device or (CPU, MPS) in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def deterministic(seed: int) -> None:
    """Seeds torch's own generators, from which new weights are drawn, and has cuDNN repeat its results. In float32 on
    CUDA convolutions are in TF32, and matrix products are not.

    On one machine's CPU with as many threads a run comes out the same to the bit, stopped and resumed or not (on one of
    Intel's with `MKL_CBWR=AUTO` in the environment, which `cli.process.tune_process` sets). On CUDA
    it is not promised: other kernels than cuDNN's add in an order that changes.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False  # priors in closed form subtract large numbers
