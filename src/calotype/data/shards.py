"""Shards: tar files in the layout of WebDataset (`key.png`, `key.txt`, `key.cls`, `key.json`), read by offset.

An index beside each shard, or in the user's cache, has name, offset, size and hash of each picture, with its label and
captions; so nothing is unpacked, and no name in a shard is ever a path of a file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from pydantic import BaseModel
from torch import Tensor

from calotype.data.caption_files import captions_of, decode_text, has_caption_key, lines_of_text, lowered, parse_json
from calotype.data.depth import starts_deep
from calotype.data.formats import SUFFIXES, UNAVAILABLE
from calotype.data.images import shown
from calotype.data.remote import NotThereError, RemoteFile, find_file
from calotype.files import checked, read_tensors, reason_of, require_regular, tensors_of, write_tensors, write_whole
from calotype.places import cache_home
from calotype.types import UserError

MANIFEST, SHARD, INDEX, SEEN = "shards.json", ".tar", ".index", ".seen"
MAX_TEXT, MAX_MEMBER_NAME = 2**20, 4096
PICTURE_SUFFIXES = (*SUFFIXES, *UNAVAILABLE)
ENCODED_SUFFIXES = tuple(suffix.encode() for suffix in PICTURE_SUFFIXES)
LABEL_KEYS = ("label", "cls", "class", "class_name", "label_name")
TAR_BLOCK = tarfile.BLOCKSIZE
AGAIN = "copy it again"
Shard = Path | RemoteFile


class ShardManifest(BaseModel):
    """`shards.json`, of shards that Calotype has written."""

    version: int = 1
    content: str
    """Hash of the pictures."""
    finished: bool = False
    shards: dict[str, int] = {}
    """Bytes by name."""


class IndexFacts(BaseModel):
    """What an index says of its shard as a whole."""

    bytes: int
    outline: str = ""
    """See `outline_of`."""
    others: dict[str, int] = {}
    """Files that are no pictures, by suffix."""
    refused: list[str] = []
    """Captions and labels that cannot be read, with the reason."""


@dataclass
class Strings:
    """Many strings in one array, in place of an object for each."""

    content: UInt8[Tensor, " bytes"]
    ends: Int64[Tensor, " strings"]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(torch.frombuffer(bytearray(b"".join(parts) or b"\0"), dtype=torch.uint8), torch.from_numpy(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return bytes(self.content[start : int(self.ends[row])].numpy()).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        content, start = self.content.numpy().tobytes(), 0
        for end in self.ends.tolist():
            yield content[start:end].decode("utf-8", "surrogateescape")
            start = end


@dataclass
class ShardIndex:
    """Of the pictures in a shard, in their order there."""

    facts: IndexFacts
    offsets: Int64[Tensor, " pictures"]
    sizes: Int64[Tensor, " pictures"]
    digests: UInt8[Tensor, "pictures 32"]
    deep: UInt8[Tensor, " pictures"]
    """1 where a picture may have more than 8 bits."""
    names: Strings
    labels: Strings
    texts: Strings
    """Captions, one a line."""
    renewed: bool = False
    """Whether the index beside the shard was that of other members."""

    def __len__(self) -> int:
        return len(self.offsets)

    def tensors(self) -> dict[str, Tensor]:
        about = torch.frombuffer(bytearray(self.facts.model_dump_json().encode()), dtype=torch.uint8)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name in STRINGS:
            strings: Strings = getattr(self, name)
            arrays |= {name: strings.content, f"{name}.ends": strings.ends}
        return {"about": about, **arrays}


ARRAYS, STRINGS = ("offsets", "sizes", "digests", "deep"), ("names", "labels", "texts")


# -- Reading an index --------------------------------------------------------------------------------------------------


def open_shard(shard: Shard) -> ShardIndex:
    """The index of a shard, which is made where there is none, or only that of other members.

    Raises `UserError` where shard or index is damaged.
    """
    if isinstance(shard, RemoteFile):
        return _open_remote(shard)
    beside, cached = shard.with_suffix(INDEX), _cached(shard, INDEX, str(PICTURE_SUFFIXES))
    if there := os.path.lexists(beside):
        index = read_index(beside, shard)
        if _is_of(index.facts, shard):
            return index
    if os.path.lexists(cached):
        return replace(read_index(cached, shard), renewed=there)
    index = scan(shard)
    with suppress(OSError):  # without a place for it, it is made by each command
        write_tensors(cached, index.tensors())
    return replace(index, renewed=there)


def _open_remote(shard: RemoteFile) -> ShardIndex:
    """A copy of the index beside it in the user's cache; where there is none, the shard is read through once.

    Its members are not compared with the index, but each picture is, when it is read.
    """
    cached = _cached(shard, INDEX, str(PICTURE_SUFFIXES))
    if os.path.lexists(cached):
        return read_index(cached, shard)
    try:
        beside = find_file(shard.address.removesuffix(shard.address[-len(SHARD) :]) + INDEX)
    except NotThereError:
        index = scan(shard)
    else:
        index = checked_index(tensors_of(beside.read(0, beside.size), beside.address), beside, shard)
    with suppress(OSError):  # without a place for it, it is fetched by each command
        write_tensors(cached, index.tensors())
    return index


def _is_of(facts: IndexFacts, shard: Path) -> bool:
    """Whether a shard has the members that the index says; looked at once for each time of its last change."""
    seen = _cached(shard, SEEN, facts.outline)
    if os.path.lexists(seen):
        return True
    if facts.outline != outline_of(shard):
        return False
    with suppress(OSError):
        write_whole(seen, "")
    return True


def _cached(shard: Shard, suffix: str, about: str) -> Path:
    """A file in the user's cache, of a shard as it is now."""
    if isinstance(shard, RemoteFile):
        known = f"{shard.address} {shard.size} {shard.version} {about}"
    else:
        status = shard.stat()
        known = f"{os.fsencode(shard.resolve())!r} {status.st_size} {status.st_mtime_ns} {about}"
    return cache_home() / "shards" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}{suffix}"


