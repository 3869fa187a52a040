import pytest
import torch
from test_gaussian import filled, unconditional

from calotype.spaces.tiling import half_overlapping, in_windows
from calotype.types import Condition


def contrary(part):
    """Says of every place something that hangs on the whole window."""
    return torch.sin(part) * part.mean((1, 2, 3), keepdim=True) + torch.arange(part.shape[-1])


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("more", [0, 1, 3, 8, 21])
def test_windows_count_1_together_and_half_of_each_is_another_s(side, more):
    total, windows = torch.zeros(side + more), half_overlapping(side + more, side)
    for part, _, share in windows:
        assert part.stop - part.start == side and (share > 0).all()
        total[part] += share
    assert torch.allclose(total, torch.ones(side + more))
    starts = torch.tensor([part.start for part, *_ in windows])
    assert starts[0] == 0 and starts[-1] == more and (starts.diff() > 0).all() and (2 * starts.diff() <= side + 1).all()


def test_one_window_is_the_prior_itself_to_the_bit():
    canvas = torch.randn(2, 3, 6, 6)
    assert torch.equal(in_windows(contrary, canvas, 6), contrary(canvas))


@pytest.mark.parametrize("shape", [(4, 9), (7, 5), (12, 12)])
def test_the_blend_is_nearest_to_the_means_of_all_windows(shape):
    """The gradient of the sum of squares is 0 there; a place counts more the nearer it lies to a window's middle."""
    canvas, ramp = torch.randn(2, 3, *shape), torch.tensor([1.0, 2.0, 2.0, 1.0])
    blend = in_windows(contrary, canvas, 4).requires_grad_()
    wrong = torch.zeros(())
    for rows, *_ in half_overlapping(shape[0], 4):
        for columns, *_rest in half_overlapping(shape[1], 4):
            away = blend[..., rows, columns] - contrary(canvas[..., rows, columns])
            wrong = wrong + (ramp[:, None] * ramp * away**2).sum()
    (gradient,) = torch.autograd.grad(wrong, blend)
    assert gradient.abs().max() < 1e-3 and wrong > 1


def test_what_moves_by_half_a_window_is_blended_as_before():
    """Away from the border: so an answer hangs on what is around a place, and not on where on the canvas it lies."""
    canvas = torch.randn(1, 1, 8, 40)
    here, there = (in_windows(contrary, one, 8) for one in (canvas, canvas.roll(4, 3)))
    assert torch.allclose(there[..., 12:32], here[..., 8:28], atol=1e-5)
    assert not torch.allclose(in_windows(contrary, canvas.roll(3, 3), 8)[..., 11:31], here[..., 8:28], atol=0.1)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_where_no_place_knows_of_another_the_closed_form_is_exact_on_every_canvas(sigma):
    variance, mean, noisy = 0.3, 0.7, torch.randn(2, 2, 5, 11, dtype=torch.float64)
    mixture = filled(torch.full((1, 32), mean), torch.zeros(1, 0, 32), torch.zeros(1, 0), torch.tensor([variance]))
    found = mixture.mean(noisy, torch.full((2,), sigma).double(), Condition(unconditional(2)))
    assert torch.allclose(found, mean + variance / (variance + sigma**2) * (noisy - mean), atol=1e-6)


def test_a_canvas_of_repeated_pictures_is_known_in_each_of_them():
    """Two pictures, each a component of its own: windows that see one say which it is, those between blend."""
    one, other = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    means = torch.stack([one, other]).flatten(1)
    mixture = filled(means, torch.zeros(2, 0, 48), torch.zeros(2, 0), torch.full((2,), 0.01))
    canvas = torch.cat([one, one], 2)[None]
    found = mixture.mean(
        canvas + 0.1 * torch.randn_like(canvas), torch.full((1,), 0.1).double(), Condition(unconditional(1))
    )
    assert (found - canvas)[..., [0, 7]].abs().max() < 0.35 and (found - canvas)[..., 0].abs().mean() < 0.1
