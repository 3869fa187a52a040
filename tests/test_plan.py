import json
import math
from dataclasses import replace

import numpy as np
import pytest
from small import CPU, machine, noise_pictures, recipe

from calotype.cli import seconds
from calotype.learning.objectives import FirstStageConfig
from calotype.learning.train import Clock, every
from calotype.plan import (
    AUTOENCODER_SHARE,
    ENOUGH_IMAGES,
    REACHED,
    Choice,
    Measurement,
    Pace,
    Plan,
    allot,
    check_sizes,
    choose_backbone,
    fit_images,
    phase_ends,
    propose,
    seconds_an_image,
)
from calotype.recipe import check, merge
from calotype.vocabulary import UserError

PHASES = {
    "one": [(1.0, 0.01)],
    "dear at the end": [(0.6, 0.01), (0.75, 0.013), (1.0, 0.02)],
    "dear soon": [(0.2, 0.01), (1.0, 0.05)],
    "cheap at the end": [(0.5, 0.03), (1.0, 0.01)],
}
phases = pytest.mark.parametrize("phases", PHASES.values(), ids=PHASES)


class Measured(Measurement):
    """A machine whose costs are known."""

    def __init__(self, sample=0.05, encode=0.001):
        self.device, self._sample, self._encode = CPU, sample, encode

    def sample(self):
        return self._sample

    def encode(self):
        return self._encode

    def parameters(self):
        return {"autoencoder": 1000, "denoiser": 2000}

    def closed_form(self):
        return 500


def allotted(left, sample=0.05, count=1000, **changes):
    images = {"autoencoder": {"images": 0}, "denoiser": {"images": 0}}
    plan = Plan(recipe(**merge(images, changes)), "a machine", 999.0)
    plan.phases = {"autoencoder": PHASES["dear at the end"], "denoiser": [(1.0, 0.004)]}
    allot(plan, Measured(sample), count, left)
    return plan


# -- The budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20s", 20), ("10m", 600), ("10min", 600), ("1h", 3600), ("1h30m", 5400), ("1h30m5s", 5405), ("90", 90),
        ("2d", 172800), ("1d1h1m1s", 90061), (" 5M ", 300), ("1H", 3600), ("001m", 60), ("600s", 600),
    ],
)  # fmt: skip
def test_a_budget_is_read(text, expected):
    assert seconds(text) == expected and isinstance(seconds(text), float)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "0h0m", "-5m", "1.5h", "m", "h", "5x", "5m1h", "1h 30m", "5mm", "ten", "1e3", "inf", "5m\n5"],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match=r"--budget is .*, but must be a time such as 20s, 10m or 1h30m"):
        seconds(text)


@pytest.mark.parametrize("left", [10.0, 60.0, 600.0, 36_000.0])
@pytest.mark.parametrize("sample", [0.001, 0.05, 1.0])
def test_the_parts_of_the_plan_fill_the_time_that_is_left(left, sample):
    """Up to the last batch of each leg."""
    plan = allotted(left, sample)
    spent = sum(plan.predicted["seconds"].values())
    a_batch = sum(plan.predicted["seconds_a_step"].values())
    assert spent <= left + 1e-6 or all(steps == 1 for steps in plan.predicted["steps"].values())
    assert spent > left - 1.05 * a_batch - 1e-6
    assert plan.paced == ["autoencoder", "denoiser"]


def test_the_first_leg_gets_its_share_of_the_training():
    predicted = allotted(3600.0).predicted["seconds"]
    share = predicted["autoencoder"] / (predicted["autoencoder"] + predicted["denoiser"])
    assert share == pytest.approx(AUTOENCODER_SHARE, abs=0.001)


@pytest.mark.parametrize("fixed", ["autoencoder", "denoiser"])
def test_a_leg_of_fixed_length_leaves_the_rest_to_the_other(fixed):
    plan = allotted(600.0, **{fixed: {"images": 8000}})
    (other,) = {"autoencoder", "denoiser"} - {fixed}
    assert plan.paced == [other] and getattr(plan.recipe, fixed).images == 8000
    assert sum(plan.predicted["seconds"].values()) == pytest.approx(600.0, abs=0.2)
    assert getattr(plan.recipe, other).images == plan.predicted["images"][other] > 0


