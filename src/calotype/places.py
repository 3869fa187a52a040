"""Where files of this user are that belong to no run, and what to do about errors of a disk or of the system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of a disk, and of a user's share of one."""
NOT_WRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG,
)  # fmt: skip
DISK_FAILED = tuple(
    getattr(errno, name)
    for name in ("EIO", "ENXIO", "ENODEV", "ESTALE", "ENOTCONN", "EREMOTEIO", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
)
"""A disk, or the connection to it, has failed."""
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
HINTS = {
    **dict.fromkeys(NOT_WRITABLE, "choose a folder that can be written to"),
    errno.EEXIST: "nothing was overwritten; choose another name",
    **dict.fromkeys(DISK_FULL, "free some space"),
    **dict.fromkeys(DISK_FAILED, "see that the disk is connected and sound"),
    **dict.fromkeys(TOO_MANY_OPEN, "close other programs, or raise the limit with: ulimit -n 4096"),
}
"""What to do about errors of the system, which are not ours."""


def cache_home() -> Path:
    """A place where nothing can be written, for a user without a home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calotype"
    except RuntimeError:
        return Path(os.devnull) / "calotype"
