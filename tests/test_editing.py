from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small import Keeper, be_quick, opened, train_small
from test_cli import match, tell  # noqa: F401
from test_stage import LABELS, PLAIN, RNGS, SAMPLINGS, chain, conditions_of  # noqa: F401

import calotype
from calotype.cli import commands
from calotype.cli.options import SampleOptions
from calotype.data.images import cut, images_from_pil, pils_from_images
from calotype.diffusion import init as editing
from calotype.diffusion.guidance import switched, with_known_part
from calotype.diffusion.init import RESAMPLING, Between, canvas, feathered, image_to_image, inpainting, slerp
from calotype.diffusion.samplers import SAMPLERS, ancestral, dpm_solver, last_steps, resampled
from calotype.diffusion.schedules import DdpmTable, Flow, Karras
from calotype.diffusion.stage import Sampling, for_all, generate, last, noise_each
from calotype.files import read_json
from calotype.types import Rng, UserError

PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
HALF = (torch.arange(16) >= 8).float().expand(1, 1, 16, 16)
KINDS = ("augmented", "truncated", "ancestral")
samplings = pytest.mark.parametrize("samplings", [SAMPLINGS[kind] for kind in KINDS], ids=KINDS)


@pytest.fixture
def once_again(monkeypatch):
    monkeypatch.setattr(editing, "RESAMPLING", (0.5,))


@pytest.fixture
def model(finished):
    return calotype.load(finished)


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory):
    """A model without a closed form."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        return calotype.load(train_small(tmp_path_factory.mktemp("nothing"), "denoiser.prior=none"))


def a_picture(width=16, height=16, seed=0):
    pixels = Rng((seed, "a picture")).uniform(height, width, 3).mul(255).to(torch.uint8).numpy()
    return Image.fromarray(pixels)


def a_mask(width=16, height=16):
    """White on the right."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def pixels(picture):
    return np.asarray(picture).astype(int)


# -- Denoisers and samplers around others ------------------------------------------------------------------------------


def test_the_known_part_is_kept_to_the_bit_and_the_rest_is_denoised():
    known, noisy = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    anew = (torch.arange(4) > 1).float().expand(1, 1, 4, 4)
    denoised = with_known_part(lambda noisy, sigma: noisy / sigma, known, anew)(noisy, 3.0)
    assert torch.equal(denoised[..., :2], known[..., :2]) and torch.equal(denoised[..., 2:], noisy[..., 2:] / 3.0)


def test_a_picture_is_handed_over_at_its_own_sigma():
    one, other = (lambda noisy, sigma, value=value: torch.full_like(noisy, value) for value in (1.0, 2.0))
    both = switched(one, other, torch.tensor([0.0, 1.0, 5.0]))
    denoised = [both(torch.zeros(3, 1, 1, 1), sigma).flatten().tolist() for sigma in (0.5, 1.0, 2.0)]
    assert denoised == [[1, 2, 2], [1, 2, 2], [1, 1, 2]]


def test_the_known_part_is_as_noisy_as_the_rest_at_every_step():
    known, sigmas, noise = torch.ones(1, 1, 1, 20_000), Karras().grid(12), torch.randn(1, 1, 1, 20_000)
    denoise = with_known_part(lambda noisy, sigma: noisy, known, torch.zeros(1, 1, 1, 1))
    for sampler in SAMPLERS.values():
        states = list(sampler(denoise, known + sigmas[0] * noise, sigmas, lambda: torch.randn(1, 1, 1, 20_000)))
        for state, sigma in zip(states, sigmas[1:], strict=True):
            assert (state - known).std().item() == pytest.approx(sigma, rel=0.03, abs=1e-5)


