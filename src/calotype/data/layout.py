"""What the subfolders of a folder of pictures mean: classes, sets (train, val, test), dates, or nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from calotype.data.images import shown
from calotype.data.listing import names_counted, note

Folders = tuple[str, ...]  # of a picture, from the top

FEW_OF_A_CLASS = 5
SETS = {
    "train": re.compile(r"train(ing)?"),
    "validation": re.compile(r"val(id|idation)?|dev(elopment)?"),
    "test": re.compile(r"test(ing)?|eval(uation)?|hold[-_ ]?out"),
}
OF_SET = r"[-_ ]?(set|data|images?|imgs?|pictures?|photos?|split|\d{4})?"
"""What may follow the name of a set, as in `train2017`."""
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}([-_. ].*)?")
CAMERA = re.compile(r"\d{3}[A-Z0-9_]{5}")
"""A folder of a camera or phone, as `100CANON` (the rule DCF)."""
PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "leftimg8bit")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "annotations",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "gtfine",
)
"""Of pictures that describe others; left out where a folder of pictures is beside them."""


@dataclass(frozen=True)
class Layout:
    """The class and the set of each picture, "" for none; `left_out` are names of pictures that describe others."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    sets: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of training pictures; a single subfolder distinguishes nothing."""
        trained = (label for label, of in zip(self.labels, self.sets, strict=True) if of in ("", "train"))
        folders = sorted(set(trained) - {""})
        return tuple(folders) if len(folders) > 1 else ()

    def at(self, names: Sequence[str]) -> Layout:
        """Of some of the pictures, in this order."""
        row = {name: index for index, name in enumerate(self.names)}
        rows = [row[name] for name in names]
        labels, sets = (tuple(of[index] for index in rows) for of in (self.labels, self.sets))
        return replace(self, names=tuple(names), labels=labels, sets=sets)


def find_layout(names: Sequence[str]) -> Layout:
    """From the names of pictures, relative to their folder, with "/"."""
    left_out = _masks(names)
    names = [name for name in names if name not in left_out]
    folders: list[Folders] = [tuple(name.split("/")[:-1]) for name in names]
    sets, notes = [""] * len(names), list[str]()
    while True:
        if _is_wrapped(folders):
            folders = [each[1:] for each in folders]
        elif not any(sets) and _are_sets(heads := _level(folders, 0)):
            sets, folders = _taken(folders, 0)
            notes.append(_sets_note(heads))
        else:
            break
    if not any(sets) and _are_sets(inner := _level(folders, 1)) and all(len(each) > 1 for each in folders if each):
        sets, folders = _taken(folders, 1)
        notes.append(_sets_note(inner))
    labels, more = _labels(folders)
    masked = note(
        len(left_out),
        "picture",
        f"left out, as masks or labels of others: {names_counted(Counter(map(_top, sorted(left_out))))}",
    )
    return Layout(tuple(names), tuple(labels), tuple(sets), tuple(sorted(left_out)), (*masked, *notes, *more))


def layout_of_run(names: Sequence[str], classes: Sequence[str]) -> Layout:
    """By the rule that gave a run these classes: earlier ones had a simpler rule."""
    found, earlier = find_layout(names), first_level(names)
    return earlier if found.classes != tuple(classes) == earlier.classes else found


def first_level(names: Sequence[str]) -> Layout:
    """The rule of earlier runs: every first-level subfolder is a class."""
    return Layout(tuple(names), tuple(_top(name) if "/" in name else "" for name in names), ("",) * len(names))


def class_notes(labels: Iterable[str], classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    sizes = Counter(labels)
    return [
        f"{len(classes)} classes, by subfolder: {names_counted(Counter({name: sizes[name] for name in classes}))}",
        *note(sizes[""], "picture", "left without a label, beside the class folders"),
        *few_notes(sizes, classes),
    ]


def few_notes(sizes: Mapping[str, int], classes: Sequence[str]) -> list[str]:
    """On classes that have too few pictures to be learned."""
    few = Counter({name: sizes[name] for name in classes if sizes[name] < FEW_OF_A_CLASS})
    have = f"{'has' if len(few) == 1 else 'have'} fewer than {FEW_OF_A_CLASS} pictures"
    return (
        [f"{len(few)} of {len(classes)} classes {have}, which is little to learn from: {names_counted(few)}"]
        if few
        else []
    )


def set_named(name: str) -> str:
    """Train, validation or test by the name of a folder; "" for any other."""
    lower = name.lower()
    return next((kind for kind, names in SETS.items() if re.fullmatch(f"({names.pattern}){OF_SET}", lower)), "")


def _labels(folders: Sequence[Folders]) -> tuple[list[str], list[str]]:
    """The first folder of each picture, unless such folders are dates or a camera's."""
    heads = _level(folders, 0)
    for what, pattern in (("dates", DATE), ("folders of a camera", CAMERA)):
        if len(heads) > 1 and all(map(pattern.fullmatch, heads)):
            return [""] * len(folders), [f"{names_counted(heads)}: taken for {what}, not for classes"]
    return [each[0] if each else "" for each in folders], []


def _level(folders: Iterable[Folders], depth: int) -> Counter[str]:
    return Counter(each[depth] for each in folders if len(each) > depth)


def _is_wrapped(folders: Sequence[Folders]) -> bool:
    """Whether all pictures lie in one folder, in which there are others."""
    return len({each[:1] for each in folders}) == 1 and any(len(each) > 1 for each in folders)


def _are_sets(names: Counter[str]) -> bool:
    """Training pictures, and others; or only pictures of two sets."""
    found = {set_named(name) for name in names} - {""}
    return len(found) > 1 and ("train" in found or all(map(set_named, names)))


def _taken(folders: Sequence[Folders], depth: int) -> tuple[list[str], list[Folders]]:
    """The set of each picture, and its folders without that of the set."""
    sets = [set_named(each[depth]) if len(each) > depth else "" for each in folders]
    rest = [(*each[:depth], *each[depth + 1 :]) if of else each for each, of in zip(folders, sets, strict=True)]
    return sets, rest


def _sets_note(names: Counter[str]) -> str:
    use = {"train": "training", "validation": "validation", "test": "the test"}
    sets = [f"{shown(name)} ({count:,}) for {use[set_named(name)]}" for name, count in names.items() if set_named(name)]
    return f"subfolders were taken for sets, not for classes: {', '.join(sets)}"


def _masks(names: Sequence[str]) -> set[str]:
    """Pictures in a folder such as `masks` beside a folder such as `images`."""
    folders = {tuple(name.lower().split("/")[:-1]) for name in names}
    every = {each[: depth + 1] for each in folders for depth in range(len(each))}
    beside = {each[:-1] for each in every if each[-1] in PICTURE_FOLDERS}
    masks = {each for each in every if each[-1] in MASK_FOLDERS and each[:-1] in beside}
    return {name for name in names if masks & _parents(name)} if masks else set()


def _parents(name: str) -> set[Folders]:
    parts = tuple(name.lower().split("/")[:-1])
    return {parts[: depth + 1] for depth in range(len(parts))}


def _top(name: str) -> str:
    return name.partition("/")[0]
