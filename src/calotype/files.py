"""Atomic writes of files and folders, and manifests by which damage is noticed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from calotype.types import UserError


def write_whole(path: Path, content: bytes | str, new: bool = False) -> None:
    """Replaces the file in one step, after the new content has reached the disk. Its mode follows the umask.

    With `new` it raises `FileExistsError` where there is a file of that name, whoever made it, and changes nothing.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            path.open("xb").close()  # in one step: of two processes, one gets the name
        temporary.replace(path)
        to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """With the folders above it that are missing; all their names reach the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        to_disk(path.parent)


def write_png(path: Path, image: Image.Image, new: bool = False) -> None:
    """As `write_whole`."""
    image.save(buffer := io.BytesIO(), "PNG")
    write_whole(path, buffer.getvalue(), new)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """As safetensors, but a full disk is an `OSError`, and the mode of the file follows the umask.

    `about` is stored in the header. Raises `UserError` for a tensor with NaN or infinity: no file ever has one.
    """
    if (wrong := not_finite(tensors)) is not None:
        raise UserError(
            f"{wrong} in {path.name} is not finite, so it was not written; what was saved before is sound: lower the "
            f"learning rate, or set precision to float32, and resume"
        )
    write_whole(path, save({name: value.contiguous() for name, value in tensors.items()}, about))


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def write_json(path: Path, value: Any, new: bool = False) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n", new)


def read_json(path: Path) -> Any:
    """Raises `UserError` where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


@contextlib.contextmanager
def whole_folder(path: Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write into; it takes the name `path` when all is on the disk.

    Its manifest of sizes and hashes is written last, so that whatever has a manifest is complete. Files `beside` what
    belongs to it are not in there, and may change.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(path.parent)
    temporary.mkdir()
    try:
        yield temporary
        for below in sorted(temporary.rglob("*")):
            if below.is_dir() or below.is_file():
                to_disk(below)
        files = sorted(file for file in temporary.iterdir() if file.is_file() and file.name not in beside)
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
        write_json(temporary / "manifest.json", manifest)
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, path: Path) -> None:
    """Gives a folder the name `path`; what had it before is removed once that is on the disk, or keeps it."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if replaces := path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
        to_disk(path.parent)
    except OSError:
        if replaces and path.exists():
            path.rename(temporary)
        if replaces:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a folder holds just what its manifest says."""
    return not damage(path)


def damage(path: Path) -> str:
    """How the files of a folder differ from its manifest, in one line; empty where the folder is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    if not manifest or not isinstance(manifest, dict):
        return "manifest.json lists no files"
    return ", ".join(filter(None, (_damage(path / name, entry) for name, entry in manifest.items())))


def _damage(file: Path, entry: Any) -> str:
    match entry:
        case {"bytes": int(size), "sha256": str(digest)}:
            pass
        case _:
            return f"manifest.json has no size and hash of {file.name}"
    try:
        if (actual := file.stat().st_size) != size:
            return f"{file.name} has {actual:,} bytes instead of {size:,}"
        return "" if sha256(file) == digest else f"{file.name} has other content than when it was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, ValueError) as error:
        return f"{file.name} cannot be read ({error})"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(path: Path) -> None:
    """Flushes a file, or the names in a folder; some network file systems and Windows cannot do the latter."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
