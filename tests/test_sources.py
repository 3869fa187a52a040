import pytest
import torch
from safetensors.torch import load_file
from small import CPU, first_leg, noise_cache, noise_pictures, recipe

from calotype.data import latents
from calotype.data.images import images_from_pixels
from calotype.data.latents import Sides, cache_key, cache_latents
from calotype.data.sources import LatentSource, PictureSource, order
from calotype.diffusion.stage import shrunk
from calotype.spaces.latent import LatentSpace
from calotype.types import Rng, no_progress

RNG = Rng(("sources",))


def numbered(count=10, size=8):
    """Pictures whose every pixel tells its picture, row and column."""
    pictures = noise_pictures(count, size)
    pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    pixels[:, 1], pixels[:, 2] = torch.arange(size)[:, None], torch.arange(size)
    return type(pictures)(pixels, torch.arange(count), (), pictures.split, "numbered")


def picture_source(crop=8, flip=False, factor=1):
    pictures = numbered()
    return PictureSource(pictures, pictures.train_indices, RNG, CPU, crop, flip, factor)


def latent_source(flip=True):
    cache = noise_cache(recipe())
    cache.moments[:, :, 0] = torch.arange(10)[:, None, None]  # the first channel tells the picture
    return LatentSource(type(cache)(cache.moments[: 1 + flip]), torch.arange(10), torch.arange(2, 10), RNG, CPU)


SOURCES = {
    "pictures": picture_source,
    "crops": lambda: picture_source(5),
    "mirrored crops": lambda: picture_source(5, True),
    "latents": lambda: latent_source(False),
    "mirrored latents": latent_source,
}
sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def pixels(batch):
    return ((batch.clean + 1) * 127.5).round().long()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_epoch_is_a_permutation_of_its_own(count):
    epochs = order(count, 0, 6 * count, RNG).reshape(6, count)
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand(6, -1))
    assert count < 7 or len(epochs.unique(dim=0)) == 6