def outline_of(shard: Path) -> str:
    """A hash of all in a shard but pictures: the headers of its members, captions and labels."""
    digest = hashlib.sha256()
    with shard.open("rb") as file:
        while any(header := file.read(TAR_BLOCK)):
            digest.update(header)
            try:
                size = tarfile.nti(header[124:136])  # type: ignore[attr-defined]
            except tarfile.HeaderError:  # which a scan refuses
                break
            name, end = header[:100].rstrip(b"\0").lower(), file.tell() + -(-max(0, size) // TAR_BLOCK) * TAR_BLOCK
            if size <= MAX_TEXT and not name.endswith(ENCODED_SUFFIXES):
                digest.update(file.read(max(0, size)))
            file.seek(end)
    return digest.hexdigest()


def read_index(file: Path, shard: Shard) -> ShardIndex:
    """Raises `UserError` where it is damaged, or not of this shard."""
    return checked_index(read_tensors(file), file, shard)


def checked_index(tensors: dict[str, Tensor], file: Shard, shard: Shard) -> ShardIndex:
    """The index of which a file holds these tensors. Raises `UserError` as `read_index`."""
    try:
        facts = checked(json.loads(tensors["about"].numpy().tobytes()), IndexFacts, str(file))
        wrong = _wrong(tensors, facts.bytes)
    except Exception as error:  # other names, shapes or types than an index has
        wrong = f"it is no index ({reason_of(error):.80})"
    if wrong:
        raise UserError(f"{shown(file)} is damaged: {wrong}; remove it, and it is made again")
    if (actual := byte_size(shard)) != facts.bytes:
        state = "cut off" if actual < facts.bytes else "another one"
        raise UserError(
            f"{shown(shard)} is {state}: {actual:,} bytes, but its index {shown(file.name)} has {facts.bytes:,}; copy "
            f"it again, or remove the index if the shard is right"
        )
    offsets, sizes, digests, deep = (tensors[name] for name in ARRAYS)
    names, labels, texts = (Strings(tensors[name], tensors[f"{name}.ends"]) for name in STRINGS)
    return ShardIndex(facts, offsets, sizes, digests, deep, names, labels, texts)


def _wrong(tensors: Mapping[str, Tensor], size: int) -> str:
    """What cannot be so; empty where all can. The shard has `size` bytes."""
    ends = {name: tensors[f"{name}.ends"] for name in STRINGS}
    offsets, sizes, digests = tensors["offsets"], tensors["sizes"], tensors["digests"]
    whole, count = {each.dtype for each in (offsets, sizes, *ends.values())}, len(offsets)
    if whole != {torch.long} or digests.shape != (count, 32) or digests.dtype != torch.uint8:
        return "its columns have other types"
    if {each.shape for each in (offsets, sizes, tensors["deep"], *ends.values())} != {(count,)}:
        return "its columns have different lengths"
    for name, of in ends.items():
        starts = torch.cat([torch.zeros(1, dtype=torch.long), of])
        if (starts.diff() < 0).any() or int(starts[-1]) > len(tensors[name]) or tensors[name].dtype != torch.uint8:
            return "its strings do not end where they should"
    inside = (offsets >= 0) & (sizes >= 0) & (offsets <= size - sizes)
    return "" if bool(inside.all()) else "offsets lie outside the shard"


def opened(shard: Shard) -> io.BufferedReader:
    return shard.open("rb") if isinstance(shard, Path) else shard.open()


def byte_size(shard: Shard) -> int:
    return shard.stat().st_size if isinstance(shard, Path) else shard.size


# -- Scanning a shard --------------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What has been read of a shard."""

    rows: list[tuple[int, int, bytes, bool, str]] = field(default_factory=list)
    """Offset, size, hash, whether it may be deep, and name of each picture."""
    texts: dict[str, str] = field(default_factory=dict)
    """By name without suffix."""
    labels: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


def scan(shard: Shard) -> ShardIndex:
    """Reads a whole shard. Raises `UserError` where it is cut off, or has links or names that lead outside."""
    if isinstance(shard, Path):
        require_regular(shard)
    read = _Scan()
    try:
        with opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in iter(tar.next, None):
                vars(tar)["members"].clear()  # they would be kept, and fill the memory
                if not member.isdir():
                    _read_member(read, tar, member, _safe_name(shard, member))
            end = tar.offset
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError) as error:
        raise UserError(
            f"{shown(shard)} is damaged or cut off after {len(read.rows):,} pictures ({shown(str(error)):.80}); {AGAIN}"
        ) from None
    _require_end(shard, end, len(read.rows))
    outline = outline_of(shard) if isinstance(shard, Path) else ""
    return _index_of(read, IndexFacts(bytes=byte_size(shard), outline=outline))