def field(count=1500, side=16):
    """A smooth Gaussian field of one row: pictures, `E[x | noisy]`, the mean and the spread of its right half."""
    places = torch.arange(side, dtype=torch.float64)
    covariance = torch.exp(-((places[:, None] - places) ** 2) / 18) + 0.02 * torch.eye(side, dtype=torch.float64)
    pictures = torch.randn(count, side, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    left, right = slice(0, side // 2), slice(side // 2, side)
    regression = covariance[right, left] @ torch.linalg.inv(covariance[left, left])
    spread = (covariance[right, right] - regression @ covariance[left, right]).diagonal().sqrt()

    def denoise(noisy, sigma):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(side, dtype=torch.float64))
        return (noisy.flatten(1) @ gain).reshape(noisy.shape)

    return pictures.reshape(count, 1, 1, side), denoise, pictures[:, left] @ regression.T, spread


def inpainted(sampler, pictures, denoise):
    anew = (torch.arange(16, dtype=torch.float64) >= 8).double().reshape(1, 1, 1, 16)
    sigmas = Flow().grid(24)

    def fresh():
        return torch.randn(pictures.shape, dtype=torch.float64)

    start = torch.lerp(pictures, torch.zeros_like(pictures), anew) + sigmas[0] * fresh()
    return last(sampler(with_known_part(denoise, pictures, anew), start, sigmas, fresh)).flatten(1)


def test_the_new_part_is_drawn_given_the_known_one():
    """Far from the seam at once; beside it the errors of one way down are halved by those that follow."""
    pictures, denoise, mean, spread = field()
    errors, jumps = [], []
    for sampler in (dpm_solver, resampled(ancestral, RESAMPLING)):
        made = inpainted(sampler, pictures, denoise)
        assert torch.equal(made[:, :8], pictures.flatten(1)[:, :8])
        errors.append(((made[:, 8:] - mean).square().mean(0).sqrt() / spread).tolist())
        jumps.append((made[:, 8] - made[:, 7]).std().item())
    true_jump = (pictures[..., 8] - pictures[..., 7]).std().item()
    assert errors[0][0] > 2.3 and jumps[0] > 1.9 * true_jump
    assert max(errors[1]) < 1.5 and min(errors[1]) > 0.8 and jumps[1] < 1.15 * true_jump


def test_going_up_again_puts_on_just_the_noise_that_is_missing():
    point, sigmas, seen = torch.zeros(1, 1, 1, 20_000), Karras().grid(10), []

    def denoise(noisy, sigma):
        seen.append((noisy.std().item(), sigma))
        return point

    for until in (0.0, 0.5):
        path = [*(sigma for sigma in sigmas if sigma > until), until]
        noise = lambda: torch.randn(1, 1, 1, 20_000)  # noqa: E731
        end = last(resampled(ancestral, (0.8, 0.3))(denoise, path[0] * noise(), path, noise))
        assert end.std().item() == pytest.approx(until, rel=0.03)
    assert len(seen) > 30 and all(spread == pytest.approx(sigma, rel=0.03) for spread, sigma in seen)


def test_what_is_inpainted_is_denoised_once_more_when_it_is_finished():
    """Not the states to which noise is added again."""
    sigmas, calls = Karras().grid(10), []

    def denoise(noisy, sigma):
        calls.append(sigma)
        return noisy / 2

    start = torch.ones(1, 1, 1, 4)
    for until, final in ((0.0, [0.3]), (0.5, [])):
        path = [*(sigma for sigma in sigmas if sigma > until), until]
        counts = []
        for level in (0.0, 0.3):
            sampling = Sampling(sampler="ancestral", final_denoising=level)
            calls.clear()
            counts.append(len(list(sampling.algorithm((0.8, 0.3))(denoise, start, path, lambda: 0 * start))))
        assert counts[0] == counts[1] and [sigma for sigma in calls if sigma == 0.3] == final
        assert not final or calls[-1] == 0.3


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.6, 6), (0.01, 1)])
def test_the_last_steps(share, count):
    grid = Karras().grid(10)
    assert last_steps(grid, share) == grid[-1 - count :]


# -- Starts ------------------------------------------------------------------------------------------------------------


@samplings
def test_little_strength_gives_the_picture_back(chain, samplings):  # noqa: F811
    """Through all stages, whose last step has almost no noise."""
    fine = [one.model_copy(update={"steps": 100, "augmentation": 0.0}) for one in samplings]
    made = generate(chain, LABELS, fine, RNGS, starts=for_all(image_to_image(PICTURE, 16, 0.001)))
    assert (made - PICTURE).abs().max() < 0.05


@samplings
def test_full_strength_is_plain_sampling_to_the_bit(chain, samplings):  # noqa: F811
    plain = generate(chain, LABELS, samplings, RNGS)
    assert torch.equal(
        generate(chain, LABELS, samplings, RNGS, starts=for_all(image_to_image(PICTURE, 16, 1.0))), plain
    )
    assert not torch.equal(
        generate(chain, LABELS, samplings, RNGS, starts=for_all(image_to_image(PICTURE, 16, 0.7))), plain
    )


@samplings
def test_the_more_strength_the_further_from_the_picture(chain, samplings):  # noqa: F811
    steady = [one.model_copy(update={"steps": 10}) for one in samplings]
    made = [
        generate(chain, LABELS, steady, RNGS, starts=for_all(image_to_image(PICTURE, 16, one)))
        for one in (0.1, 0.5, 1.0)
    ]
    away = [(images - PICTURE).square().mean().item() for images in made]
    assert away == sorted(away) and away[0] < away[2] / 2


