"""The doctor: its measures are what they say, and what is broken on purpose is found, and nothing else."""

import dataclasses

import pytest
import torch
from PIL import Image
from small import noise_pixels

from calotype.data.images import images_from_pixels
from calotype.evaluation import autoencoder as first_stage
from calotype.evaluation.autoencoder import (
    CriticHealth,
    cosine_transform,
    measure_autoencoder,
    power_spectrum,
    receptive_field_of,
)
from calotype.evaluation.diagnosis import INVISIBLE, InspectionResult, diagnose
from calotype.evaluation.features import Lite0
from calotype.nets import vae
from calotype.nets.critic import Critic, CriticConfig
from calotype.nets.vae import START_LOG_VARIANCE, Moments, Vae, VaeConfig
from calotype.recipe import AutoencoderLossConfig, OptimizerConfig
from calotype.report.inspection import write_inspection
from calotype.spaces.latent import LatentSpace
from calotype.training.objectives import AutoencoderObjective
from calotype.training.state import TrainState
from calotype.types import Batch, Rng

CHANNELS, REDUCTION = 8, 4
LITE0 = Lite0()


@pytest.fixture(scope="module")
def pictures():
    """To train on, and held out."""
    images = images_from_pixels(noise_pixels(160, 32))
    return images[:120], images[120:136]


def linear(train, change=lambda vae: None, kind=Vae):
    """The closed-form start, changed, with the statistics of what came of it."""
    torch.manual_seed(0)
    vae = kind(VaeConfig(reduction=REDUCTION, channels=CHANNELS, widths=(8,), decoder_blocks=1)).requires_grad_(False)
    vae.start_linear([train])
    change(vae)
    space = LatentSpace(vae)
    space.measure([space.moments(train)])
    return space


def found(space, images, **about):
    measures = measure_autoencoder(space, images, len(images), LITE0, thorough=False)
    return diagnose(dataclasses.replace(measures, **about))


def names(diagnosis):
    return {one.name for one in diagnosis.findings}


# -- What is wrong is found --------------------------------------------------------------------------------------------


class Limited(Vae):
    def encode(self, images):
        mean, log_variance = super().encode(images)
        return Moments(mean.clamp(-0.05, 0.05), log_variance - 6)


def scaled(factor):
    def change(vae):
        vae.linear_in.weight *= factor
        vae.linear_in.bias *= factor
        vae.linear_out.weight /= factor

    return change


def dead(vae):
    vae.linear_in.weight[-2:] = 0


def untrained(vae):
    vae.linear_out.reset_parameters()


def entangled(vae):
    """All channels follow the first: told apart only by small differences."""
    mixing = 0.02 * torch.eye(CHANNELS)
    mixing[:, 0] += 1
    into, back = vae.linear_in.weight[:, :, 0, 0], vae.linear_out.weight[:, :, 0, 0]
    vae.linear_in.weight[:, :, 0, 0], vae.linear_in.bias[:] = mixing @ into, mixing @ vae.linear_in.bias
    vae.linear_out.weight[:, :, 0, 0] = back @ mixing.inverse()


def tinted(vae):
    vae.linear_out.bias += 0.1


def not_a_number(vae):
    vae.linear_out.weight[0] = torch.nan


