"""What the subfolders of a folder of pictures mean: classes, sets (train, val, test), dates, or nothing."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from calotype.data.images import shown
from calotype.data.listing import first_names, names_counted, normal_form, note

Folders = tuple[str, ...]  # of a picture, from the top

NO_CLASS = "unknown"
"""In place of a set: see `UNLABELLED`."""

FEW_OF_A_CLASS = 5
SETS = {
    "train": re.compile(r"train(ing)?([-_ ]?val(id|idation)?)?"),
    "validation": re.compile(r"val(id|idation)?|dev(elopment)?"),
    "test": re.compile(r"test(ing)?|eval(uation)?|hold[-_ ]?out"),
}
OF_SET = r"[-_ ]?(set|data|images?|imgs?|pictures?|photos?|split|\d{4})?"
"""What may follow the name of a set, as in `train2017`."""
LEADING_NUMBER = re.compile(r"^\d{1,2}[-_. ]+")
"""What may stand before it, as in `1_train`."""
SET_WORDS = re.compile(r"(?<![A-Za-z])(?i:train|test|val|valid|validation|evaluation|holdout)(?![a-z])")
"""In the name of a class, where the folders may be sets after all: as in `trainA` and `testA`."""
UNLABELLED = re.compile(r"pred(ict(ion)?s?)?|unlabell?ed")
"""A folder beside sets whose pictures are of no class."""
NEVER = re.compile(r"(?!)")
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


def find_layout(names: Sequence[str], unlabelled: re.Pattern[str] = UNLABELLED) -> Layout:
    """From the names of pictures, relative to their folder, with "/". Labels are in normal form C."""
    left_out = _masks(names)
    names = [name for name in names if name not in left_out]
    folders: list[Folders] = [tuple(name.split("/")[:-1]) for name in names]
    sets, notes = [""] * len(names), list[str]()
    while True:
        if _is_wrapped([each for each, of in zip(folders, sets, strict=True) if of != NO_CLASS]):
            folders = [each[1:] for each in folders]
        elif not any(sets) and _are_sets(named := _sets_named(heads := _level(folders, 0), unlabelled)):
            sets, folders = _taken(folders, 0, named)
            notes.append(_sets_note(heads, named))
        else:
            break
    named = _sets_named(inner := _level(folders, 1), unlabelled)
    if not any(sets) and _are_sets(named) and all(len(each) > 1 for each in folders if each):
        sets, folders = _taken(folders, 1, named)
        notes.append(_sets_note(inner, named))
    sets = ["" if of == NO_CLASS else of for of in sets]
    labels, more = _labels(folders)
    masked = note(
        len(left_out),
        "picture",
        f"left out, as masks or labels of others: {names_counted(Counter(map(_top, sorted(left_out))))}",
    )
    forms = {label: normal_form(label) for label in {*labels}}
    labels = [forms[label] for label in labels]
    return Layout(tuple(names), tuple(labels), tuple(sets), tuple(sorted(left_out)), (*masked, *notes, *more))


def layout_of_run(names: Sequence[str], classes: Sequence[str]) -> Layout:
    """By the rule that gave a run these classes, with their names in its normal form: earlier ones had other rules."""
    own = {normal_form(name): name for name in classes}
    rules = (find_layout, partial(find_layout, unlabelled=NEVER), first_level)
    for layout in (rule(names) for rule in rules):
        if layout.classes == tuple(classes):
            return layout
        renamed = replace(layout, labels=tuple(own.get(normal_form(label), label) for label in layout.labels))
        if renamed.classes == tuple(classes):
            return renamed
    found = find_layout(names)
    return found if classes else replace(found, labels=("",) * len(found.names))


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
        *set_notes(classes),
        *few_notes(sizes, classes),
    ]


def set_notes(classes: Sequence[str]) -> list[str]:
    """Where names of several classes have words of sets in them, which no layout explains."""
    named = [name for name in classes if SET_WORDS.search(name)]
    kinds = {SET_WORDS.findall(name)[0].lower()[:4] for name in named}
    if len(kinds) < 2:
        return []
    return [f"{first_names(named)}: if these are sets, name the folders train, val and test, with the classes in them"]


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
    lower = LEADING_NUMBER.sub("", name.lower())
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


def _sets_named(names: Iterable[str], unlabelled: re.Pattern[str]) -> dict[str, str]:
    """The set that the name of each folder says, "" for none, `NO_CLASS` for that of pictures without a class.

    Where no name says one, words that all begin or end with, as in `seg_train` and `seg_test`, do not count.
    """
    plain = {name: name for name in names}
    if len(plain) > 1 and not any(map(set_named, plain)):
        start = re.sub(r"[^-_ ]*$", "", os.path.commonprefix([*plain]))  # noqa: RUF071 (names, not paths)
        end = re.sub(r"[^-_ ]*$", "", os.path.commonprefix([name[::-1] for name in plain]))  # noqa: RUF071
        plain = {name: name[len(start) : len(name) - len(end)] for name in plain}
    return {name: NO_CLASS if unlabelled.fullmatch(word.lower()) else set_named(word) for name, word in plain.items()}


def _are_sets(named: Mapping[str, str]) -> bool:
    """Training pictures, and others; or only pictures of two sets."""
    found = {*named.values()} - {"", NO_CLASS}
    return len(found) > 1 and ("train" in found or all(named.values()))


def _taken(folders: Sequence[Folders], depth: int, named: Mapping[str, str]) -> tuple[list[str], list[Folders]]:
    """The set of each picture, and its folders without that of the set, nor one of the same set right in it; none for
    pictures of `NO_CLASS`."""
    kinds = [named[each[depth]] if len(each) > depth else "" for each in folders]
    inner: dict[str, set[str]] = {}
    for of, each in zip(kinds, folders, strict=True):
        inner.setdefault(of, set()).add(each[depth + 1] if len(each) > depth + 1 else "")
    twice = {of for of, names in inner.items() if of and {named.get(name) or set_named(name) for name in names} == {of}}
    rest = []
    for of, each in zip(kinds, folders, strict=True):
        below = each[depth + (2 if of in twice else 1) :]
        rest.append(() if of == NO_CLASS else (*each[:depth], *below) if of else each)
    return kinds, rest


def _sets_note(names: Counter[str], named: Mapping[str, str]) -> str:
    use = {"train": "training", "validation": "validation", "test": "the test", NO_CLASS: "training without a label"}
    sets = [f"{shown(name)} ({count:,}) for {use[named[name]]}" for name, count in names.items() if named[name]]
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