def test_legs_of_fixed_length_are_what_they_are():
    fixed = {"autoencoder": {"images": 400}, "denoiser": {"images": 900}}
    for left in (-5.0, 1.0, 1e5):
        plan = allotted(left, **fixed)
        assert plan.paced == [] and plan.predicted["images"] == {"autoencoder": 400, "denoiser": 900}


@pytest.mark.parametrize("sample", [0.01, 0.3])
def test_more_time_never_means_fewer_pictures(sample):
    """Neither to train on nor to show at the end."""
    jumps = [count * sample / 0.04 for count in range(4, 50)]  # where another picture can be shown
    lefts = sorted([*np.geomspace(1, 3000, 50), *(left * slightly for left in jumps for slightly in (0.999, 1.001))])
    plans = [allotted(float(left), sample) for left in lefts]
    for count in (
        [plan.final_count for plan in plans],
        [plan.predicted["images"]["autoencoder"] for plan in plans],
        [plan.predicted["images"]["denoiser"] for plan in plans],
    ):
        assert count == sorted(count) and count[0] < count[-1]


@pytest.mark.parametrize("left", [-100.0, 0.0, 0.5])
def test_no_time_at_all_still_trains_a_batch(left):
    plan = allotted(left)
    assert plan.predicted["steps"] == {"autoencoder": 1, "denoiser": 1} and plan.final_count == 4


@pytest.mark.parametrize("batch", [1, 4, 7, 32])
def test_images_are_whole_batches(batch):
    for images in (0.0, 0.3, 1.0, 6.99, 7.0, 31.9, 1000.5):
        fitted = fit_images(images, batch)
        assert fitted % batch == 0 and fitted >= batch
        assert fitted == batch or images - batch < fitted <= images


# -- Pace --------------------------------------------------------------------------------------------------------------


def paced(phases, speed, seconds, batch=16, due_every=3.0):
    """Seconds that a leg takes on a machine on which a step costs `speed(clock, phase)` times what was measured."""
    clock = Clock(fit_images(seconds / seconds_an_image(phases), batch), batch, 0)
    pace, due = Pace(phases, seconds), every(due_every)
    while clock.images_seen < clock.total:
        phase, cost = next((number, cost) for number, (end, cost) in enumerate(phases) if clock.progress < end)
        clock.images_seen += batch
        clock.seconds += cost * batch * speed(clock, phase)
        if due(clock):
            pace(clock)
    assert clock.images_seen == clock.total and clock.total % batch == 0
    return clock


@pytest.mark.parametrize("speed", [1 / 1.5, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("seconds", [60.0, 600.0])
@phases
def test_a_leg_keeps_to_its_time_on_a_faster_or_slower_machine(phases, speed, seconds):
    clock = paced(phases, lambda clock, phase: speed, seconds)
    assert clock.seconds == pytest.approx(seconds, rel=0.03)
    assert clock.total == pytest.approx(seconds / seconds_an_image(phases) / speed, rel=0.06)


@pytest.mark.parametrize("wrong", [0.7, 1.4])
@phases
def test_a_leg_keeps_to_its_time_where_the_last_phase_was_measured_wrong(phases, wrong):
    clock = paced(phases, lambda clock, phase: wrong if phase == len(phases) - 1 else 1.0, 600.0)
    assert clock.seconds == pytest.approx(600.0, rel=0.03)


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.5), (1.5, 1.0)])
@phases
def test_a_leg_keeps_to_its_time_where_the_machine_gets_busy_half_way(phases, before, after):
    clock = paced(phases, lambda clock, phase: before if clock.seconds < 300 else after, 600.0)
    assert clock.seconds == pytest.approx(600.0, rel=0.03)