@samplings
def test_an_edited_picture_does_not_depend_on_its_batch(chain, samplings, once_again):  # noqa: F811
    start = inpainting(PICTURE, HALF, 16, image_to_image(PICTURE, 16, 0.8))
    together = generate(chain, LABELS, samplings, RNGS, starts=for_all(start))
    assert torch.equal(together, generate(chain, LABELS, samplings, RNGS, starts=for_all(start)))
    alone = generate(chain, LABELS[1:2], samplings, RNGS[1:2], starts=for_all(start))
    assert torch.allclose(alone, together[1:2], atol=1e-4) and not torch.allclose(together[0], together[1], atol=0.1)


@samplings
def test_every_stage_keeps_what_it_knows_and_sees_nothing_under_the_mask(chain, samplings, once_again):  # noqa: F811
    start = inpainting(PICTURE, HALF, 16, image_to_image(PICTURE, 16, 1.0))
    made = generate(chain, LABELS, samplings, RNGS, starts=for_all(start))
    assert torch.equal(made[..., :8], PICTURE[..., :8].expand(3, -1, -1, -1))
    other = torch.where(HALF > 0, -PICTURE, PICTURE)
    start = inpainting(other, HALF, 16, image_to_image(other, 16, 1.0))
    assert torch.equal(generate(chain, LABELS, samplings, RNGS, starts=for_all(start)), made)


@pytest.mark.parametrize("reach", [1, 2, 4, 8])
def test_a_soft_edge_is_1_on_the_mask_and_exactly_0_beyond_its_reach(reach):
    soft = feathered(torch.nn.functional.pad(torch.ones(1, 1, 8, 8), [16] * 4), reach)[0, 0, 20]
    far = reach + reach % 2
    assert (soft[16:24] == 1).all() and (soft[: 16 - far] == 0).all() and (soft[24 + far :] == 0).all()
    assert (soft[16 - far : 17].diff() > 0).all()


@pytest.mark.parametrize(("height", "width"), [(16, 32), (8, 16), (48, 16)])
def test_a_chain_makes_pictures_of_another_size(chain, height, width):  # noqa: F811
    made = generate(chain, LABELS, SAMPLINGS["plain"], RNGS, starts=for_all(canvas(height, width, 16)))
    assert made.shape == (3, 3, height, width) and made.isfinite().all()
    assert torch.equal(
        generate(chain, LABELS, SAMPLINGS["plain"], RNGS, starts=for_all(canvas(16, 16, 16))),
        generate(chain, LABELS, SAMPLINGS["plain"], RNGS),
    )


# -- Between two seeds -------------------------------------------------------------------------------------------------


