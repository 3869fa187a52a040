"""What subfolders mean, in the layouts that people have."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from small import Keeper

from calotype.cli.commands import check_data
from calotype.cli.options import CheckOptions
from calotype.data.folder import read_folder
from calotype.data.layout import find_layout
from calotype.data.split import stratified_split
from calotype.model import find_label
from calotype.types import UserError


def write(folder, *places, count=6):
    """Pictures in each of these subfolders."""
    for number, place in enumerate(places):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index}.png")
    return folder


CLASSES = {
    "a folder a class": (["cat", "dog"], ("cat", "dog")),
    "sets with classes": (["train/cat", "train/dog", "val/cat", "val/dog"], ("cat", "dog")),
    "classes with sets": (["cat/Train", "cat/Test", "dog/Train", "dog/Test"], ("cat", "dog")),
    "a wrapper": (["archive/images/cat", "archive/images/dog"], ("cat", "dog")),
    "a wrapper about sets": (["data/train2017/cat", "data/train2017/dog", "data/valid2017/cat"], ("cat", "dog")),
    "sets of images": (["train/images", "val/images"], ()),
    "images in sets": (["images/train", "images/val"], ()),
    "sets alone": (["training_set", "test_set"], ()),
    "a set in itself": (
        ["training_set/training_set/cat", "training_set/training_set/dog", "test_set/test_set/cat"],
        ("cat", "dog"),
    ),
    "a train in a set": (["train/train", "train/bus", "test/train", "test/bus"], ("bus", "train")),
    "words before a set": (
        [f"seg_{part}/seg_{part}" for part in ("train/sea", "train/wood", "test/sea", "pred")],
        ("sea", "wood"),
    ),
    "words after a set": (["train-v1.2/sea", "train-v1.2/wood", "test-v1.2/sea"], ("sea", "wood")),
    "numbered sets": (["1_train/cat", "1_train/dog", "2_val/cat"], ("cat", "dog")),
    "training and validation": (["trainval/cat", "trainval/dog", "test/cat"], ("cat", "dog")),
    "trains": (["bullet_train", "steam_train"], ("bullet_train", "steam_train")),
    "pictures without a class": (["train/1", "train/2", "test/1", "unlabeled"], ("1", "2")),
    "images in sets beside pictures without a class": (
        ["train/images/1", "train/images/2", "test/images/1", "pred"],
        ("1", "2"),
    ),
    "two forms of a name": (["train/cho\u0301", "train/dog", "test/ch\u00f3"], ("ch\u00f3", "dog")),
    "years": (["2021", "2022/05", "2023-07 Rome"], ()),
    "days": (["2023-05-01", "2023_05_02", "20230503"], ()),
    "a camera": (["DCIM/100CANON", "DCIM/101CANON"], ()),
    "digits": ([str(digit) for digit in range(10)], tuple(map(str, range(10)))),
    "a class called train": (["bus", "car", "train"], ("bus", "car", "train")),
    "masks": (["images/cat", "images/dog", "masks/cat", "masks/dog"], ("cat", "dog")),
    "copies of systems": (["cat", "dog", "__MACOSX/cat", "@eaDir", ".thumbnails"], ("cat", "dog")),
    "one folder": (["only"], ()),
}


@pytest.mark.parametrize(("places", "classes"), CLASSES.values(), ids=CLASSES)
def test_classes_are_found_in_the_usual_layouts(tmp_path, places, classes):
    pictures = read_folder(write(tmp_path, *places, count=2), 16)
    assert pictures.classes == classes


def test_classes_with_words_of_sets_in_their_names_have_a_note(tmp_path):
    pictures = read_folder(write(tmp_path, "trainA", "trainB", "testA", "testB", count=2), 16)
    assert pictures.classes == ("testA", "testB", "trainA", "trainB")
    assert any("testA, testB, trainA, trainB: if these are sets" in note for note in pictures.notes)
    for name, *places in ("trains", "bullet_train", "steam_train"), ("words", "contest", "interval", "train"):
        others = read_folder(write(tmp_path / name, *places, count=2), 16)
        assert not any("if these are sets" in note for note in others.notes)


def test_sets_of_subfolders_are_held_out_and_named(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    pictures = read_folder(tmp_path, 16)
    for row, original in enumerate(pictures.originals):
        assert bool(pictures.split.validation[row]) == ("val" in original.path.parts)
    assert pictures.split.counts == {"train": 11, "validation": 12, "test": 1}
    assert "subfolders were taken for sets, not for classes: train (12) for training, val (12) for validation" in (
        pictures.notes
    )
    again = read_folder(tmp_path, 16)
    assert again.split.as_json() == pictures.split.as_json()


def test_both_sets_may_be_named_and_pictures_beside_them_are_trained_on():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), np.uint8))
    named = ["", "train", "validation", "test"] * 10
    split = stratified_split(pixels, torch.full((40,), -1), named=named)
    assert {name: [named[row] for row in rows.nonzero()] for name, rows in split.sets.items()} == {
        "train": ["", "train"] * 10, "validation": ["validation"] * 10, "test": ["test"] * 10,
    }  # fmt: skip


def test_a_class_without_a_training_picture_is_no_label(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "val/cat", "val/cow")
    pictures = read_folder(tmp_path, 16)
    assert pictures.classes == ("cat", "dog") and (pictures.labels == -1).sum() == 6


def test_a_run_keeps_the_labels_that_an_earlier_rule_gave_it(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    assert read_folder(tmp_path, 16, classes=("train", "val")).classes == ("train", "val")
    assert read_folder(tmp_path, 16, classes=("cat", "dog")).classes == ("cat", "dog")
    assert read_folder(write(tmp_path / "new", "all/a", "all/b"), 16, classes=()).classes == ()
    twice = write(tmp_path / "twice", "train/train/a", "train/train/b", "test/test/a")
    assert read_folder(twice, 16, classes=()).classes == ()
    names = ("1", "2", "unlabeled")
    assert (
        read_folder(write(tmp_path / "rest", "train/1", "train/2", "test/1", "unlabeled"), 16, classes=names).classes
        == names
    )
    names = ("cho\u0301", "dog")
    assert read_folder(write(tmp_path / "form", "ch\u00f3", "dog"), 16, classes=names).classes == names


def test_pictures_of_one_class_are_of_one_label_whatever_form_its_name_has(tmp_path):
    write(tmp_path, "train/cho\u0301", "train/dog", "test/ch\u00f3")
    pictures = read_folder(tmp_path, 16)
    assert {pictures.labels[row].item() for row in pictures.test_indices} == {0}
    assert find_label("cho\u0301", pictures.classes) == find_label("ch\u00f3", ("cho\u0301",)) == 0


def test_every_class_keeps_a_training_picture_and_small_ones_are_named(tmp_path):
    write(tmp_path, "common", count=30)
    write(tmp_path, "x", "rare", count=1)
    (tmp_path / "x" / "0.png").unlink()
    for _ in range(3):
        pictures = read_folder(tmp_path, 16)
        trained = {pictures.classes[pictures.labels[row]] for row in pictures.train_indices}
        assert trained == {"common", "rare"}
    assert "1 of 2 classes has fewer than 5 pictures, which is little to learn from: rare 1" in pictures.notes


def test_the_check_says_what_subfolders_were_taken_for(tmp_path):
    console = Keeper()
    check_data(CheckOptions(write(tmp_path, "2021", "2022", "val"), 16), console)
    assert any("labels       3: 2021 6, 2022 6, val 6" in line for line in console.printed)
    console = Keeper()
    check_data(CheckOptions(write(tmp_path / "sets", "train", "test"), 16), console)
    printed = "\n".join(console.printed)
    assert "train (6) for training" in printed and "6 in their subfolders will be kept for testing" in printed


def test_the_check_of_a_single_picture_promises_no_test_set(tmp_path):
    folder = write(tmp_path, "only", count=1)
    console = Keeper()
    check_data(CheckOptions(folder, 16), console)
    assert "no class has more than 1 picture, so all are trained on" in console.printed[-1]


def test_masks_and_copies_of_systems_are_counted(tmp_path):
    notes = find_layout(["images/1.png", "masks/1.png", "Masks/2.png"]).notes
    assert notes == ("2 pictures were left out, as masks or labels of others: Masks 1, masks 1",)
    pictures = read_folder(write(tmp_path, "a", "a/.hidden", "__MACOSX", "thumbnails"), 16)
    assert any("2 folders were not opened" in note and "__MACOSX 1" in note for note in pictures.notes)
    assert "1 hidden item was passed over" in pictures.notes


@pytest.mark.skipif(os.name == "nt", reason="such files do not exist there")
def test_what_is_no_file_is_named_and_a_broken_link_is_no_folder(tmp_path):
    write(tmp_path, ".")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder").symlink_to("nowhere")
    pictures = read_folder(tmp_path, 16)
    assert len(pictures) == 6
    assert any("2 pictures were a pipe, a device or a broken link" in note for note in pictures.notes)
    with pytest.raises(UserError, match="a link that leads nowhere"):
        read_folder(tmp_path / "folder", 16)
