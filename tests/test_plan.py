import json
import math
import re
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from small import CASCADE, CPU, HYBRID, SETTINGS, be_quick, machine, noise_pictures, recipe
from typer import BadParameter

from calotype.bounds import MAX_IMAGES
from calotype.cli.quantities import seconds
from calotype.data.images import images_from_pixels, pixels_from_images
from calotype.diffusion.stage import shrunk
from calotype.nets.dit import DitConfig
from calotype.nets.unet import UnetConfig
from calotype.planning import choose, make, measure
from calotype.planning.chains import LEAST_ENLARGED, choose_chain
from calotype.planning.choose import (
    CODED_STEP,
    Resources,
    choose_enlarger,
    choose_vae,
    code_length,
    forward_flops,
    measure_residuals,
    measure_sigma_data,
    propose,
    three_digits,
)
from calotype.planning.count import Counted
from calotype.planning.laws import TIME_WEIGHTS, time_shares, unet_size
from calotype.planning.make import (
    FEWEST_LEVEL_CROPS,
    MOST_LEVEL_CROPS,
    allot,
    make_plan,
    reasons_of_legs,
    with_warmups,
)
from calotype.planning.measure import Measurement
from calotype.planning.memory import rounds_of
from calotype.planning.plan import Choice, Plan
from calotype.planning.sizes import MOST_TOKENS, check_sizes, choose_patch
from calotype.priors.fit import largest_prior
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import LEAST_DEVIATION, PatchPrior
from calotype.recipe import AutoencoderLossConfig, EnlargeRecipe
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.control import BudgetController, mean_cost, whole_batches
from calotype.training.loop import TrainProgress, every
from calotype.training.previews import validation_first
from calotype.types import NULL_LABEL, Condition, Rng, UserError

PHASES = {
    "one": [(1.0, 0.01)],
    "dear at the end": [(0.6, 0.01), (0.75, 0.013), (1.0, 0.02)],
    "dear soon": [(0.2, 0.01), (1.0, 0.05)],
    "cheap at the end": [(0.5, 0.03), (1.0, 0.01)],
}
phases = pytest.mark.parametrize("phases", PHASES.values(), ids=PHASES)


