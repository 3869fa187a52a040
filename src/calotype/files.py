"""Atomic writes of files and folders, manifests by which damage is noticed, and the reading of files from strangers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil
import torch
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors.torch import load, load_file
from torch import Tensor

from calotype.finite import not_finite
from calotype.types import UserError

MAX_WHOLE, MAX_NAME = 2**26, 255
"""Of a file that is read whole, unless more is expected; and letters of a name."""
NO_LINKS = {errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""Errors of file systems that have no hard links, as FAT."""
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(?:-[0-9a-f]{8})?\.(?P<kind>tmp|old)")
KINDS_OF_FILES = {
    stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip
KINDS_OF_JSON = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
STORED_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""In the order in which safetensors stores them, so that all tensors are aligned."""


# -- Writing -----------------------------------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes | str | Iterable[bytes | memoryview], new: bool = False) -> None:
    """Replaces the file in one step, after the new content has reached the disk. Its mode follows the umask.

    With `new` it raises `FileExistsError` where there is a file of that name, whoever made it, and changes nothing.
    """
    make_folder(path.parent)
    with whole_file(path, new) as temporary:
        with _made_in(path.parent):
            opened = temporary.open("wb")
        with opened as file:
            for part in parts_of(content):
                file.write(part)


@contextlib.contextmanager
def whole_file(path: Path, new: bool = False) -> Iterator[Path]:
    """Another name to write a file under; it takes the name `path` when it is on the disk. `new` is as above."""
    temporary = unfinished(path, "tmp")
    try:
        yield temporary
        to_disk(temporary)
        if new:
            _take_name(temporary, path)
        else:
            temporary.replace(path)
        to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _take_name(file: Path, path: Path) -> None:
    """Gives the file this name in one step, so that of two processes one gets it; the other has `FileExistsError`.
    Where the file system has no links, the name is taken by an empty file for a moment."""
    try:
        path.hardlink_to(file)
    except FileExistsError as error:
        raise FileExistsError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        path.open("xb").close()
        try:
            file.replace(path)
        except BaseException:
            path.unlink()
            raise


def parts_of(content: bytes | str | Iterable[bytes | memoryview]) -> Iterable[bytes | memoryview]:
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    return [content] if isinstance(content, bytes) else content


def make_folder(path: Path) -> None:
    """With the folders above it that are missing; all their names reach the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        with _made_in(path.parent):
            path.mkdir(exist_ok=True)
        to_disk(path.parent)


@contextlib.contextmanager
def _made_in(folder: Path) -> Iterator[None]:
    """Raises `PermissionError` where nothing can be made in a folder that is there, as in /proc: the error of the
    system is then that there is no such file."""
    try:
        yield
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise
        raise PermissionError(errno.EPERM, "Nothing can be made in such a folder", error.filename) from None


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
    write_whole(path, tensor_parts(tensors, about))


def tensor_parts(tensors: Mapping[str, Tensor], about: dict[str, str] | None) -> Iterator[bytes | memoryview]:
    """A file of safetensors, of which one tensor at a time is copied: its header, and the values of each tensor."""
    order, types = list(STORED_TYPES), [*STORED_TYPES.values()]
    named = sorted((order.index(value.dtype), name, value) for name, value in tensors.items())
    header: dict[str, Any] = {"__metadata__": about} if about else {}
    end = 0
    for place, name, value in named:
        start, end = end, end + value.nbytes
        header[name] = {"dtype": types[place], "shape": [*value.shape], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, _, value in named:
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_json(path: Path, value: Any, new: bool = False) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n", new)


# -- Reading -----------------------------------------------------------------------------------------------------------


def require_regular(path: Path) -> None:
    """Raises `UserError` where the file is missing, or is a folder, or a pipe or device, which might never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UserError(f"{path} is missing" if missing else f"{path} cannot be read: {reason_of(error)}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a {KINDS_OF_FILES.get(stat.S_IFMT(mode), 'special file')}, expected a regular file")


def read_bytes(path: Path, most: int = MAX_WHOLE) -> bytes:
    """Raises `UserError` where the file is missing, cannot be read, or has more than `most` bytes."""
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which is more than calotype reads there")
    return content


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, without its name."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def read_json(path: Path, edited: Callable[[str], str] = str, most: int = MAX_WHOLE) -> Any:
    """What the file holds, its text `edited` first. Raises `UserError` as `read_bytes`, and for what is no JSON."""
    return json_of(read_bytes(path, most), path, edited)


def json_of(content: bytes, path: Path | str, edited: Callable[[str], str] = str) -> Any:
    """The JSON in a file of this content. Raises `UserError`."""
    try:
        return json.loads(edited(content.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {str(error).partition(';')[0]}") from None


def checked(value: Any, schema: Any, path: Path | str) -> Any:
    """The value that stands in the file `path` as a model, or another type, of pydantic.

    Raises `UserError`: file, key, what is wrong, and what was got.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {first_problem(error)}") from None


def read_as(path: Path, schema: Any, most: int = MAX_WHOLE) -> Any:
    """The JSON in the file, checked against `schema`. Raises `UserError` as `read_json` and `checked` do."""
    return checked(read_json(path, most=most), schema, path)


def first_problem(error: Exception) -> str:
    """Of a validation, on one line: key, what is wrong, and what was got."""
    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    wrong = error.errors()[0]
    if not wrong["loc"] and wrong["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"it holds {KINDS_OF_JSON.get(type(wrong['input']), 'null')}, but a table of keys is expected"
    key = ".".join(map(str, wrong["loc"]))
    problem = " ".join(wrong["msg"].removeprefix("Value error, ").split())
    return f"{f'{key:.80}: ' if key else ''}{problem} (got {wrong['input']!r:.80})"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `UserError` where it is missing or damaged, or a pickle."""
    require_regular(path)
    return _loaded(load_file, path, path)


def tensors_of(content: bytes, path: Path | str) -> dict[str, Tensor]:
    """As `read_tensors`, of the content of a file that was at `path`."""
    return _loaded(load, content, path)


def _loaded(reader: Callable[[Any], dict[str, Tensor]], source: Path | bytes, path: Path | str) -> dict[str, Tensor]:
    try:
        return reader(source)
    except Exception as error:  # the package raises nothing narrower for what is wrong in a header
        raise UserError(f"{path} is damaged, or is not safetensors ({reason_of(error):.120}); copy it again") from None


# -- Whole folders -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(path: Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write into; it takes the name `path` when all is on the disk.

    Its manifest of sizes and hashes is written last, so that whatever has a manifest is complete. Files `beside` what
    belongs to it are not in there, and may change.
    """
    temporary = unfinished(path, "tmp")
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
    old = unfinished(path, "old")
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


def unfinished(path: Path, kind: str) -> Path:
    """A name beside `path` with the number of this process, which one in another container may have, too."""
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.{kind}")


def was_running(process: int, file: Path) -> bool:
    """Whether this very process, and not a later one with its number (in a container, soon), wrote the file."""
    try:
        return psutil.Process(process).create_time() <= file.stat().st_mtime + 1
    except (psutil.NoSuchProcess, OverflowError, FileNotFoundError):
        return False


def abandoned(path: Path) -> re.Match[str] | None:
    """Name, process and kind of what a killed process had begun to write (tmp) or to replace (old); None of others."""
    found = UNFINISHED.fullmatch(path.name)
    return None if found is None or was_running(int(found["process"]), path) else found


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a folder holds just what its manifest says."""
    return not damage(path)


def damage(path: Path, read: bool = True) -> str:
    """How the files of a folder differ from its manifest, in one line; empty where the folder is whole.

    Files that are not `read` are only compared by their sizes.
    """
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}{os.sep}")
    return ", ".join(filter(None, (_damage(path, name, entry, read) for name, entry in manifest.items())))


class ManifestEntry(BaseModel):
    bytes: int
    sha256: str


def read_manifest(path: Path) -> dict[str, ManifestEntry]:
    """Names of the files in a folder, with their sizes and hashes. Raises `UserError`."""
    manifest: dict[str, ManifestEntry] = read_as(path / "manifest.json", dict[str, ManifestEntry])
    if not manifest:
        raise UserError(f"{path / 'manifest.json'} lists no files")
    return manifest


def inside(folder: Path, name: str) -> Path:
    """The file of this name right in the folder. Raises `UserError` for a path, which might lead out of it."""
    if name in ("", ".", "..") or len(name) > MAX_NAME or set(name) & {"/", "\\", ":", "\0"}:
        raise UserError(f"{folder} names a file {name[:80]!r}, expected the name of one in it")
    return folder / name


def listed(folder: Path, name: str) -> Path:
    """The same, of a file that the manifest lists: others may be anybody's. Raises `UserError`."""
    if name not in read_manifest(folder):
        raise UserError(f"{folder / name} is not listed in its manifest.json; copy the folder again")
    return inside(folder, name)


def _damage(folder: Path, name: str, entry: ManifestEntry, read: bool) -> str:
    known_as = f"{name:.80}"
    try:
        file = inside(folder, name)
        if not stat.S_ISREG(mode := file.lstat().st_mode):
            return f"{known_as} is a {KINDS_OF_FILES.get(stat.S_IFMT(mode), 'special file')}, expected a regular file"
        if (actual := file.stat().st_size) != entry.bytes:
            return f"{known_as} has {actual:,} bytes instead of {entry.bytes:,}"
        same = not read or sha256(file) == entry.sha256
        return "" if same else f"{known_as} has other content than when it was written"
    except FileNotFoundError:
        return f"{known_as} is missing"
    except (OSError, ValueError) as error:
        return f"{known_as} cannot be read ({reason_of(error)})"


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
