"""What the C library does with freed memory (glibc): it is kept for the next training step, or given back at once."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of `mallopt`."""
LARGEST_KEPT, MOST_KEPT = 2**25, 2**31 - 1
"""Bytes of a block, and of all blocks, that are kept when they are freed."""
SMALLEST_FREED = 2**20
"""Bytes from which a block goes back at once within `freed_at_once`."""
_chosen: dict[int, int] = {}
"""Values of the options that were set here."""


def keep_freed() -> None:
    """By default glibc gives large blocks back to the kernel at once, and each training step pays for new pages: 15% of
    its time (dev/LOG.md, 2026-11-28). What the user has set in the environment stays."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        _choose(M_MMAP_THRESHOLD, LARGEST_KEPT)
        _choose(M_TRIM_THRESHOLD, MOST_KEPT)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within it large blocks are not kept, where `keep_freed` was called: for what takes a few huge ones of many sizes,
    between which kept memory goes to pieces. Fits of the closed forms held twice what they had in use."""
    before = _chosen.get(M_MMAP_THRESHOLD)
    if before is None:
        yield
        return
    _choose(M_MMAP_THRESHOLD, SMALLEST_FREED)
    try:
        yield
    finally:
        _choose(M_MMAP_THRESHOLD, before)


def _choose(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(option, value)
        _chosen[option] = value