def estimated(config, in_channels, out_channels, side):
    """Operations of a network, roughly: to count them takes half a second each."""
    return 200 * config.blocks * (config.width * (side // config.patch)) ** 2


@pytest.fixture(autouse=True)
def estimates(monkeypatch):
    monkeypatch.setattr(choose, "forward_flops", estimated)


class Measured(Measurement):
    """A machine whose costs are known."""

    captions = (0.0, 0)

    def __init__(self, sample=0.05, encode=0.001):
        self.device, self.sampling, self._encode = CPU, [sample], encode

    def encode(self):
        return self._encode

    def inspect(self):
        return 0.1

    def fit(self, count):
        return 0.2

    def peak_memory(self, sets):
        return 10**9

    def parameters(self):
        return {"autoencoder": 1000, "denoiser": 2000}

    def prior_values(self):
        return 500

    def constant_values(self):
        return 600

    def critic_parameters(self):
        return 100


def allotted(left, sample=0.05, count=1000, **changes):
    images = {"autoencoder": {"images": 0}, "denoiser": {"images": 0}}
    plan = Plan(recipe=recipe(**merge(images, changes)), device="a machine", budget_seconds=999.0)
    plan.phases = {"autoencoder": PHASES["dear at the end"], "denoiser": [(1.0, 0.004)]}
    allot(plan, Measured(sample), [count], time.monotonic() + left)
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
    with pytest.raises(BadParameter, match="is not a time such as 20s, 10m or 1h30m"):
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
    assert share == pytest.approx(
        TIME_WEIGHTS["autoencoder"] / (TIME_WEIGHTS["autoencoder"] + TIME_WEIGHTS["denoiser"]), abs=0.001
    )


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


@pytest.mark.parametrize("left", [-10.0, 0.0, 20.0])
def test_a_budget_that_is_too_short_says_by_how_much(left):
    """By what comes besides training, less the time that is left for it."""
    plan = allotted(left, sample=5.0)
    besides = sum(seconds for step, seconds in plan.predicted["seconds"].items() if step not in plan.recipe.legs)
    assert besides > 20.0 and f"alone take {besides - left:.0f} s more" in plan.notes[-1]


def test_a_year_on_the_fastest_machine_plans_no_more_pictures_than_a_recipe_may_say():
    year, paced = 366 * 24 * 3600.0, {"autoencoder": {"images": 0}, "denoiser": {"images": 0, "batch": 48}}
    plan = Plan(recipe=recipe(**paced), device="a machine", budget_seconds=year)
    plan.phases = {leg: [(1.0, 1e-12)] for leg in paced}
    allot(plan, Measured(1e-12), [1000], time.monotonic() + year)
    assert all(0 <= MAX_IMAGES - seen < 48 for seen in plan.predicted["images"].values())


@pytest.mark.parametrize("batch", [1, 4, 7, 32])
def test_images_are_whole_batches(batch):
    for images in (0.0, 0.3, 1.0, 6.99, 7.0, 31.9, 1000.5):
        fitted = whole_batches(images, batch)
        assert fitted % batch == 0 and fitted >= batch
        assert fitted == batch or images - batch < fitted <= images


# -- Pace --------------------------------------------------------------------------------------------------------------


def paced(phases, speed, seconds, batch=16, due_every=3.0):
    """Seconds that a leg takes on a machine on which a step costs `speed(progress, phase)` times what was measured."""
    progress = TrainProgress(whole_batches(seconds / mean_cost(phases), batch), batch, 0)
    pace, due = BudgetController(phases, seconds), every(due_every)
    while progress.images_seen < progress.total:
        phase, cost = next((number, cost) for number, (end, cost) in enumerate(phases) if progress.fraction < end)
        progress.images_seen += batch
        progress.seconds += cost * batch * speed(progress, phase)
        if due(progress):
            pace(progress)
    assert progress.images_seen == progress.total and progress.total % batch == 0
    return progress


@pytest.mark.parametrize("speed", [1 / 1.5, 0.9, 1.0, 1.5])
@pytest.mark.parametrize("seconds", [60.0, 600.0])
@phases
def test_a_leg_keeps_to_its_time_on_a_faster_or_slower_machine(phases, speed, seconds):
    progress = paced(phases, lambda progress, phase: speed, seconds)
    assert progress.seconds == pytest.approx(seconds, rel=0.03)
    assert progress.total == pytest.approx(seconds / mean_cost(phases) / speed, rel=0.06)


@pytest.mark.parametrize("wrong", [0.7, 1.4])
@phases
def test_a_leg_keeps_to_its_time_where_the_last_phase_was_measured_wrong(phases, wrong):
    progress = paced(phases, lambda progress, phase: wrong if phase == len(phases) - 1 else 1.0, 600.0)
    assert progress.seconds == pytest.approx(600.0, rel=0.03)


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.5), (1.5, 1.0)])
@phases
def test_a_leg_keeps_to_its_time_where_the_machine_gets_busy_half_way(phases, before, after):
    progress = paced(phases, lambda progress, phase: before if progress.seconds < 300 else after, 600.0)
    assert progress.seconds == pytest.approx(600.0, rel=0.03)


@phases
def test_the_work_done_is_the_share_of_the_time(phases):
    """By summing step by step what a leg costs."""
    pace, total = BudgetController(phases, 1.0), 1000
    costs = [next(cost for end, cost in phases if step / total < end) for step in range(total)]
    for step in range(0, total + 1, 50):
        assert pace.done(step / total) == pytest.approx(sum(costs[:step]) / sum(costs), abs=0.01)
    assert mean_cost(phases) == pytest.approx(sum(costs) / total, rel=0.01)


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
    assert AutoencoderLossConfig(**config).phase_ends == ends


# -- Sizes -------------------------------------------------------------------------------------------------------------


def proposed(size, budget=600.0, flops=1e11, **changes):
    fast = replace(machine(), flops=flops)
    several = (size >= LEAST_ENLARGED and size % 8 == 0) or len(choose_chain(changes.get("kind", "latent"), size)) > 1
    pictures = noise_pictures(3, size) if several else noise_pictures()
    settings, reasons = propose(pictures, fast, budget, {"size": size, **changes})
    return parse_recipe(merge(settings, changes)), reasons