BROKEN = {
    "exploding scale": (scaled(1e3), False),
    "dead channels": (dead, False),
    "poor reconstruction": (untrained, True),
    "unforgiving decoder": (entangled, False),
    "colour bias": (tinted, False),
    "not finite": (not_a_number, True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_autoencoder_that_is_broken_on_purpose_gets_its_diagnosis(name, pictures):
    change, grave = BROKEN[name]
    diagnosis = found(linear(pictures[0], change), pictures[1])
    assert name in names(diagnosis) and diagnosis.fit == (not grave)
    assert name in diagnosis.verdict and ("Not fit" in diagnosis.verdict) == grave
    assert names(diagnosis) - {name} <= {"colour bias", "poor reconstruction", "dead channels"} - {name}


def test_numbers_that_are_not_finite_are_null_in_the_file_and_leave_out_the_plots(pictures, tmp_path):
    diagnosis = diagnose(measure_autoencoder(linear(pictures[0], not_a_number), pictures[1], 16, LITE0))
    facts = {"format": 1, "name": "run", "created": "", "data": "", "state": "", "device": "", "foreign": False}
    result = InspectionResult(**facts, **dict(diagnosis))
    assert result.stored()["measures"]["reconstruction"]["psnr"] is None
    plates = dict.fromkeys(("reconstructions", "channels"), Image.new("RGB", (8, 8)))
    page = write_inspection(tmp_path, result, plates).read_text()
    assert "not finite" in page and "<svg" not in page


def test_a_healthy_autoencoder_gets_none(pictures):
    diagnosis = found(linear(pictures[0]), pictures[1])
    assert diagnosis.findings == [] and diagnosis.fit and "nothing is wrong" in diagnosis.verdict
    assert diagnosis.advice == "" and 0.2 < diagnosis.score < 1


def test_a_trained_autoencoder_gets_none_and_a_better_score(pictures):
    space = trained(pictures[0], 1e-5, lambda vae: [*vae.encoder.parameters(), *vae.decoder.parameters()], 0.005)
    after = found(space, pictures[1])
    assert after.findings == [] and after.score > found(linear(pictures[0]), pictures[1]).score


def test_a_kl_of_weight_1_is_a_collapse(pictures, monkeypatch):
    """Of all that the encoder can learn, at a rate at which 60 steps do what many would."""
    monkeypatch.setattr(vae, "GAIN", 1.0)
    space = trained(pictures[0], 1.0, lambda vae: [*vae.encoder.out.parameters(), vae.linear_in.weight], 0.12, 60)
    diagnosis = found(space, pictures[1])
    assert "posterior collapse" in names(diagnosis) and not diagnosis.fit
    healthy = found(linear(pictures[0]), pictures[1])
    assert "autoencoder.losses.kl" in diagnosis.advice and diagnosis.score < 0.9 * healthy.score


def trained(images, kl, learns, rate, steps=25, **losses):
    """The closed-form start, after more steps on these weights, with their statistics."""
    space = linear(images)
    config = AutoencoderLossConfig(kl=kl, perceptual=0, adversarial=0, **losses)
    objective = AutoencoderObjective(space.vae, Critic(CriticConfig(width=4)), LITE0.network, config)
    for parameter in learns(space.vae):
        parameter.requires_grad_(True)
    train_state = TrainState(space.vae, OptimizerConfig(learning_rate=rate, clip=1e6))
    for step in range(steps):
        batch = Batch(images[16 * (step % 7) :][:16], torch.zeros(16, dtype=torch.long))
        loss = objective.losses(batch, 0.5, Rng(("trained", step)))["autoencoder"]
        train_state.add(train_state.gradients(loss.total))
        train_state.step(step / steps)
    space.requires_grad_(False).measure([space.moments(images)])
    return space


def test_channels_that_have_run_into_a_limit_are_saturated(pictures):
    diagnosis = found(linear(pictures[0], kind=Limited), pictures[1])
    assert "saturated channels" in names(diagnosis) and not diagnosis.fit


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_wrong_statistics_are_found_and_lower_the_score(factor, pictures):
    space = linear(pictures[0])
    right = found(space, pictures[1])
    space.spread *= factor
    wrong = found(space, pictures[1])
    assert "wrong statistics" in names(wrong) and not wrong.fit and wrong.score < right.score / 2
    space.spread /= factor
    space.mean += 3 * space.spread
    assert "wrong statistics" in names(found(space, pictures[1]))


@pytest.mark.parametrize(
    ("critic", "expected"),
    [
        (CriticHealth(right=0.6, gap=0.3, best=28.0, last=27.5), set()),
        (CriticHealth(right=0.6, gap=0.3, best=28.0, last=22.0), {"critic gone wild"}),
        (CriticHealth(right=0.99, gap=9.0, best=28.0, last=27.9), {"critic has won"}),
        (CriticHealth(right=0.6, gap=0.3, best=99.0, last=INVISIBLE), set()),  # flat pictures
    ],
)
def test_the_critic_is_judged_by_its_log(critic, expected, pictures):
    assert names(found(linear(pictures[0]), pictures[1], critic=critic)) == expected


def test_pictures_without_contrast_or_few_of_them_end_no_run(pictures):
    """One picture, all alike, or three: no word, or nothing grave."""
    for images in (pictures[1][:1], torch.full((5, 3, 32, 32), 0.3)):
        diagnosis = found(linear(pictures[0], untrained), images)
        assert diagnosis.findings == [] and "nothing to judge" in diagnosis.verdict
    few = found(linear(pictures[0], untrained), pictures[1][:3])
    assert few.findings and few.fit


# -- The measures are what they say ------------------------------------------------------------------------------------


def block_means(reduction=4):
    """Three channels: the mean colour of each square; and squares of it."""
    vae = Vae(VaeConfig(reduction=reduction, channels=3, widths=(8,))).requires_grad_(False)
    one = torch.zeros(1, 3, reduction, reduction)
    for channel in range(3):
        marked = one.clone()
        marked[:, channel] = 1.0
        pixels = torch.nn.functional.pixel_unshuffle(marked, reduction)[0, :, 0, 0]
        vae.linear_in.weight[channel, :, 0, 0], vae.linear_out.weight[:, channel, 0, 0] = pixels / reduction**2, pixels
    vae.linear_in.bias.zero_(), vae.linear_out.bias.zero_()
    return LatentSpace(vae)


def test_block_means_are_equivariant_and_as_good_as_themselves(pictures):
    measures = measure_autoencoder(block_means(), pictures[1], 16, LITE0, thorough=False)
    assert all(error < 1e-9 for error in measures.equivariance.values()) and len(measures.equivariance) == 3
    assert measures.reconstruction.psnr == pytest.approx(measures.reconstruction.blocks, abs=1e-3)
    assert max(map(abs, measures.colour)) < 1e-6


def test_the_channels_are_those_by_hand(pictures):
    space, images = linear(pictures[0]), pictures[1]
    mean = space.vae.encode(images).mean[:, 2].double()
    one = measure_autoencoder(space, images, 16, LITE0, thorough=False).channels[2]
    noise = 0.1**2
    assert one.raw_mean == pytest.approx(float(mean.mean()), abs=1e-6)
    assert one.signal == pytest.approx(float(mean.var(correction=0) / (mean.var(correction=0) + noise)), rel=1e-4)
    assert one.kl == pytest.approx(float(mean.square().mean() + noise - 1 - START_LOG_VARIANCE) / 2, rel=1e-4)
    assert one.std == pytest.approx(one.raw_std / float(space.spread[0, 2]), rel=1e-5) and one.stuck < 0.05


def test_the_cosine_transform_keeps_lengths_and_comes_back():
    values = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    waves = cosine_transform(values)
    assert torch.allclose(waves.square().sum(), values.square().sum())
    assert torch.allclose(cosine_transform(waves, inverse=True), values)
    assert torch.allclose(cosine_transform(torch.ones(1, 1, 4, 4)).flatten()[1:], torch.zeros(15), atol=1e-6)


def test_noise_has_a_level_spectrum_and_pictures_a_falling_one(pictures):
    noise, images = torch.randn(200, 2, 16, 16), pictures[1]
    found = power_spectrum(noise, images[:, :, ::2, ::2])
    assert all(0.9 < power < 1.1 for power in found.latents) and found.frequencies == sorted(found.frequencies)
    assert found.pictures[0] > 3 and found.pictures[-1] < 1


def test_the_receptive_field_is_that_of_the_convolutions(pictures):
    """A linear path sees its patch alone; a network, so many 3 x 3 convolutions of patches around it, and no more."""
    space = linear(pictures[0])
    latents = space.encode(images_from_pixels(noise_pixels(2, 64)))
    alone = receptive_field_of(space, latents)
    assert (alone.radius, alone.reach, alone.whole) == (0, 0, False)
    torch.nn.init.normal_(space.vae.decoder.out.weight, std=10.0)
    wide = receptive_field_of(space, latents)
    convolutions = sum(
        isinstance(one, torch.nn.Conv2d) and one.kernel_size == (3, 3) for one in space.vae.decoder.modules()
    )
    assert 0 < wide.radius <= wide.reach <= REDUCTION * convolutions


def test_the_score_does_not_depend_on_scale_order_or_parts(pictures, monkeypatch):
    """Of the encoder's values, of channels, of batches."""
    train, images = pictures
    score = found(linear(train), images).score
    turned = torch.randperm(CHANNELS)

    def reordered(vae):
        for values in (vae.linear_in.weight, vae.linear_in.bias):
            values.copy_(values[turned].clone())
        vae.linear_out.weight.copy_(vae.linear_out.weight[:, turned].clone())

    assert found(linear(train, reordered), images).score == pytest.approx(score, abs=0.02)
    monkeypatch.setattr(first_stage, "MEASURED_AT_ONCE", 5)
    assert found(linear(train), images).score == pytest.approx(score, abs=1e-5)


def test_what_is_left_falls_with_the_noise_and_a_thorough_look_sees_the_same(pictures):
    space, images = linear(pictures[0]), pictures[1]
    quick, thorough = (measure_autoencoder(space, images, 16, LITE0, one) for one in (False, True))
    assert list(quick.developed.values()) == sorted(quick.developed.values())
    assert quick.developed["0"] < 0.5 < quick.developed["1"]
    assert thorough.reconstruction.frechet > 0 and thorough.receptive_field is not None
    assert quick.reconstruction.psnr == thorough.reconstruction.psnr and quick.developed == thorough.developed