@phases
def test_the_work_done_is_the_share_of_the_time(phases):
    """By summing step by step what a leg costs."""
    pace, total = Pace(phases, 1.0), 1000
    costs = [next(cost for end, cost in phases if step / total < end) for step in range(total)]
    for step in range(0, total + 1, 50):
        assert pace.done(step / total) == pytest.approx(sum(costs[:step]) / sum(costs), abs=0.01)
    assert seconds_an_image(phases) == pytest.approx(sum(costs) / total, rel=0.01)


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({}, [0.5, 0.6, 0.75, 1.0]),
        ({"perceptual": 0.0}, [0.6, 0.75, 1.0]),
        ({"adversarial": 0.0, "perceptual_start": 0.3}, [0.3, 1.0]),
        ({"adversarial": 0.0, "perceptual": 0.0}, [1.0]),
        ({"critic_start": 0.0, "perceptual": 0.0}, [0.75, 1.0]),
        ({"critic_start": 0.0, "critic_used": 0.0, "perceptual_start": 0.0}, [1.0]),
        ({"critic_start": 1.0, "critic_used": 1.0, "perceptual": 0.0}, [1.0]),
        ({"critic_start": 0.6, "critic_used": 0.2, "perceptual": 0.0}, [0.6, 1.0]),
    ],
)
def test_the_phases_end_where_the_losses_make_steps_dearer(config, ends):
    assert phase_ends(FirstStageConfig(**config)) == ends


# -- Sizes -------------------------------------------------------------------------------------------------------------


def proposed(size, budget=600.0, flops=1e11, **changes):
    fast = replace(machine(), flops=flops)
    settings, choices = propose(noise_pictures(), fast, size, budget)
    return check(merge(settings, changes)), choices


@pytest.mark.parametrize("size", [8, 10, 16, 20, 31, 32, 47, 48, 64, 100, 128, 191, 192, 250, 256, 500, 512, 777, 1024])
def test_a_proposal_fits_or_says_which_size_would(size):
    """And the sizes that it names do fit, and are the next ones."""
    made, _ = proposed(size)
    try:
        check_sizes(made)
    except UserError as error:
        said = str(error).replace("px", "").split("try ")[1].split(" or ")
        assert str(error).startswith(f"size is {size}, but ") and 1 <= len(said) <= 2
        assert min(map(int, said)) < size < max(map(int, said)) or len(said) == 1
        for other in said:
            check_sizes(proposed(int(other))[0])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_a_size_too_small_for_the_networks_is_refused(size):
    with pytest.raises(UserError, match=r"(try|at least) \d+"):
        check_sizes(proposed(size)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": {"crop": 6}}, "autoencoder.crop is 6, but must be at most 16 and a multiple of 4"),
        ({"autoencoder": {"crop": 20}}, "autoencoder.crop is 20, but must be at most 16"),
        ({"autoencoder": {"crop": 4, "critic": {"depth": 3}}}, "critic.depth=2"),
        ({"size": 20, "denoiser": {"backbone": {"patch": 2}}}, "size is 20, .* a multiple of 8; try 16 or 24"),
        ({"denoiser": {"backbone": {"kind": "unet", "multiples": [1, 1, 1, 1]}}}, "size is 16, .* of 32; try 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_would(changes, message):
    with pytest.raises(UserError, match=message):
        check_sizes(recipe(**changes))


def test_more_time_or_a_faster_machine_never_means_a_smaller_network():
    sizes = []
    for budget in np.geomspace(10, 1e6, 40):
        (made, _), (same, _) = proposed(64, budget, 1e11), proposed(64, 10 * budget, 1e10)
        assert made == same
        backbone = made.denoiser.backbone
        sizes.append(backbone.width**2 * backbone.depth)
    assert sizes == sorted(sizes) and len(set(sizes)) > 3


@pytest.mark.parametrize("operations", [1e10, 1e15, 1e17, 1e19])
def test_the_network_is_the_largest_that_sees_enough(operations):
    backbone, why = choose_backbone(8, operations)
    images = operations / (72 * backbone["width"] ** 2 * backbone["depth"] * 64)
    assert images >= ENOUGH_IMAGES or backbone["width"] == 128
    assert f"{images:,.0f} pictures" in why and 0 < REACHED < 1


def test_a_plan_survives_being_written():
    plan = allotted(60.0)
    plan.choices, plan.notes = [Choice("what", "value", "why")], ["a note"]
    again = Plan.from_json(plan.recipe, json.loads(json.dumps(plan.as_json())))
    assert again == plan and Pace(again.phases["autoencoder"], 1.0).done(0.6) == pytest.approx(0.6 * 0.01 / 0.01295)


def test_what_comes_after_a_leg():
    plan = allotted(600.0)
    told = plan.predicted["seconds"]
    assert plan.after("denoiser") == told["samples"]
    assert math.isclose(plan.after("autoencoder"), told["latents"] + told["denoiser"] + told["samples"])
