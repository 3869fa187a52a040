"""The picture files in a folder, by their suffix, and counts of what was passed over."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from calotype.data.formats import SUFFIXES, UNAVAILABLE, require_reachable
from calotype.data.images import shown
from calotype.types import UserError

SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs", "thumbnails"}
"""Of archives, network drives and programs (in lower case): what lies in them is no picture of its own."""

TABLES_OF_OTHERS = (".parquet", ".arrow", ".xlsx")
"""In which others may have captions."""
MOST_NAMED = 20
"""Classes or suffixes in a sentence."""
ARCHIVES = (".zip", ".rar", ".7z", ".tgz", ".gz", ".bz2", ".xz")


@dataclass
class Listing:
    """Names of picture files, and counts of what was passed over."""

    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unavailable: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures whose decoder is not installed: their format, and how to install it."""
    special: list[str] = field(default_factory=list)
    """Names of pictures that are no files: pipes, devices, broken links and loops of links."""
    system: Counter[str] = field(default_factory=Counter)
    """Folders that were not opened, by name."""
    renewed: list[str] = field(default_factory=list)
    """Names of shards whose members have changed since the index beside them was written."""
    hidden: int = 0
    outside: int = 0
    forbidden: int = 0

    def notes(self) -> list[str]:
        not_installed = [
            f"{plural(count, f'{name} picture')} {'was' if count == 1 else 'were'} left out; {advice}"
            for (name, advice), count in sorted(self.unavailable.items())
        ]
        return [
            *not_installed,
            *note(self.others.total(), "file", f"passed over, by suffix: {names_counted(self.others)}"),
            *[
                f"captions are not read from {suffix} files; save them as metadata.jsonl or metadata.csv"
                for suffix in TABLES_OF_OTHERS
                if self.others[suffix]
            ],
            *note(
                len(self.special),
                "picture",
                f"a pipe, a device or a broken link, not a file: {first_names(self.special)}",
            ),
            *note(
                self.system.total(),
                "folder",
                f"not opened, as such hold copies or previews: {names_counted(self.system)}",
            ),
            *note(
                len(self.renewed),
                "shard",
                f"read again, as the index beside it is of other members; remove that: {first_names(self.renewed)}",
            ),
            *note(self.hidden, "hidden item", "passed over"),
            *note(self.outside, "link", "not followed, as they lead outside the folder"),
            *note(self.forbidden, "folder", "not opened, for lack of permission"),
        ]

    def add(self, path: Path, root: Path) -> None:
        """Counts a file, by its suffix."""
        suffix = path.suffix.lower()
        if suffix in UNAVAILABLE:
            self.unavailable[UNAVAILABLE[suffix]] += 1
        elif suffix not in SUFFIXES:
            self.others[suffix or "none"] += 1
        elif _leads_outside(path, root):
            self.outside += 1
        else:
            kind = self.pictures if os.path.isfile(path) else self.special  # noqa: PTH113 (it never raises)
            kind.append(path.relative_to(root).as_posix())

    def without(self, names: Iterable[str]) -> Listing:
        """Does not count these files, which were read as captions, as passed over."""
        self.others -= Counter(PurePosixPath(name).suffix.lower() or "none" for name in names)
        return self


def list_pictures(path: Path) -> list[Path]:
    """The picture files in a folder, or the one file. Raises `UserError` where there is none."""
    return [path] if path.is_file() else [path / name for name in find_pictures(path).pictures]


def find_pictures(folder: Path) -> Listing:
    """Picture files by their suffix, below a folder; hidden ones, and links that lead outside, are not followed."""
    check_folder(folder)
    root = folder.resolve()
    listing = Listing()
    for path in visible_files(root, listing):
        listing.add(path, root)
    listing.pictures.sort()
    if not listing.pictures:
        contents = "; ".join(listing.notes()) or "it is empty"
        convert = "; convert pictures of other kinds (raw, DICOM) to PNG, TIFF or JPEG" if listing.others else ""
        raise UserError(f"no pictures in {shown(folder)}: looked for {' '.join(SUFFIXES)}; {contents}{convert}")
    return listing


def visible_files(root: Path, listing: Listing) -> Iterator[Path]:
    """Files below a folder that are not hidden, nor in folders of the system; what is passed over is counted."""

    def forbidden(error: OSError) -> None:
        require_reachable(str(error.filename), error)
        listing.forbidden += 1

    for parent, folders, names in os.walk(root, onerror=forbidden):
        hidden = [name for name in folders if name.startswith(".")]
        system = [name for name in folders if name.lower() in SYSTEM_FOLDERS]
        listing.system.update(system)
        folders[:] = [name for name in folders if name not in (*hidden, *system)]
        listing.outside += sum(_leads_outside(Path(parent, name), root) for name in folders)
        visible = [name for name in names if not name.startswith(".")]
        listing.hidden += len(hidden) + sum(name.lower().endswith(SUFFIXES) for name in set(names) - set(visible))
        yield from (Path(parent, name) for name in visible)


def _leads_outside(path: Path, root: Path) -> bool:
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root)  # noqa: PTH114


def check_folder(folder: Path) -> None:
    """Raises `UserError` where it is none, with what may have been meant."""
    if folder.is_dir():
        return
    parent = folder.absolute().parent
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{shown(folder)} is a link that leads nowhere; give a folder of pictures")
    if folder.suffix.lower() in ARCHIVES and folder.exists():
        raise UserError(f"{shown(folder)} is an archive; unpack it, and give the folder that was in it")
    if folder.exists():
        raise UserError(f"{shown(folder)} is a file; give the folder that it lies in, {shown(parent)}")
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    advice = f"did you mean {shown(folder.with_name(close[0]))}?" if close else "give a folder of pictures"
    raise UserError(f"there is no folder {shown(folder)}; {advice}")


def normal_form(name: str) -> str:
    """Form C of Unicode, by which names are compared: archives of macOS have form D."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


# -- Sentences ---------------------------------------------------------------------------------------------------------


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def note(count: int, noun: str, rest: str) -> list[str]:
    """`["2 links were not followed"]`; no note where the count is 0."""
    return [f"{plural(count, noun)} {'was' if count == 1 else 'were'} {rest}"] if count else []


def names_counted(counts: Counter[str]) -> str:
    return ", ".join(f"{shown(name)} {count}" for name, count in counts.most_common(MOST_NAMED))


def first_names(names: Iterable[str], most: int = 5) -> str:
    shown_names = [shown(name) for name in names]
    more = f" and {len(shown_names) - most:,} more" if len(shown_names) > most else ""
    return ", ".join(shown_names[:most]) + more
