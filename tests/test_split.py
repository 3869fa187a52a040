"""Three sets of pictures: disjoint, stratified, the same under other names, with near-duplicates on one side."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small import noise_pixels, write_pictures

from calotype.data import seen
from calotype.data import split as module
from calotype.data.duplicates import near_duplicate_pairs, near_duplicates, perceptual_hash, perceptual_hashes
from calotype.data.folder import HashedFile, assemble, read_folder
from calotype.data.split import DEFAULT, Split, SplitConfig, SplitFile, quotas, recorded_split, stratified_split
from calotype.settings import parse_recipe, parse_split, read_overrides
from calotype.types import NULL_LABEL, UserError

SIDE = 16


def photographs(count, size=SIDE, seed=0):
    return noise_pixels(count, size, seed)


def split_of(sizes, config=DEFAULT, seed=0):
    """Of classes of these sizes, mixed; all pictures differ."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    names = [f"class {label}" for label in range(len(sizes))]
    return stratified_split(photographs(len(labels)), labels, names, config), labels


def crossing(split, prints):
    """Pictures of one set that look like a picture of another, by the pair of sets."""
    sets = {name: inside.numpy() for name, inside in split.sets.items()}
    pairs = [("test", "train"), ("test", "validation"), ("validation", "train")]
    return [int(near_duplicates(prints[sets[one]], prints[sets[other]]).sum()) for one, other in pairs]


def soft_photographs(count, side=48):
    """Soft spots of colour: what stays itself when it is shrunk."""
    spots = np.random.default_rng(1).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in spots]


def copy_of(picture):
    """Smaller, as a JPEG, at its old size."""
    picture.resize((36, 36)).save(buffer := io.BytesIO(), "JPEG", quality=75)
    return Image.open(buffer).convert("RGB").resize(picture.size, Image.Resampling.LANCZOS)


def pixels_of(pictures):
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).contiguous()


# -- How many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [
    (2, [1, 1, 0]), (3, [2, 1, 0]), (4, [2, 1, 1]), (10, [8, 1, 1]), (19, [17, 1, 1]), (20, [17, 1, 2]),
    (59, [52, 2, 5]), (200, [170, 10, 20]),
])  # fmt: skip
def test_a_tenth_is_for_the_test_and_a_twentieth_for_validation(count, expected):
    split, _ = split_of([count])
    assert list(split.counts.values()) == expected
    assert torch.equal(sum(inside.int() for inside in split.sets.values()), torch.ones(count, dtype=torch.int))


def test_large_folders_keep_no_more_than_is_needed():
    assert module.set_sizes(SplitConfig(), 100_000, 50_000) == (500, 2000)