@pytest.mark.parametrize("size", [8, 10, 16, 20, 31, 32, 47, 48, 64, 100, 128, 191, 192, 250, 256, 500, 512, 777, 1024])
def test_a_proposal_fits_or_says_which_size_would(size):
    """And the sizes that it names do fit, and are the next ones."""
    made, _ = proposed(size)
    try:
        check_sizes(made)
    except UserError as error:
        sizes = str(error).replace("px", "").split("try ")[1].split(" or ")
        assert str(error).startswith(f"size is {size}, but ") and 1 <= len(sizes) <= 2
        assert min(map(int, sizes)) < size < max(map(int, sizes)) or len(sizes) == 1
        for other in sizes:
            check_sizes(proposed(int(other))[0])


SIZES = {"latent": range(16, 1101, 7), "cascade": range(16, 1101, 7)}  # of every remainder by every power of two
TEN = noise_pictures()


def accepted(kind, size):
    """What a plan of this size proposes, which is not refused afterwards; or the sizes that its refusal names."""
    try:
        made = parse_recipe(propose(TEN, machine(), 600.0, {"kind": kind, "size": size})[0])
        check_sizes(made)
    except UserError as error:
        return None, [int(one) for one in re.findall(r"\d+", str(error).split("try ")[1])]
    return made, []


@pytest.mark.parametrize("kind", SIZES)
def test_of_all_sizes_each_is_accepted_or_the_refusal_names_some_that_are(monkeypatch, kind):
    """Patches divide the places, however odd, and a denoiser never has more tokens than it can attend to."""
    monkeypatch.setattr(choose, "measure_sigma_data", lambda *about: 0.5)
    monkeypatch.setattr(choose, "measure_residuals", lambda *about: (0.01, 0.1))
    refused = 0
    for size in SIZES[kind]:
        made, others = accepted(kind, size)
        refused += made is None
        if made is None:
            assert others and all(accepted(kind, other)[0] for other in others), size
        else:
            side = made.chain[0] // (made.autoencoder.network.reduction if kind == "latent" else 1)
            tokens, rest = divmod(side, made.denoiser.backbone.patch)
            assert rest == 0 and tokens <= MOST_TOKENS, size
    unit = 2 if kind == "cascade" else 4
    assert refused < len(SIZES[kind]) * (1 - 1 / (4 * unit))