def _safe_name(shard: Shard, member: tarfile.TarInfo) -> str:
    """The name of a member that is a file. Nothing is written by it, but whoever put it there meant harm."""
    name = member.name.removeprefix("./")
    problem = None
    if member.islnk() or member.issym():
        problem = "is a link"
    elif not member.isreg() or member.issparse():
        problem = "is a device or a sparse file"
    elif name.startswith("/") or ".." in name.split("/") or "\0" in name or not 0 < len(name) <= MAX_MEMBER_NAME:
        problem = "has a name that leads outside"
    if problem:
        raise UserError(f"{shown(shard)} is refused: its member {shown(name[:80])} {problem}; expected files alone")
    return name


def _require_end(shard: Shard, end: int, count: int) -> None:
    """After its last member a whole shard has zeros, one block at least.

    One that was cut off between two members has none, and where a header is damaged, tarfile reads no further.
    """
    with opened(shard) as file:
        file.seek(end)
        rest = [any(part) for part in iter(lambda: file.read(2**20), b"")]
    if any(rest):
        raise UserError(f"{shown(shard)} is damaged after {count:,} pictures, at byte {end:,}; {AGAIN}")
    if byte_size(shard) < end + TAR_BLOCK:
        raise UserError(f"{shown(shard)} is cut off after {count:,} pictures: it has no end; {AGAIN}")


def _read_member(read: _Scan, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if any(part.startswith(".") for part in name.split("/")):
        read.others["hidden"] += 1
    elif suffix in PICTURE_SUFFIXES:
        content = tar.extractfile(member)
        assert content is not None, "it is a file"
        start = content.read(26)
        digest = hashlib.sha256(start)
        for part in iter(lambda: content.read(2**20), b""):
            digest.update(part)
        read.rows.append((member.offset_data, member.size, digest.digest(), starts_deep(start), name))
    elif suffix in (".txt", ".caption", ".json", ".cls"):
        _read_text(read, tar, member, name, suffix)
    else:
        read.others[suffix or "none"] += 1


def _read_text(read: _Scan, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, suffix: str) -> None:
    stem = name[: -len(suffix)]
    content = tar.extractfile(member)
    assert content is not None, "it is a file"
    try:
        text = decode_text(content.read(MAX_TEXT + 1), MAX_TEXT).text
        if suffix == ".cls":
            read.labels[stem] = _label(text)
        else:
            entry = parse_json(text) if suffix == ".json" else {"captions": lines_of_text(text)}
            _read_entry(read, stem, lowered(entry) if isinstance(entry, dict) else {"text": entry})
    except (ValueError, RecursionError) as error:
        read.refused.append(f"{shown(name)} ({'nested too deeply' if isinstance(error, RecursionError) else error})")


def _read_entry(read: _Scan, stem: str, entry: dict[str, Any]) -> None:
    for key in LABEL_KEYS:
        if isinstance(value := entry.get(key), str | int) and not isinstance(value, bool):
            read.labels.setdefault(stem, _label(str(value)))
    captions = captions_of(entry) if has_caption_key(entry) else []
    known = read.texts.get(stem, "").splitlines()
    lines = [line for line in (" ".join(caption.split()) for caption in captions) if line and line not in known]
    "".join(lines).encode()  # raises `ValueError` for half of a surrogate pair
    if lines:
        read.texts[stem] = "\n".join([*known, *lines])


def _label(text: str) -> str:
    """Raises `ValueError` for what is no name of a class."""
    label = text.strip()
    if not label or label[0] == "." or len(label) > 255 or "/" in label or not label.isprintable():
        raise ValueError("no name of a class")
    return label


def _index_of(read: _Scan, facts: IndexFacts) -> ShardIndex:
    offsets, sizes, digests, deep, names = zip(*read.rows, strict=True) if read.rows else ((),) * 5
    return ShardIndex(
        facts.model_copy(update={"others": dict(read.others), "refused": read.refused}),
        torch.tensor(offsets, dtype=torch.long),
        torch.tensor(sizes, dtype=torch.long),
        torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32).copy()),
        torch.tensor(deep, dtype=torch.uint8),
        Strings.of(names),
        Strings.of(_of_picture(read.labels, name) for name in names),
        Strings.of(_of_picture(read.texts, name) for name in names),
    )


def _of_picture(values: dict[str, str], name: str) -> str:
    """By the name without its suffix, or by its key, which ends at the first full stop."""
    stem = str(PurePosixPath(name).with_suffix(""))
    parent, slash, file = name.rpartition("/")
    return values.get(stem) or values.get(f"{parent}{slash}{file.partition('.')[0]}", "")