@pytest.mark.parametrize("seed", range(30))
def test_the_sets_are_disjoint_and_every_class_is_trained_on(seed):
    """Random sizes, many of them 1, 2 and 3: at least half of every class is in the training set."""
    rng = np.random.default_rng(seed)
    sizes = [*rng.choice([1, 2, 3, 4, 9, 30], rng.integers(1, 12)).tolist(), 2]
    split, labels = split_of(sizes, seed=seed)
    assert torch.equal(sum(inside.int() for inside in split.sets.values()), torch.ones(len(labels), dtype=torch.int))
    for label, size in enumerate(sizes):
        assert 2 * int(split.train[labels == label].sum()) >= size
    validation, test = module.set_sizes(SplitConfig(), len(labels), sum(size // 2 for size in sizes))
    assert (split.counts["validation"], split.counts["test"]) == (validation, test)


@pytest.mark.parametrize("seed", range(10))
def test_quotas_are_within_one_of_their_share_where_there_is_room(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 100, 20)
    total = int(rng.integers(1, sizes.sum() // 2))
    shares = quotas(sizes, sizes, total)
    assert shares.sum() == total and (abs(shares - total * sizes / sizes.sum()) < 1).all()
    room = rng.integers(0, 5, 20)
    shares = quotas(sizes, room, total)
    assert shares.sum() == min(total, room.sum()) and (shares <= room).all()


def test_each_set_has_the_classes_in_proportion_and_those_without_a_label_too():
    labels = torch.tensor([0] * 200 + [1] * 100 + [NULL_LABEL] * 100)[torch.randperm(400)]
    split = stratified_split(photographs(400), labels, ("a", "b"))
    for name, total in (("test", 40), ("validation", 20)):
        found = [int((labels[split.sets[name]] == label).sum()) for label in (0, 1, NULL_LABEL)]
        assert found == [total // 2, total // 4, total // 4]


def test_the_notes_say_how_many_and_which_classes_are_too_small():
    split, _ = split_of([40, 1, 2])
    assert split.notes[0] == "37 pictures to train on, 2 for validation, 4 for the test"
    assert "2 classes are too small to be tested: class 1 1, class 2 2" in split.notes


def test_a_single_picture_is_in_all_three_sets():
    split, _ = split_of([1])
    assert all(inside.tolist() == [True] for inside in split.sets.values())
    assert split.notes == ("there is only 1 picture: it is trained on, and held out as well",)


def test_where_every_class_has_one_picture_all_are_trained_on_and_no_set_is_empty():
    split, _ = split_of([1] * 40)
    assert list(split.counts.values()) == [40, 2, 4] and "no class has more than 1" in split.notes[0]


# -- Which -------------------------------------------------------------------------------------------------------------


def test_names_and_order_of_files_make_no_difference(tmp_path):
    write_pictures(tmp_path / "one", 40, classes=("a", "b", "c"))
    for index, path in enumerate(sorted((tmp_path / "one").rglob("*.png"), key=lambda path: path.name[::-1])):
        target = tmp_path / "two" / {"a": "z", "b": "y", "c": "x"}[path.parent.name] / f"{index:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    one, two = (read_folder(tmp_path / name, SIDE) for name in ("one", "two"))
    assert torch.equal(one.pixels, two.pixels) and not torch.equal(one.labels, two.labels)
    assert all(torch.equal(inside, two.split.sets[name]) for name, inside in one.split.sets.items())


def test_a_picture_more_changes_little():
    """At most three of a set: its size changes by one, and the new picture takes the place of another."""
    pixels, rng = photographs(80), np.random.default_rng(0)
    digests = [f"{number:08}" for number in rng.permutation(10**6)[:80]]

    def kept(count):
        ordered = sorted(range(count), key=lambda index: digests[index])
        split = stratified_split(pixels[ordered], torch.full((count,), NULL_LABEL))
        return [{ordered[row] for row in inside.nonzero().flatten().tolist()} for inside in split.sets.values()]

    for count in range(60, 79):
        for before, after in zip(kept(count), kept(count + 1), strict=True):
            assert len(before ^ after) <= 3


def test_near_duplicates_lie_on_one_side():
    """Resized and recompressed copies of 40 of 100 pictures, in another class."""
    pictures = soft_photographs(100)
    every = pixels_of([*pictures, *map(copy_of, pictures[:40])])
    labels = torch.cat([torch.arange(100) % 2, torch.arange(40) % 2 + 1])
    turn = torch.randperm(140)
    prints = perceptual_hashes(every[turn])
    assert near_duplicates(perceptual_hashes(every[100:]), perceptual_hashes(every[:40])).all()
    first = torch.arange(140) < 14
    assert any(crossing(Split(~first, first, first), prints))  # a split that does not look cuts pairs
    split = stratified_split(every[turn], labels[turn], ("a", "b", "c"))
    assert crossing(split, prints) == [0, 0, 0]
    assert split.counts["test"] >= 14 and split.counts["validation"] >= 7 and len(split.notes) == 1


def test_where_every_picture_has_a_copy_pairs_stay_together():
    pixels = photographs(30)
    every = torch.cat([pixels, pixels.roll(1, 0) // 2 * 2])[torch.randperm(60)]
    split = stratified_split(every, torch.full((60,), NULL_LABEL))
    assert crossing(split, perceptual_hashes(every)) == [0, 0, 0]
    assert split.counts["test"] == 6 and split.counts["validation"] == 4


def test_equal_pictures_without_edges_lie_on_one_side():
    """A blank picture has no print, so it is like none but an equal one."""
    grey = torch.arange(60, dtype=torch.uint8).repeat(2).reshape(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    split = stratified_split(grey, torch.full((120,), NULL_LABEL))
    sets = torch.stack([*split.sets.values()]).int().argmax(0)
    assert torch.equal(sets[:60], sets[60:]) and min(split.counts.values()) > 0


def test_chains_of_alike_pictures_are_not_cut():
    """Not only those that a test picture is like, but those that they are like: likeness leads on."""
    groups = module.Groups(perceptual_hashes(photographs(4)), most=3, limit=100)
    groups.similar = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2], 3: [3]}
    assert groups.of(2) == [0, 1, 2] and groups.of(3) == [3]
    assert module.Groups(groups.hashes, 2, 100).of(3) == [3]
    groups.most = 2
    assert groups.of(0) is None


def test_where_most_pictures_look_alike_the_sets_are_as_large_and_the_notes_say_so():
    one = photographs(1).expand(200, -1, -1, -1).clone()
    one[:, :, 0, 0] = torch.arange(200, dtype=torch.uint8)[:, None]
    split = stratified_split(one, torch.full((200,), NULL_LABEL))
    assert list(split.counts.values()) == [170, 10, 20]
    assert any("near-duplicates could not be kept in one set" in note for note in split.notes)


def test_few_pictures_are_compared_with_all():
    """The cost of a folder without copies: its candidates, each once."""
    compared = []
    pixels = photographs(400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "similar_indices", lambda some, others, most: compared.extend(some) or [[]] * len(some))
        stratified_split(pixels, torch.full((400,), NULL_LABEL))
    assert len(compared) == 60


@pytest.mark.parametrize("size", [4, 16, 23, 64])
def test_prints_of_many_are_those_of_each(size):
    pixels = torch.from_numpy(np.random.default_rng(size).integers(0, 256, (37, 3, size, size), dtype=np.uint8))
    alone = [perceptual_hash(np.ascontiguousarray(one.permute(1, 2, 0).numpy())) for one in pixels]
    assert (perceptual_hashes(pixels) == np.stack(alone)).all()
    assert near_duplicate_pairs(alone) == []


# -- Settings ----------------------------------------------------------------------------------------------------------


def test_there_may_be_no_test_set():
    split, _ = split_of([100], SplitConfig(test=0))
    assert list(split.counts.values()) == [95, 5, 0]
    assert split.notes == ("95 pictures to train on, 5 for validation, 0 for the test",)


def test_fractions_are_settings_of_a_recipe():
    settings = read_overrides(["split.test=0.2", "split.validation=0.3"])
    assert parse_split(settings) == parse_recipe(settings).split == SplitConfig(test=0.2, validation=0.3)
    assert list(split_of([100], parse_split(settings))[0].counts.values()) == [50, 30, 20]


@pytest.mark.parametrize("wrong", ["split.validation=0", "split.test=-0.1", "split.test=0.46", "split.tset=0.1"])
def test_wrong_fractions_are_refused_in_one_line(wrong):
    with pytest.raises(UserError, match="split") as error:
        parse_split(read_overrides([wrong]))
    assert "\n" not in str(error.value)


# -- Runs --------------------------------------------------------------------------------------------------------------


def test_a_recorded_split_is_the_same_again_and_other_pictures_are_split_anew():
    split, labels = split_of([40, 30])
    found, pixels = SplitFile(**split.as_json()), photographs(70).flip(0)  # other prints do not matter
    again = recorded_split(found)(pixels, labels)
    assert all(torch.equal(inside, again.sets[name]) for name, inside in split.sets.items())
    assert (
        recorded_split(found)(pixels[:60], labels[:60]).as_json()
        == stratified_split(pixels[:60], labels[:60]).as_json()
    )


def test_pictures_are_split_as_they_are_put_together():
    sources = [HashedFile(f"{place:05}", f"{place % 2}/x") for place in range(40)]
    pictures = assemble(photographs(40).numpy(), sources, ("0", "1"), SIDE, ["first"])
    assert pictures.notes == ("first", *pictures.split.notes)
    indices = (pictures.train_indices, pictures.validation_indices, pictures.test_indices)
    assert torch.cat(indices).sort().values.tolist() == list(range(40))
    some = pictures.at(torch.tensor([3, 1]), pictures.pixels[[3, 1]])
    assert some.split.test.tolist() == pictures.split.test[[3, 1]].tolist()


@pytest.mark.parametrize("named", [(), ["test"] * 10 + ["train"] * 60], ids=["by fractions", "by subfolders"])
def test_the_pixels_of_a_large_set_are_hashed_once_and_no_part_of_them_is_copied(monkeypatch, named):
    pixels, labels = photographs(70), torch.zeros(70, dtype=torch.long)
    hashes, hashed = perceptual_hashes(pixels), []
    for place in (module, seen):
        monkeypatch.setattr(place, "perceptual_hashes", lambda part: hashed.append(len(part)) or hashes)
    old = seen.Seen(hashes[20:40], hashes[40:42], hashes[42:44])
    for rule in (stratified_split, seen.continued_split(old, SplitConfig())):
        rule(pixels, labels, named=named)
    assert hashed == [70, 70]