@pytest.mark.parametrize("side", range(1, 129))
def test_a_patch_divides_and_leaves_sixteen_tokens_where_it_can(side):
    patch = choose_patch(side)
    assert side % patch == 0
    if side % max(1, side // 16) == 0:
        assert patch == max(1, side // 16)
    tokens = [side // one for one in range(1, side + 1) if side % one == 0]
    assert 16 <= side // patch < 32 or abs(np.log(side / patch / 16)) == min(abs(np.log(np.array(tokens) / 16)))


def test_560_pixels_have_35_places_which_pairs_do_not_divide():
    made, _ = accepted("latent", 560)
    assert made.chain == (560,) and 35 % made.denoiser.backbone.patch == 0


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
    for budget in np.geomspace(10, 1e6, 40).tolist():
        (made, _), (same, _) = proposed(64, budget, 1e11), proposed(64, 10 * budget, 1e10)
        assert made == same
        backbone = made.denoiser.backbone
        sizes.append(backbone.width**2 * backbone.depth)
    assert sizes == sorted(sizes) and len(set(sizes)) > 3


def test_a_plan_survives_being_written():
    plan = allotted(60.0)
    plan.choices, plan.notes = [Choice(what="what", value="value", why="why")], ["a note"]
    again = Plan.model_validate({**json.loads(json.dumps(plan.as_json())), "recipe": plan.recipe})
    assert again == plan and BudgetController(again.phases["autoencoder"], 1.0).done(0.6) == pytest.approx(
        0.6 * 0.01 / 0.01295
    )


def test_the_plan_times_a_closed_form_that_asks_one_class_for_a_picture(monkeypatch):
    """As in training. Of two classes each with all of a caption and with some, so two components, each a group."""
    mixture, asked = largest_prior(1000, 4, 2, captioned=True).mixture, []
    monkeypatch.setattr(
        mixture,
        "_group_mean",
        lambda *arguments: asked.append(arguments[0]) or GaussianMixture._group_mean(mixture, *arguments),
    )
    mixture.mean(torch.zeros(3, 1, 2, 2), torch.ones(3), Condition(torch.ones(3, dtype=torch.long)))
    assert asked == [slice(2, 3), slice(3, 4)] and mixture.shares.shape == (4, 8)
    assert (largest_prior(1000, 4, 0, captioned=True).mixture.label == NULL_LABEL).all()


@pytest.mark.parametrize(
    ("classes", "captioned", "components", "clusters"),
    [(6, False, 6, 32), (6, True, 12, 8), (0, False, 1, 4), (22, False, 1, 4)],
)
def test_the_largest_prior_has_fewer_gaussians_with_captions_and_without_classes(
    classes, captioned, components, clusters
):
    """Of 22 classes, which are more than have components of their own, it has one for all."""
    prior = largest_prior(8000, 64, classes, captioned)
    mixture = prior.mixture if captioned else prior
    assert mixture.shares.shape == (components, clusters) and mixture.axes.shape == (components, 64, 64)
    assert (mixture.label == NULL_LABEL).all() == (classes != 6)


@pytest.mark.parametrize("method", [Counted, Measurement])
def test_the_inspection_of_few_pictures_is_planned_for_no_more_than_there_are(monkeypatch, method):
    """Of two it looks at two: with the time of 64, a quarter of a minute is lost to their training."""
    monkeypatch.setattr(measure, "best_time", lambda work, device, repeats=5: 8.0)  # of 8 pictures
    found, seconds = parse_recipe(SETTINGS), {}
    for count in (4, 100):
        seconds[count] = method(found, noise_pictures(count), machine(), rounds_of(found, machine())).inspect()
        assert len(validation_first(noise_pictures(count), 64, CPU)[0]) == {4: 3, 100: 64}[count]
    assert seconds[4] / 3 == pytest.approx(seconds[100] / 64)


def test_what_comes_after_a_leg():
    plan = allotted(600.0)
    predicted = plan.predicted["seconds"]
    assert plan.after("denoiser") == predicted["previews"] + predicted["samples"]
    after = ("latents", "inspect", "fit", "denoiser", "previews", "samples")
    assert math.isclose(plan.after("autoencoder"), sum(predicted[what] for what in after))


# -- Chains of stages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "chain"),
    [
        (1024, (64, 256, 1024)),
        (512, (64, 128, 512)),
        (256, (64, 256)),
        (128, (64, 128)),
        (64, (32, 64)),
        (32, (16, 32)),
    ],
)
def test_a_cascade_grows_by_4_and_else_by_2(size, chain):
    assert choose_chain("cascade", size) == chain


@pytest.mark.parametrize("size", [32, 64, 100, 256, 300, 512, 1024])
def test_latents_are_of_the_pictures_themselves_where_time_is_no_matter(size):
    """With networks of the user's own, of at most 256 px, where that is a whole factor."""
    assert choose_chain("latent", size) == (size,)
    assert choose_chain("latent", size, own=True) == ((256, size) if size in (512, 1024) else (size,))


@pytest.mark.parametrize(
    ("size", "chain"),
    [
        (128, (128,)), (192, (64, 192)), (224, (56, 224)), (256, (64, 256)), (300, (300,)), (320, (80, 320)),
        (384, (64, 192, 384)), (512, (64, 256, 512)), (768, (64, 256, 768)), (1024, (64, 256, 1024)),
    ],
)  # fmt: skip
def test_in_little_time_latents_are_those_of_small_pictures(size, chain):
    """The more time, the larger they are."""
    assert choose_chain("latent", size, 1e12) == chain
    flops = (10 ** np.linspace(12, 20, 33)).tolist()
    chains = [choose_chain("latent", size, each) for each in flops]
    assert chains == sorted(chains, key=lambda one: one[0]) and chains[-1] == choose_chain("latent", size)


def test_stages_above_latents_take_one_step_unless_set_otherwise():
    above = {"denoising": {"enlarge": {"256": {"objective": "denoising"}}}, "one_step": {}}
    for objective, changes in above.items():
        settings, _ = propose(noise_pictures(3, 256), machine(), 600.0, {"size": 256, **changes})
        config = parse_recipe(merge(settings, changes)).enlarging(256)
        assert (config.objective, config.sampling.steps) == (objective, 12 if changes else 1)
    made, _ = proposed(256, kind="cascade")
    assert made.enlarging(256).objective == "denoising"


def test_an_autoencoder_of_the_users_own_is_for_pictures_of_the_whole_size():
    network = {"reduction": 16, "channels": 8, "widths": [8, 8, 8]}
    assert proposed(256, autoencoder={"network": network})[0].chain == (256,)


def test_every_even_size_has_a_chain():
    for size in range(2, 2050, 2):
        chain = choose_chain("cascade", size)
        assert len(chain) > 1 and chain[-1] == size
        assert {larger / low_res for low_res, larger in pairwise(chain)} <= {2, 4}


@pytest.mark.parametrize("legs", [["denoiser"], ["autoencoder", "denoiser"], ["denoiser", "enlarge-16", "enlarge-64"]])
def test_the_shares_are_the_weights_and_sum_to_1(legs):
    found = time_shares(legs)
    assert list(found) == legs and sum(found.values()) == pytest.approx(1)
    for leg in legs:
        ratio = TIME_WEIGHTS[leg.partition("-")[0]] / TIME_WEIGHTS["denoiser"]
        assert found[leg] / found["denoiser"] == pytest.approx(ratio)


@pytest.mark.parametrize(("patch", "side", "into", "out"), [(1, 8, 3, 3), (2, 8, 6, 3), (4, 16, 6, 3)])
def test_the_operations_of_a_unet_are_those_counted_by_hand(patch, side, into, out):
    """A multiplication and an addition are two; a 3x3 convolution has 9 of both for each pair of channels and place."""
    width, places, squares = 8, (side // patch) ** 2, patch**2
    config = UnetConfig(patch=patch, width=width, multiples=(1,), blocks=1, attention_levels=())
    modulation = width * 2 * width  # scale and shift, from the vector
    same = 2 * 9 * width * width * places + modulation
    joined = 9 * 2 * width * width * places + 9 * width * width * places + 2 * width * width * places + modulation
    ends = 9 * into * squares * width * places + 9 * width * out * squares * places
    through = width * out * into + out * into * side**2  # a matrix from the vector, for every pixel
    assert forward_flops(config, into, out, side) == 2 * (ends + (1 + 2) * same + 2 * joined + through)


def test_the_operations_of_a_dit_are_those_counted_by_hand():
    width, depth, patch, side, into, out = 16, 3, 2, 8, 6, 3
    tokens, inner = (side // patch) ** 2, 64  # 8/3 of the width, to the next 32
    config = DitConfig(width=width, depth=depth, heads=2, patch=patch)
    attention = 4 * width * width * tokens + 2 * tokens * tokens * width
    block = 6 * width * width + attention + 3 * width * inner * tokens
    ends = into * patch**2 * width * tokens + 32 * width * tokens + out * patch**2 * width * tokens
    assert forward_flops(config, into, out, side) == 2 * (ends + depth * block + 2 * width * width)


def test_the_spread_is_measured_about_0():
    pictures = noise_pictures(40, 16)
    images = images_from_pixels(pictures.pixels[pictures.train_indices])
    assert measure_sigma_data(pictures, 16) == pytest.approx(images.square().mean().sqrt().item(), rel=0.01)
    assert measure_sigma_data(pictures, 8) == pytest.approx(shrunk(images, 2).square().mean().sqrt().item(), rel=0.01)


def test_the_doubts_are_those_of_what_is_fitted():
    pictures = noise_pictures(40, 16)
    images = images_from_pixels(pictures.pixels[pictures.train_indices])
    plain, everywhere = measure_residuals(pictures, 16, 4)
    local = PatchPrior(4)
    local.fit([(shrunk(images, 4), images)])
    deviation = local.posterior(shrunk(images, 4), torch.zeros(len(images))).deviation
    assert plain == pytest.approx(float(local.plain), rel=0.01)
    assert everywhere == pytest.approx(float(deviation.square().mean().sqrt()), rel=0.05)


def test_flat_pictures_have_the_residual_deviation_of_one_level():
    grey = replace(noise_pictures(), pixels=torch.full((10, 3, 16, 16), 128, dtype=torch.uint8))
    assert measure_residuals(grey, 16, 2) == (three_digits(LEAST_DEVIATION), three_digits(LEAST_DEVIATION))
    assert measure_residuals(grey, 16, 2, "none") == (three_digits(LEAST_DEVIATION), three_digits(LEAST_DEVIATION))


@pytest.mark.parametrize(("images", "least"), [(320, 0.25), (16000, 0.2), (10**6, 0.05)])
def test_a_short_run_warms_up_for_a_hundred_steps_or_a_quarter(images, least):
    recipe = with_warmups(parse_recipe({}), {"denoiser": images})
    assert recipe.denoiser.learn.warmup == pytest.approx(least)
    mine = parse_recipe({"denoiser": {"learn": {"warmup": 0.01}}})
    assert with_warmups(mine, {"denoiser": images}) == mine


@pytest.mark.parametrize(("low_res", "size"), [(8, 16), (16, 32), (16, 64), (10, 20)])
def test_the_enlarger_is_that_of_the_law_and_local(low_res, size):
    pictures = noise_pictures(size=size)
    for operations in (1e9, 1e14, 1e18):
        settings = choose_enlarger(pictures, low_res, size, Resources(operations))
        config = parse_recipe({"size": size, "stages": [low_res, size], "enlarge": {str(size): settings}}).enlarging(
            size
        )
        assert (config.backbone.width, config.backbone.blocks) == unet_size(operations)
        assert config.backbone.attention_levels == () and config.crop <= size


@pytest.mark.parametrize("size", [4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("kind", ["latent", "cascade"])
def test_a_proposal_of_either_kind_fits_its_size(kind, size):
    if kind == "latent" and size % 8:
        return
    made, reasons = proposed(
        size, kind=kind, **({} if kind == "cascade" else {"autoencoder": {"critic": {"depth": 2}}})
    )
    check_sizes(made)
    assert made.kind == kind and set(reasons) == {"precision", "flip", "views"} | (
        {"patches"} if kind == "latent" else set()
    )


def drawn_images(count=64, side=32):
    """Rectangles of one colour on a ground of another."""
    rng = Rng(("drawings",))
    images = rng.at("ground").uniform(count, 3, 1, 1).repeat(1, 1, side, side)
    corners, colours = rng.at("corners").integers(side, count, 3, 2, 2).sort(2).values, rng.at("colours")
    for index, rectangles in enumerate(corners.tolist()):
        for place, ((top, left), (bottom, right)) in enumerate(rectangles):
            images[index, :, top:bottom, left:right] = colours.at(index, place).uniform(3, 1, 1)
    return images * 2 - 1


def cloudy_images(count=64, side=32):
    """Smooth at all scales, as photographs are: noise of amplitude 1 / frequency."""
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)).clamp(min=1 / side)
    spectrum = torch.fft.fft2(Rng(("clouds",)).normal(count, 3, side, side)) / frequency
    images = torch.fft.ifft2(spectrum).real
    return images / (3 * images.std())


@pytest.mark.parametrize(("images", "overlap"), [(drawn_images, False), (cloudy_images, True)])
@pytest.mark.parametrize("side", [4, 8])
def test_patches_overlap_where_that_is_the_shorter_code(images, overlap, side):
    pictures = noise_pictures(64, 32)
    pixels = pixels_from_images(images().clamp(-1, 1))
    network, reason = choose_vae(replace(pictures, pixels=pixels), 6 * side)
    assert network.reduction == side and network.lapped == overlap
    assert "bits per value if they overlap" in reason


def test_a_code_length_is_that_of_its_coefficients():
    """Of independent values of one deviation, in any basis."""
    values = 0.3 * Rng(("independent",)).normal(400, 3, 8, 8)
    expected = (1 + values.abs() / CODED_STEP).log2().mean().item()
    assert code_length(values, 4) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            CASCADE,
            {"enlarge": {"16": {"crop": 6}}},
            r"enlarge\.16\.crop is 6, but must be at most 16 and a multiple of 4",
        ),
        (CASCADE, {"enlarge": {"16": {"crop": 20}}}, r"enlarge\.16\.crop is 20, but must be at most 16"),
        (
            CASCADE,
            {"enlarge": {"16": {"backbone": {"multiples": [1, 1, 1, 1, 1]}}}},
            "the stage of 16 px is 16, .* a multiple of 32; try 32",
        ),
        (CASCADE, {"denoiser": {"backbone": {"patch": 3}}}, "the first stage is 8, .* a multiple of 3; try 6 or 9"),
        (
            CASCADE,
            {"enlarge": {"16": {"augmentation": {"kind": "blur"}, "sampling": {"conditioning": "truncated"}}}},
            "conditioning is truncated, but .*; set it to whole",
        ),
        (
            HYBRID,
            {"enlarge": {"16": {"sampling": {"conditioning": "truncated"}}}},
            "stage in pixels .* set it to whole",
        ),
        (HYBRID, {"autoencoder": {"crop": 16}}, "autoencoder.crop is 16, but must be at most 8"),
    ],
)
def test_stages_that_do_not_fit_are_refused_with_what_would(settings, changes, message):
    check_sizes(parse_recipe(settings))
    with pytest.raises(UserError, match=message) as error:
        check_sizes(parse_recipe(merge(settings, changes)))
    assert "\n" not in str(error.value)


THREE = merge(
    CASCADE, {"size": 32, "stages": [8, 16, 32], "enlarge": {"32": {**CASCADE["enlarge"]["16"], "images": 0}}}
)
ABOVE_8 = ["guidance", "prepare", "enlarge-16", "level-16"]
LEGS = {
    "cascade": (CASCADE, ["fit", "denoiser", *ABOVE_8]),
    "hybrid": (HYBRID, ["autoencoder", "latents", "inspect", "fit", "denoiser", *ABOVE_8]),
    "three stages": (THREE, ["fit", "denoiser", *ABOVE_8, "enlarge-32", "level-32"]),
    "latent": (SETTINGS, ["autoencoder", "latents", "inspect", "fit", "denoiser", "guidance"]),
}
legs = pytest.mark.parametrize(("settings", "order"), LEGS.values(), ids=LEGS)


def planned(monkeypatch, settings, budget=60.0):
    be_quick(monkeypatch)
    monkeypatch.setattr(make, "FEWEST_HELD_OUT", 1)
    return make_plan(noise_pictures(size=settings["size"]), machine(), budget, time.monotonic(), settings)


@legs
def test_a_plan_tells_the_seconds_of_all_that_is_done_in_order(monkeypatch, settings, order):
    plan = planned(monkeypatch, settings)
    predicted = plan.predicted["seconds"]
    assert list(predicted) == [*order, "previews", "samples"] and all(seconds > 0 for seconds in predicted.values())
    assert list(plan.predicted["images"]) == list(plan.phases) == list(plan.recipe.legs)
    assert {leg: config.images for leg, config in plan.recipe.legs.items()} == plan.predicted["images"]
    assert set(plan.predicted["parameters"]) == set(plan.recipe.legs)
    assert set(plan.flops) == set(plan.recipe.legs) and all(flops > 0 for flops in plan.flops.values())
    for leg in plan.recipe.legs:
        assert plan.after(leg) == pytest.approx(sum([*predicted.values()][[*predicted].index(leg) + 1 :]))
    again = Plan.model_validate({**json.loads(json.dumps(plan.as_json())), "recipe": plan.recipe})
    assert again == plan and list(again.predicted["seconds"]) == list(predicted)


def test_only_the_legs_that_are_not_set_share_what_is_left(monkeypatch):
    began = time.monotonic()
    plan = planned(monkeypatch, THREE)
    planning = time.monotonic() - began
    assert plan.paced == ["enlarge-32"] and 59 - planning <= sum(plan.predicted["seconds"].values()) <= 61
    free = merge(THREE, {"denoiser": {"images": 0}, "enlarge": {"16": {"images": 0}}})
    began = time.monotonic()
    plan = planned(monkeypatch, free)
    planning, predicted = time.monotonic() - began, plan.predicted["seconds"]
    assert plan.paced == list(plan.recipe.legs) and 59 - planning <= sum(predicted.values()) <= 61
    for leg, share in time_shares(plan.paced).items():
        assert predicted[leg] == pytest.approx(share * sum(predicted[one] for one in plan.paced), abs=0.2)


@pytest.mark.parametrize("budget", [1e-6, 0.5, 3.0, 60.0, 1e5])
def test_the_level_is_searched_on_enough_crops_or_not_at_all(monkeypatch, budget):
    plan = planned(monkeypatch, CASCADE, budget)
    crops = plan.level_crops["16"]
    assert crops == 0 or FEWEST_LEVEL_CROPS <= crops <= MOST_LEVEL_CROPS
    assert (plan.predicted["seconds"]["level-16"] > 0) == (crops > 0)
    assert plan.predicted["seconds"]["level-16"] <= 0.05 * budget + 1e-9
    assert (budget < 1) <= (crops == 0) and (budget < 1e4 or crops == MOST_LEVEL_CROPS)


def test_a_plan_of_a_cascade_says_its_stages_and_why(monkeypatch):
    made = {choice.what: choice for choice in planned(monkeypatch, CASCADE).choices}
    assert made["stages"].value == "8 px -> 16 px" and "latents" not in made
    assert made["enlarge to 16"].why == "as you set it" and made["prior"].why != "as you set it"
    assert made["enlarge to 16"].by_user and not made["prior"].by_user


def test_the_pictures_that_the_time_allows_are_those_that_the_legs_see(monkeypatch):
    """The steps were measured by then; the laws alone promised up to three times as many."""
    settings = merge(SETTINGS, {"autoencoder": {"images": 10, "batch": 4}}) | {"denoiser": {"images": 0}}
    plan = planned(monkeypatch, settings)
    assert plan.predicted["steps"]["autoencoder"] == 3
    images, choices = plan.predicted["images"], {choice.what: choice for choice in plan.choices}
    assert choices["denoiser"].why == f"the time allows about {images['denoiser']:,} pictures of training with it"
    epochs = images["denoiser"] / noise_pictures().trained
    assert "as if all of the time were training" in choices["dropout"].why  # else it need not agree with these times
    assert choices["dropout"].why.endswith(f"this run has about {epochs:,.0f} epochs")
    reasons = reasons_of_legs(planned(monkeypatch, THREE), noise_pictures())
    assert [leg for leg, why in reasons.items() if why.startswith("the time allows")] == ["enlarge-32"]
    assert "autoencoder" not in reasons_of_legs(plan, noise_pictures())  # where it is kept, that says why


def test_a_plan_measures_the_spreads_and_keeps_the_defaults_of_sampling(monkeypatch):
    plan = planned(
        monkeypatch, {"kind": "cascade", "size": 16, "denoiser": {"images": 32}, "enlarge": {"16": {"images": 8}}}
    )
    above, pictures = plan.recipe.enlarging(16), noise_pictures(size=16)
    assert plan.recipe.chain == (8, 16) and above.sigma_data == 0
    assert above.schedule.largest == pytest.approx(15 * measure_residuals(pictures, 16, 2)[1], rel=0.01)
    assert plan.recipe.denoiser.sigma_data == measure_sigma_data(pictures, 8)
    assert above.sampling == EnlargeRecipe().sampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cascade", "size": 31}, "size is 31, but a cascade needs an even one; try 30 or 32"),
        ({"kind": "cascade", "size": 1}, "size is 1, .* try 2"),
        ({"kind": "latent", "size": 31, "stages": [15, 31]}, r"^recipe: stages are \[15, 31\], but each must be"),
        ({"kind": "cascade", "size": 16, "stages": [32, 16]}, r"^recipe: stages are \[32, 16\], but each must be"),
    ],
)
def test_a_chain_that_does_not_fit_is_refused_before_anything_is_measured(settings, message):
    pictures = replace(
        noise_pictures(), pixels=torch.zeros(10, 3, settings["size"], settings["size"], dtype=torch.uint8)
    )
    with pytest.raises(UserError, match=message) as error:
        propose(pictures, machine(), 600.0, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [768, 1280, 1536])
def test_a_crop_that_nobody_set_fits_whatever_the_factor(size):
    check_sizes(proposed(size)[0])