def test_slerp_keeps_the_norm_and_goes_evenly_from_end_to_end():
    one, other = torch.randn(2, 3, 8, 8)
    other = other * one.norm() / other.norm()
    way = [slerp(one, other, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert torch.equal(way[0], one) and torch.equal(way[-1], other)
    assert torch.stack(way).flatten(1).norm(dim=1).numpy() == pytest.approx(float(one.norm()), rel=1e-5)
    steps = torch.stack(way).diff(dim=0).flatten(1).norm(dim=1)
    assert steps.numpy() == pytest.approx(float(steps[0]), rel=1e-4)
    assert torch.allclose(slerp(one, one, 0.3), one, atol=1e-5)


def test_between_two_seeds_all_noise_is_between():
    one, other = Rng((1,)), Rng((2,))
    found = Between(one, other, 0.3).at(4, "start").normal(3, 8, 8)
    assert torch.equal(found, slerp(one.at(4, "start").normal(3, 8, 8), other.at(4, "start").normal(3, 8, 8), 0.3))
    assert torch.equal(noise_each([Between(one, other, 0.0)], (3, 2, 2)), noise_each([one], (3, 2, 2)))


@pytest.mark.parametrize("labels", [None, ("a", "b"), ("b", "a")])
def test_the_first_and_the_last_frame_are_plain_samples(model, labels):
    frames = model.interpolate((3, 4), 5, labels, guidance=3.0)
    ends = [model.sample(1, label, seed, guidance=3.0)[0] for seed, label in zip((3, 4), labels or "aa", strict=True)]
    for frame, end in zip((frames[0], frames[-1]), ends, strict=True):
        assert np.abs(pixels(frame) - pixels(end)).max() <= 1
    assert len({frame.tobytes() for frame in frames}) == 5


def test_labels_change_along_a_short_table_of_noise(model):
    table = DdpmTable(length=20)
    stage = replace(model.stages[0], schedule=table)
    sampling = model.samplings[0].model_copy(update={"sampler": "euler", "steps": 4})
    short = replace(model, stages=(stage,), samplings=(sampling,))
    frames = short.interpolate((3, 4), 3, ("a", "b"))
    assert np.abs(pixels(frames[0]) - pixels(short.sample(1, "a", 3)[0])).max() <= 1


# -- Models ------------------------------------------------------------------------------------------------------------


def test_pixels_beyond_the_edge_are_kept_to_the_bit(model):
    picture, reach = a_picture(), model.reach
    first, second = model.redraw(picture, mask=a_mask(), count=2)
    for made in (first, second):
        assert (pixels(made)[:, : 8 - reach] == pixels(picture)[:, : 8 - reach]).all()
        assert (pixels(made)[:, 8:] != pixels(picture)[:, 8:]).any()
    assert reach == 4 and (pixels(first) != pixels(second)).any()
    assert np.abs(pixels(model.redraw(picture, mask=a_mask())[0]) - pixels(first)).max() <= 1
    assert model.redraw(picture, mask=a_mask(), seed=1)[0].tobytes() != first.tobytes()


def test_little_strength_gives_what_the_autoencoder_makes_of_the_picture(model):
    space, picture = model.stages[0].space, a_picture()
    (through,) = pils_from_images(space.decode(space.encode(images_from_pil(picture))))
    (made,) = model.redraw(picture, 1e-6, steps=1000)
    assert np.abs(pixels(made) - pixels(through)).mean() < 1.5


def test_a_forgotten_picture_leaves_a_plain_sample(model):
    plain = model.redraw(a_picture(seed=1), 1.0, label="b", seed=5)[0]
    assert plain.tobytes() == model.sample(1, "b", 5)[0].tobytes()


def test_the_middle_of_a_picture_is_cut_out_and_one_of_the_size_stays_as_it_is():
    picture = a_picture(40, 16)
    assert cut(picture, 16, 16).tobytes() == picture.crop((12, 0, 28, 16)).tobytes()
    assert cut(picture, 40, 16).tobytes() == picture.tobytes() and cut(picture, 32, 8).size == (32, 8)


@pytest.mark.parametrize("size", [(16, 24), (32, 16), (64, 64)])
@pytest.mark.parametrize("start", ["closed form", "nothing"])
def test_pictures_of_another_size(model, from_nothing, size, start):
    """Positions go on, and so do windows: a larger picture has the colours of those that were learned."""
    one = from_nothing if start == "nothing" else model
    learned, made = (np.stack([*map(pixels, one.sample(8, size=some, guidance=1.0))]) for some in (None, size))
    assert made.shape == (8, size[1], size[0], 3)
    assert made.mean() == pytest.approx(learned.mean(), abs=25) and made.std() == pytest.approx(learned.std(), rel=0.4)
    assert one.sample(1, size=(16, 16))[0].tobytes() == one.sample(1)[0].tobytes()
    assert one.redraw(a_picture(50, 30), 0.5, size=size)[0].size == size


def test_a_size_that_cannot_be_is_refused(model, from_nothing):
    """A closed form knows nothing of a part of its pictures."""
    assert from_nothing.sample(1, size=(8, 4))[0].size == (8, 4)
    for size in ((18, 16), (0, 16), (1024, 16), (-16, 16)):
        with pytest.raises(UserError, match="must be multiples of 4 from 4 to 128"):
            from_nothing.sample(1, size=size)
        with pytest.raises(UserError, match="must be multiples of 4 from 16 to 128"):
            model.sample(1, size=size)
    with pytest.raises(UserError, match=r"size is 24x12, but the sides .* from 16 to 128"):
        model.sample(1, size=(24, 12))


# -- The command line --------------------------------------------------------------------------------------------------


def saved(folder):
    """A picture, masks and a file that is none of these, by name."""
    black = Image.new("L", (16, 16))
    for name, picture in {"picture": a_picture(), "mask": a_mask(), "small": a_mask(8, 8), "black": black}.items():
        picture.save(folder / f"{name}.png")
    (folder / "words.png").write_text("words")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask", "mask.png"], "--mask is for image-to-image, but there is no picture; add --from PICTURE"),
        (["--strength", "0.5"], "--strength is for image-to-image"),
        (["--from", "picture.png", "--strength", "0"], "strength is 0.0, but must be above 0 and at most 1"),
        (["--from", "picture.png", "--strength", "1.1"], "strength is 1.1, but must be above 0"),
        (["--from", "picture.png", "--strength", "nan"], "strength is nan, but must be above 0"),
        (["--from", "none.png"], "none.png cannot be read as a picture: no such file"),
        (["--from", "words.png"], "words.png cannot be read as a picture: found text"),
        (["--from", "picture.png", "--mask", "words.png"], "words.png cannot be read as a picture"),
        (["--from", "picture.png", "--mask", "small.png"], "the mask is 8x8, but the picture is 16x16; make them"),
        (["--from", "picture.png", "--mask", "black.png"], "the mask has no white, so nothing would change"),
        (["--from", "picture.png", "--label", "zebra"], "label 'zebra' is unknown"),
        (["--from", "picture.png", "--count", "0"], "count is 0"),
        (["--size", "64"], "--size is '64', but must be width x height in pixels, as in 256x384"),
        (["--size", "-4x8"], "--size is '-4x8', but must be"),
        (
            ["--size", "24x12"],
            "size is 24x12, but the sides of this model's pictures must be multiples of 4 from 16",
        ),
    ],
)
def test_a_mistake_in_editing_is_reported_in_one_line(tell, finished, tmp_path, monkeypatch, words, message):  # noqa: F811
    monkeypatch.chdir(saved(tmp_path))
    code, _, wrong = tell("sample", finished, "--out", "out", *words)
    assert code == 2 and len(wrong) == 1 and not (tmp_path / "out").exists()
    match(message, wrong[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "way.mp4"], "--out way.mp4 must end in .webp or .gif"),
        (["--out", "way.gif", "--seeds", "1"], "--seeds is '1', but must be two, with a comma"),
        (["--out", "way.gif", "--seeds", "1,x"], "must be two whole numbers"),
        (["--out", "way.gif", "--labels", "a,zebra"], "label 'zebra' is unknown"),
        (["--out", "way.gif", "--frames", "1"], "frames is 1, but there must be at least 2"),
        (["--out", "way.gif", "--prompts", "a, b"], "--prompts is 'a, b', but must be two, with a bar"),
        (["--out", "way.gif", "--prompts", "a|b", "--prompt", "c"], "prompts are its two ends; leave one out"),
        (["--out", "way.gif", "--prompts", "a|b"], "trained without captions, so it reads no prompt"),
    ],
)
def test_a_mistake_in_interpolating_is_reported_in_one_line(tell, finished, tmp_path, monkeypatch, words, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, _, wrong = tell("interpolate", finished, *words)
    assert code == 2 and len(wrong) == 1 and [*tmp_path.iterdir()] == []
    match(message, wrong[0])


def test_versions_of_a_picture_from_the_command_line(tell, finished, model, tmp_path):  # noqa: F811
    saved(tmp_path)
    out = tmp_path / "out"
    more = ["--mask", tmp_path / "mask.png", "--strength", "0.8"]
    code, printed, _ = tell("sample", finished, "--from", tmp_path / "picture.png", *more, "--count", "3", "--out", out)
    assert code == 0 and "3 pictures in" in printed[-1]
    made, expected = opened(out), model.redraw(a_picture(), 0.8, a_mask(), count=3)
    names = [f"0-{index:04d}-picture.png" for index in range(3)]
    assert sorted(made) == [*names, "grid.png"]
    assert [made[name].tobytes() for name in names] == [one.tobytes() for one in expected]
    about = read_json(out / "samples.json")
    assert about["strength"] == "0.8" and about["sampling"]["sampler"] == "ancestral"
    with pytest.raises(UserError, match="add --from"):
        commands.sample(SampleOptions(finished, 1, mask=tmp_path / "mask.png"), Keeper())


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".PNG"])
def test_the_file_of_a_way_has_all_its_frames(tell, finished, tmp_path, suffix):  # noqa: F811
    out = tmp_path / f"way{suffix}"
    code, printed, _ = tell(
        "interpolate", finished, "--seeds", "3,-4", "--labels", "a,b", "--frames", "5", "--out", out
    )
    assert code == 0 and printed[-1] == f"5 frames in {out}" and [*tmp_path.iterdir()] == [out]
    file = Image.open(out)
    assert getattr(file, "n_frames", 1) == (1 if suffix == ".PNG" else 5)
    assert file.size == ((5 * 18 - 2, 16) if suffix == ".PNG" else (16, 16))