@pytest.mark.parametrize("count", [1, 7, 50])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_order_is_that_of_the_epochs_one_after_the_other(count, batch):
    epochs = torch.cat([RNG.at("epoch", epoch).permutation(count) for epoch in range(100 * batch // count + 1)])
    for start in (0, 5, 2 * batch, 99 * batch):
        assert torch.equal(order(count, start, batch, RNG), epochs[start : start + batch])


def test_an_epoch_is_permuted_once_and_not_for_every_batch(monkeypatch):
    """Of two sources in turn, as where there are pictures of two shapes."""
    drawn, real = [], Rng.permutation
    monkeypatch.setattr(Rng, "permutation", lambda self, count: drawn.append(count) or real(self, count))
    rng = Rng(("once",))
    for start in range(0, 300, 4):
        first = order(100, start, 4, rng)
        first += 1  # what is handed out is the caller's own
        order(60, start, 4, rng)
    assert sorted(drawn) == [60] * 5 + [100] * 3
    assert torch.equal(order(100, 0, 4, rng), real(rng.at("epoch", 0), 100)[:4])


def test_each_picture_is_as_likely_in_each_place():
    places = torch.stack([order(4, 4 * epoch, 4, RNG) for epoch in range(2000)])
    counts = torch.nn.functional.one_hot(places).sum(0)
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


@sources
def test_the_order_does_not_depend_on_the_batch(source):
    """Nor on crops and mirrors; the pictures that are held out never come."""
    whole = source().batch(0, 24).labels
    assert torch.equal(whole, picture_source().batch(0, 24).labels if source is not latent_source else whole)
    parts = [source().batch(start, 3).labels for start in range(0, 24, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole.reshape(3, 8).sort(1).values, torch.arange(2, 10).expand(3, -1))


@sources
def test_a_batch_is_a_function_of_the_images_seen(source):
    first, second = source(), source()
    second.batch(4, 6), torch.randn(3)
    for start in (8, 0, 17):
        one, other = first.batch(start, 6), second.batch(start, 6)
        assert torch.equal(one.clean, other.clean) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(("crop", "flip"), [(8, False), (8, True), (5, False), (5, True), (1, True)])
def test_a_crop_is_a_square_of_its_picture(crop, flip):
    """Mirrored or not, with its label; and all crops and both sides come about."""
    batches = [picture_source(crop, flip).batch(9 * epoch, 9) for epoch in range(40)]
    corners, mirrored = set(), 0
    for batch in batches:
        for (picture, row, column), label in zip(pixels(batch), batch.labels, strict=True):
            assert (picture == label).all() and picture.shape == (crop, crop)
            top, left = row.min(), column.min()
            steps = column[0] - left
            assert (row == top + torch.arange(crop)[:, None]).all() and (column == column[0]).all()
            assert steps.tolist() in (list(range(crop)), list(range(crop))[::-1])
            mirrored += bool(crop > 1 and steps[0])
            corners.add((int(top), int(left)))
    assert corners == {(top, left) for top in range(9 - crop) for left in range(9 - crop)}
    assert abs(mirrored - 180) < 5 * 90**0.5 if flip and crop > 1 else mirrored == 0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("crop", "factor"), [(8, 2), (4, 2), (4, 4), (2, 2), (6, 3)])
def test_each_crop_comes_with_its_shrunk_picture(crop, factor, flip):
    """Its corner lies on a pixel of the smaller picture, and it is the crop of the smaller picture that is shrunk."""
    source, corners = picture_source(crop, flip, factor), set()
    whole = shrunk(
        images_from_pixels(source.pictures.pixels[..., : 8 // factor * factor, : 8 // factor * factor]), factor
    )
    for epoch in range(20):
        batch = source.batch(9 * epoch, 9)
        assert torch.equal(batch.low_res, shrunk(batch.clean, factor))
        for (_, row, column), small, label in zip(pixels(batch), batch.low_res, batch.labels, strict=True):
            top, left = int(row.min()), int(column.min())
            assert top % factor == left % factor == 0
            corners.add((top, left))
            part = whole[label, :, top // factor :, left // factor :][:, : crop // factor, : crop // factor]
            assert torch.allclose(small.sort(-1).values, part.sort(-1).values, atol=1e-6)
    assert len(corners) == ((8 - crop) // factor + 1) ** 2


def test_without_a_factor_there_is_no_smaller_picture():
    assert picture_source().batch(0, 4).low_res is None


@pytest.mark.parametrize("flip", [False, True])
def test_latents_come_with_their_label_from_either_side(flip):
    source = latent_source(flip)
    batches = [source.batch(8 * epoch, 8) for epoch in range(20)]
    assert all(torch.equal(batch.clean[:, 0].amax((1, 2)).long(), batch.labels) for batch in batches)
    seen = [batch.clean[index] for batch in batches for index in range(8) if batch.labels[index] == 4]
    sides = [sum(torch.equal(one, side[4].float()) for one in seen) for side in source.cache.moments]
    assert sum(sides) == 20 and min(sides) > 2 * flip
    first = [
        [torch.equal(batch.clean[0], side[batch.labels[0]].float()) for batch in batches]
        for side in source.cache.moments
    ]
    assert all(map(any, first))  # the place in the batch does not tell the side


# -- The cache of latents ----------------------------------------------------------------------------------------------


def space():
    space = LatentSpace(first_leg().trained)
    return space.requires_grad_(False)


def cached(space, folder, pictures=None, flip=True, batch=32):
    pictures = pictures or noise_pictures()
    return cache_latents(space, pictures.pixels, pictures.content, Sides(flip), folder, CPU, no_progress, batch)


def test_what_is_cached_is_what_is_encoded(tmp_path):
    """To the precision of float16, of both sides, whatever the batch."""
    space_, pictures = space(), noise_pictures()
    images = images_from_pixels(pictures.pixels)
    expected = torch.stack([space_.moments(images), space_.moments(images.flip(-1))])
    for batch in (32, 3):
        found = cached(space_, tmp_path / str(batch), batch=batch).moments
        assert found.dtype == torch.float16 and torch.allclose(found.float(), expected, rtol=2**-10, atol=1e-6)
    assert torch.equal(cached(space_, tmp_path / "one side", flip=False).moments[0], found[0])


def test_equal_keys_are_not_encoded_twice(tmp_path, monkeypatch):
    space_ = space()
    first = cached(space_, tmp_path)
    monkeypatch.setattr(latents, "encode", lambda *arguments: pytest.fail("encoded again"))
    assert torch.equal(cached(space_, tmp_path).moments, first.moments)
    assert torch.equal(load_file(next(tmp_path.glob("latents-*")))["moments"], first.moments)


@pytest.mark.parametrize("change", ["a weight", "the pictures", "flip"])
def test_another_key_is_encoded_anew_and_replaces_the_old_file(tmp_path, change):
    space_ = space()
    cached(space_, tmp_path)
    (before,) = tmp_path.iterdir()
    if change == "a weight":
        space_.vae.decoder.layers[0].bias.data[0] += 1e-7
    pictures = noise_pictures(seed=1) if change == "the pictures" else None
    found = cached(space_, tmp_path, pictures, flip=change != "flip")
    (after,) = tmp_path.iterdir()
    assert before != after and len(found.moments) == 2 - (change == "flip")


def test_the_key_changes_with_each_weight_and_with_nothing_else():
    vae = space().vae
    keys = {cache_key(vae, "content", Sides())}
    for value in vae.state_dict().values():
        value[(-1,) * value.ndim] += 1
        keys.add(cache_key(vae, "content", Sides()))
    assert len(keys) == 1 + len(vae.state_dict())
    assert cache_key(vae.eval(), "content", Sides()) == cache_key(vae.train(), "content", Sides()) in keys


def test_a_damaged_cache_is_encoded_anew(tmp_path):
    space_ = space()
    expected = cached(space_, tmp_path).moments.clone()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(cached(space_, tmp_path).moments, expected)


def test_the_moments_come_in_parts():
    cache = noise_cache(recipe())
    chosen = torch.tensor([7, 1, 2])
    parts = list(cache.of(chosen, batch=2))
    assert [len(part) for part in parts] == [2, 1, 2, 1]
    assert torch.equal(torch.cat(parts), cache.moments[:, chosen].flatten(0, 1))


def test_latents_have_mean_0_and_spread_1_after_measuring():
    """In every channel, over pictures, places and the posterior's own noise."""
    space_, cache = space(), noise_cache(recipe())
    space_.measure(part.float() for part in cache.of(torch.arange(10), batch=4))
    moments = cache.moments.flatten(0, 1).float()
    draws = torch.cat([space_.sample(moments, RNG.at(draw)) for draw in range(50)]).transpose(0, 1).flatten(1)
    assert draws.mean(1).abs().max() < 0.01 and (draws.std(1) - 1).abs().max() < 0.01


def test_decoding_undoes_the_measured_mean_and_spread():
    space_, images = space(), images_from_pixels(noise_pictures().pixels)
    plain = space_.decode(space_.moments(images).chunk(2, 1)[0])
    space_.mean.normal_(), space_.spread.uniform_(0.5, 2)
    moments = space_.moments(images)
    certain = torch.cat([moments.chunk(2, 1)[0], torch.full_like(moments[:, :3], -100.0)], 1)
    assert torch.allclose(space_.decode(space_.sample(certain, RNG)), plain, atol=1e-5)
