"""The laws of the plan: by their equations, and by plans for ten machines that do not exist."""

import itertools
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import machine, noise_pictures
from typer import BadParameter

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import plans
from plans import CASES, DAY, GB, HOUR

from calotype.build import build_backbone
from calotype.cli import commands
from calotype.cli.console import cost_lines
from calotype.cli.options import PlanOptions, TrainingOptions
from calotype.cli.quantities import byte_count, speed
from calotype.data.folder import Original
from calotype.data.hashes import Stamp
from calotype.evaluation.counting import counted
from calotype.machine import UTILIZATION, describe_machine
from calotype.nets.dit import DitConfig
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import Vae, VaeConfig
from calotype.nets.weights import ShapesOnly
from calotype.planning import choose, make, make_plan
from calotype.planning.chains import choose_chain, own_latents
from calotype.planning.choose import (
    FINAL_DENOISING,
    FIRST_STEP,
    Resources,
    choose_denoiser,
    choose_dit,
    propose,
)
from calotype.planning.laws import (
    FEW_PICTURES,
    FEWEST_STEPS,
    HEAD,
    LARGEST_DIT,
    LARGEST_VAE,
    MEASURED_OPERATIONS,
    MOST_DROPOUT,
    MOST_VIEWS,
    SEEN_BY_VIEW,
    SMALLEST_DIT,
    VAE_PARAMETERS,
    VAE_WIDTHS,
    WHOLE_IMAGES,
    batch_size,
    dit_parameters,
    dit_shape,
    dropout_rate,
    images_afforded,
    learning_rate,
    time_shares,
    training_flops,
    unet_size,
    vae_widths,
    view_count,
)
from calotype.planning.plan import Plan
from calotype.planning.sizes import MOST_TOKENS
from calotype.planning.views import choose_views
from calotype.ranks import ALONE
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.muon import Muon, hidden_matrices
from calotype.types import UserError

BUDGETS = [20.0 * 3.0**power for power in range(10)] + [8 * DAY]
SPEEDS = [1e10 * 6.0**power for power in range(8)] + [4e15]
OPERATIONS = [10.0 ** (power / 4) for power in range(11 * 4, 22 * 4)]
SOME = [CASES[place] for place in (0, 1, 2, 4, 5, 9)]
"""Of the ten; a plan for a large machine takes seconds."""
cases = pytest.mark.parametrize("case", SOME, ids=[f"{case.name} {case.budget:.0f} s" for case in SOME])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is measured on pictures decides nothing here."""
    monkeypatch.setattr(choose, "measure_sigma_data", lambda *about: 0.5)
    monkeypatch.setattr(choose, "measure_residuals", lambda *about: (0.01, 0.1))
    monkeypatch.setattr(choose, "code_length", lambda *about: 1.0)


# -- By their equations ------------------------------------------------------------------------------------------------


def test_a_denoiser_grows_from_a_million_parameters_to_those_of_dit_xl():
    shapes = [dit_shape(operations) for operations in OPERATIONS]
    sizes = [dit_parameters(*shape) for shape in shapes]
    assert sizes == sorted(sizes) and (shapes[0], shapes[-1]) == (SMALLEST_DIT, LARGEST_DIT)
    assert all(width % HEAD == 0 for width, _ in shapes)
    assert max(after / before for before, after in pairwise(sizes)) < 2, "no rung is missing"
    assert len(set(shapes)) > 20


@pytest.mark.parametrize(("width", "depth"), [SMALLEST_DIT, (320, 11), LARGEST_DIT])
def test_parameters_and_operations_of_a_dit_are_those_of_the_network(width, depth):
    """But for its ends: forward operations counted on the network, times three."""
    config = DitConfig(width=width, depth=depth, heads=width // HEAD, patch=1)
    with ShapesOnly():
        network = build_backbone(config, 64, 32)
    weights = sum(weight.numel() for weight in network.parameters())
    assert weights == pytest.approx(dit_parameters(width, depth), rel=0.07)
    with torch.device("meta"), torch.no_grad():
        flops = counted(lambda: network(torch.empty(1, 64, 16, 16), torch.empty(1, width)))
    assert 3 * flops == pytest.approx(training_flops(width, depth, 256), rel=0.05)


def test_attention_is_counted():
    """With as many tokens as 6 widths it takes half of the operations."""
    width, depth = 384, 10
    without = 6 * 12 * width**2 * depth
    assert training_flops(width, depth, 6 * width) == 2 * without * 6 * width


def test_the_law_goes_through_published_models():
    """DiT-B, of 130 million, takes 1.4e19 operations in 400,000 steps of 256 pictures (arXiv 2212.09748, table 4).

    DiT-XL is near its billion for 1.5e21 in arXiv 2410.08184.
    """
    assert 0.8 * 130e6 < dit_parameters(*dit_shape(6 * 23e9 * 256 * 4e5)) < 1.25 * 130e6
    assert dit_shape(8e20) == LARGEST_DIT != dit_shape(6e20)


PLACES = [(64, 10), (64, 15), (64, 25), (256, 25), (256, 40)]


@pytest.mark.parametrize(
    ("flops", "size", "minutes"),
    [(flops, *place) for flops in (1e11, 2e11, 3e11) for place in PLACES] + [(2.1e11, 128, 40)],
)
def test_what_was_measured_on_two_cores_stays(flops, size, minutes):
    """dev/LOG.md: DiT 128 x 4 of 64 to 256 tokens, batches of 32 and 8, rate 0.4 / width, the UNet of width 32."""
    pictures = noise_pictures(40, size)
    settings, _ = propose(pictures, replace(machine(), flops=flops), 60.0 * minutes, {"size": size})
    made = parse_recipe(settings)
    backbone = made.denoiser.backbone
    assert (backbone.width, backbone.depth, backbone.patch) == (128, 4, 1)
    assert (made.denoiser.batch, made.autoencoder.batch) == (32, 8)
    assert made.chain == ((64, 256) if size == 256 else (size,))
    assert made.autoencoder.network.widths == (96, 192) and made.autoencoder.learn.learning_rate == 2e-3
    assert learning_rate("dit", 128) == 0.4 / 128 and learning_rate("unet", 32) == 0.04 / 32
    assert all(made.enlarging(side).backbone.width == 32 for side in made.chain[1:])
    shares = time_shares(["autoencoder", "denoiser"], UTILIZATION * flops * 60 * minutes)
    assert shares == pytest.approx({"autoencoder": 0.3, "denoiser": 0.7})


@pytest.mark.parametrize("reduction", VAE_WIDTHS)
def test_an_autoencoder_grows_to_a_hundred_million_parameters(reduction):
    sizes = []
    for operations in OPERATIONS[::4]:
        widths = tuple(vae_widths(reduction, operations))
        with ShapesOnly():
            vae = Vae(VaeConfig(reduction=reduction, channels={4: 8, 8: 32}.get(reduction, 64), widths=widths))
        sizes.append(sum(weight.numel() for weight in vae.parameters()))
    assert sizes == sorted(sizes) and sizes[0] == pytest.approx(VAE_PARAMETERS[reduction], rel=0.02)
    assert tuple(vae_widths(reduction, MEASURED_OPERATIONS)) == VAE_WIDTHS[reduction]
    assert 0.7 * LARGEST_VAE < sizes[-1] < 1.1 * LARGEST_VAE


def test_a_unet_grows_and_its_parameters_are_within_what_the_law_takes_them_for():
    sizes = [unet_size(operations) for operations in OPERATIONS]
    assert sizes == sorted(sizes) and sizes[0] == (32, 2) and sizes[-1] == (320, 3)
    for width, blocks in {sizes[0], sizes[-1]}:
        config = UnetConfig(patch=4, width=width, multiples=(1, 2, 2), blocks=blocks, attention_levels=())
        with ShapesOnly():
            weights = sum(weight.numel() for weight in build_backbone(config, 9, 3).parameters())
        assert 0.5 * 2000 * width**2 < weights < 2000 * width**2


def test_memory_bounds_the_states_of_a_network():
    for memory in (0.1 * GB, 1.0 * GB, 16.0 * GB):
        for weights in (dit_parameters(*dit_shape(1e22, memory)), 2000 * unet_size(1e22, memory)[0] ** 2):
            assert 20 * weights <= memory / 2
    assert dit_shape(1e22, 1.0) == SMALLEST_DIT and unet_size(1e22, 1.0) == (32, 2)


def test_the_batch_doubles_with_each_tenfold_pictures():
    assert [batch_size(32, 10.0**power) for power in range(9)] == [32, 32, 32, 32, 32, 32, 64, 128, 256]
    for images, busy in product((1e3, 1e5, 1e7), (1, 2, 4, 8)):
        batch = batch_size(32, images, busy)
        assert batch >= batch_size(32, images) and (batch == 32 or images / batch >= FEWEST_STEPS)
    assert batch_size(32, 1e6, 8) == 256, "a large device is kept busy"


def test_the_learning_rate_falls_to_that_of_dit_xl():
    rates = [learning_rate("dit", width) for width in range(128, 1153, 64)]
    assert rates == sorted(rates, reverse=True) and rates[:2] == [0.4 / 128, 0.4 / 192]
    assert 1e-4 <= rates[-1] <= 2e-4 and learning_rate("unet", 320) == pytest.approx(learning_rate("dit", 320) / 10)


def test_dropout_grows_with_the_epochs():
    rates = [dropout_rate(2.0**power) for power in range(20)]
    assert rates == sorted(rates) and rates[-1] == MOST_DROPOUT
    assert dropout_rate(12.0) == dropout_rate(50.0) == 0 and dropout_rate(400.0) == pytest.approx(0.1)


def test_dropout_is_by_the_epochs_of_the_run():
    """Few pictures are seen more often in the same time."""
    rates = []
    for count in (50, 5000):
        settings, _ = propose(noise_pictures(count), replace(machine(), flops=1e11), 600.0, {"size": 16})
        rates.append(settings["denoiser"]["backbone"]["dropout"])
    assert rates[0] > rates[1] == 0
    pictures, resources = noise_pictures(50), Resources(1e13)
    epochs = 1e13 / choose_dit(16, resources)[1] / pictures.trained
    chosen = choose_denoiser(pictures, 16, 3, 0.5, resources)["backbone"]["dropout"]
    assert 0 < chosen < MOST_DROPOUT and chosen == pytest.approx(dropout_rate(epochs), rel=0.01)


def test_views_grow_with_the_epochs():
    counts = [view_count(2.0**power) for power in range(20)]
    assert counts == sorted(counts) and counts[-1] == MOST_VIEWS
    assert view_count(SEEN_BY_VIEW - 1.0) == 0 and view_count(5.0 * SEEN_BY_VIEW) == 5


@pytest.mark.parametrize(
    ("count", "changes", "first", "final"),
    [
        (2 * FEW_PICTURES, {}, FIRST_STEP, FINAL_DENOISING),
        (FEW_PICTURES // 2, {}, FIRST_STEP, 0.0),
        (2 * FEW_PICTURES, {"sampling": {"epsilon_scaling": 0.1}}, FIRST_STEP, 0.0),
        (2 * FEW_PICTURES, {"sampling": {"final_denoising": 0.0}}, FIRST_STEP, 0.0),
        (2 * FEW_PICTURES, {"kind": "cascade"}, 1.0, 0.0),
        (2 * FEW_PICTURES, {"space": {"kind": "run"}, "autoencoder": {"network": {"kind": "kl"}}}, 1.0, 0.0),
    ],
)
def test_samples_of_many_pictures_in_latents_are_denoised_once_more(count, changes, first, final):
    settings, _ = propose(noise_pictures(count), replace(machine(), flops=1e11), 600.0, {"size": 16, **changes})
    recipe = parse_recipe(merge(settings, changes))
    assert (recipe.denoiser.schedule.first_step, recipe.sampling.final_denoising) == (first, final)


def large_files(count, side):
    """Pictures of 16 px from files of this side."""
    pictures = noise_pictures(count)
    return replace(pictures, originals=(Original(Path("a.png"), side, 2 * side, Stamp(0, 0, 0)),) * count)


@pytest.mark.parametrize(
    ("count", "side", "changes", "views", "why"),
    [
        (50, 24, {}, MOST_VIEWS, "memorising"),
        (5000, 24, {}, 0, f"a gain only below {FEW_PICTURES:,} training pictures"),
        (50, 23, {}, 0, "sides below 24 px: crops would be soft"),
        (50, 24, {"kind": "cascade"}, 0, "tried only with latents"),
    ],
)
def test_few_large_pictures_in_latents_have_views(count, side, changes, views, why):
    fast = replace(machine(), flops=1e11)
    settings, reasons = propose(large_files(count, side), fast, 600.0, {"size": 16, **changes})
    assert settings["denoiser"]["views"] == views and why in reasons["views"]
    parse_recipe(merge(settings, changes))
    pictures = large_files(50, 24)
    assert not choose_views(pictures, "latent", 16, True, False)[0]
    assert not choose_views(pictures, "latent", 16, False, True)[0]


def test_the_share_of_local_networks_falls_and_what_they_get_does_not():
    totals = OPERATIONS
    shares = [time_shares(["autoencoder", "denoiser", "enlarge-256"], total) for total in totals]
    for leg in ("autoencoder", "enlarge-256"):
        assert [each[leg] for each in shares] == sorted((each[leg] for each in shares), reverse=True)
        assert 0.04 < shares[-1][leg] < shares[0][leg]
    for leg in shares[0]:
        assert all(b[leg] * y > a[leg] * x for (a, x), (b, y) in pairwise(zip(shares, totals, strict=True)))
    assert all(sum(each.values()) == pytest.approx(1) for each in shares)


# -- Tokens and chains -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 16, 20, 32, 35, 48, 64, 96])
def test_patches_divide_and_get_finer_with_time(side):
    patches = [choose_dit(side, Resources(operations))[0]["patch"] for operations in OPERATIONS]
    assert patches == sorted(patches, reverse=True)
    assert all(side % patch == 0 and side // patch <= MOST_TOKENS for patch in patches)
    for operations, patch in zip(OPERATIONS, patches, strict=True):
        assert patch == patches[0] or images_afforded(operations, (side // patch) ** 2) >= WHOLE_IMAGES


@pytest.mark.parametrize("size", [192, 512, 768, 960, 1024, 1920])
def test_a_little_more_time_never_means_fewer_tokens_a_smaller_base_or_network(size):
    """Also where the law goes to a larger network, which at first sees fewer pictures."""
    found = []
    for power in range(16 * 50, 20 * 50):
        operations = 10.0 ** (power / 50)
        chain = choose_chain("latent", size, operations)
        share = time_shares(["autoencoder", "denoiser", *(f"enlarge-{side}" for side in chain[1:])], operations)
        side = chain[0] // own_latents(chain[0])[0]
        backbone, _ = choose_dit(side, Resources(operations * share["denoiser"]))
        found.append((chain[0], side // backbone["patch"], dit_parameters(backbone["width"], backbone["depth"])))
    for before, after in pairwise(found):
        assert all(more >= less for less, more in zip(before, after, strict=True)), (before, after)
    assert len({tokens for _, tokens, _ in found}) > 1


@pytest.mark.parametrize(("size", "chain"), [(216, (72, 216)), (504, (56, 168, 504)), (792, (88, 264, 792))])
def test_a_size_without_whole_latents_of_its_own_is_enlarged_in_any_time(size, chain):
    assert all(choose_chain("latent", size, operations) == chain for operations in OPERATIONS)


def test_1024_px_go_through_64_x_64_latents_where_time_allows_it():
    """By 1,024 tokens on an H100 in a day, by 4,096 on eight of them in days; in less time a small base is enlarged."""

    def chosen(flops, budget):
        chain = choose_chain("latent", 1024, UTILIZATION * flops * budget)
        settings = propose(noise_pictures(12, 1024), describe_machine("cuda", flops, 80 * GB), budget, {"size": 1024})[
            0
        ]
        assert tuple(settings["stages"]) == chain
        return chain, settings["denoiser"]["backbone"]["patch"]

    assert chosen(2e11, HOUR) == ((64, 256, 1024), 1)
    assert chosen(5e14, HOUR / 3) == ((256, 1024), 1)
    assert chosen(5e14, DAY) == ((1024,), 2)
    assert chosen(4e15, 8 * DAY) == ((1024,), 1)


def parameters_of(size, flops, budget, memory=80 * GB, device="cuda"):
    """Of the denoiser, the autoencoder and the stages that enlarge."""
    made = parse_recipe(
        propose(noise_pictures(12, size), describe_machine(device, flops, memory), budget, {"size": size})[0]
    )
    backbone, network = made.denoiser.backbone, made.autoencoder.network
    scale = network.widths[0] / VAE_WIDTHS[network.reduction][0]
    above = tuple(2000 * made.enlarging(side).backbone.width ** 2 for side in made.chain[1:])
    denoiser = dit_parameters(backbone.width, backbone.depth)
    return denoiser, VAE_PARAMETERS[network.reduction] * scale**2, made.chain, above


def never_shrinks(steps):
    for (denoiser, autoencoder, chain, above), (denoiser_2, autoencoder_2, chain_2, above_2) in pairwise(steps):
        assert denoiser_2 >= denoiser and autoencoder_2 >= autoencoder and chain_2[0] >= chain[0]
        assert chain != chain_2 or all(after >= before for before, after in zip(above, above_2, strict=True))


@pytest.mark.parametrize("size", [64, 256])
def test_no_network_shrinks_when_budget_speed_or_memory_grow(size):
    for flops in SPEEDS[::3]:
        never_shrinks([parameters_of(size, flops, budget) for budget in BUDGETS])
    for budget in (20.0, HOUR, 8 * DAY):
        never_shrinks([parameters_of(size, flops, budget) for flops in SPEEDS])
        never_shrinks([parameters_of(size, 1e15, budget, memory=2**power) for power in range(28, 40, 2)])


# -- Plans for machines that do not exist ------------------------------------------------------------------------------


@cache
def planned(index) -> Plan:
    case = CASES[index]
    return make_plan(noise_pictures(20, case.size), case.machine, case.budget, 0.0, {"size": case.size})


BANDS = [(1, 2), (1, 2), (1, 3), (2, 8), (2, 10), (5, 20), (30, 90), (40, 130), (80, 250), (550, 750)]
"""Million parameters of the denoisers."""


@cases
def test_a_plan_for_a_machine_that_is_not_here(case):
    index = CASES.index(case)
    plan, recipe = planned(index), planned(index).recipe
    predicted = plan.predicted
    assert 0.9 * case.budget < sum(predicted["seconds"].values()) <= case.budget * 1.001
    assert 0 < predicted["peak_memory_bytes"] <= case.machine.memory
    least, most = BANDS[index]
    assert least * 1e6 <= predicted["parameters"]["denoiser"] <= most * 1e6
    assert predicted["parameters"]["autoencoder"] <= 1.1 * LARGEST_VAE
    backbone, side = recipe.denoiser.backbone, recipe.chain[0] // recipe.autoencoder.network.reduction
    assert side % backbone.patch == 0 and side // backbone.patch <= MOST_TOKENS
    assert recipe.precision == ("bfloat16" if case.machine.device.type == "cuda" else "float32")
    assert any("not here" in note for note in plan.notes) and "described" in plan.device
    assert all(steps >= 100 for steps in predicted["steps"].values()) or case.budget < 60
    assert 1e-4 <= recipe.denoiser.learn.learning_rate <= 0.0032


def test_a_plan_for_another_machine_takes_no_time_of_this_one(monkeypatch):
    """The clock here goes on by a quarter of an hour whenever it is read."""
    clock, case = itertools.count(0, 900.0), CASES[2]
    monkeypatch.setattr(make, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plan = make_plan(noise_pictures(8, case.size), case.machine, case.budget, 0.0, {"size": case.size})
    seconds = plan.predicted["seconds"]
    assert len(plan.recipe.chain) > 1 and "prepare" not in seconds
    assert 0.99 * case.budget < sum(seconds.values()) <= case.budget


def test_a_plan_says_where_memory_is_short_and_prints_small_numbers():
    for memory, short in ((2**29, True), (8 * GB, False)):
        there = describe_machine("cuda", 1e15, int(memory))
        plan = make_plan(noise_pictures(), there, 60.0, 0.0, {"size": 16})
        assert (plan.predicted["peak_memory_bytes"] > memory) is short
        assert any("of memory, but only 0.5 GB are free" in note for note in plan.notes) is short
    assert "0.5 GB free" in str(describe_machine("cuda", 1e13, 2**29))
    assert all(plan.predicted["seconds_a_step"][leg] < 0.005 for leg in plan.recipe.legs)
    assert not any("of 0.00 s" in line for line in cost_lines(plan))


def test_the_update_of_muon_counts():
    """Its products, once in a step."""
    case, adamw = CASES[0], {"denoiser": {"learn": {"optimizer": "adamw"}}}
    without = make_plan(noise_pictures(20, case.size), case.machine, case.budget, 0.0, {"size": case.size, **adamw})
    config = planned(0).recipe.denoiser
    network = build_backbone(config.backbone, 4, 4)
    muon = Muon(hidden_matrices(network), 0.0)
    for matrix in muon.param_groups[0]["params"]:
        matrix.grad = torch.ones_like(matrix)
    expected = counted(muon.step) / config.batch
    assert planned(0).flops["denoiser"] - without.flops["denoiser"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0.1 * without.flops["denoiser"]


def test_larger_machines_get_larger_networks():
    sizes = [planned(index).predicted["parameters"]["denoiser"] for index in map(CASES.index, SOME)]
    assert sizes == sorted(sizes)


@cases
def test_the_table_of_plans_has_a_cell_for_each_heading(case):
    row = list(plans.cells(case, planned(CASES.index(case))))
    assert len(row) == len(plans.HEADINGS) and all(row)


# -- On the command line -----------------------------------------------------------------------------------------------


def test_only_a_described_machine_is_not_examined(monkeypatch):
    monkeypatch.setattr(commands.training, "examine", lambda name, threads=None: machine())
    there = commands.training.machine_of(PlanOptions(None, device="cuda", flops=5e14, memory=80 * GB), ALONE)
    assert (there.here, there.device.type, there.flops, there.memory) == (False, "cuda", 5e14, 80 * GB)
    assert commands.training.machine_of(PlanOptions(None), ALONE) == machine()
    assert commands.training.machine_of(TrainingOptions(None), ALONE) == machine()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flops": 5e14}, "--flops is set without --memory"),
        ({"memory": GB}, "--memory is set without --flops"),
        ({"flops": 5e14, "memory": GB}, "device is 'auto', but .* needs cpu, cuda or mps: add --device cuda"),
        ({"flops": 5e14, "memory": GB, "device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_a_machine_that_is_half_described_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        commands.training.machine_of(PlanOptions(None, **options), ALONE)


def test_speeds_and_memories_are_read():
    assert speed("5e14") == 5e14 and byte_count("80GB") == 80 * GB == byte_count(" 80 gib") == byte_count(80 * GB)
    assert byte_count("512MB") == 2**29 and byte_count("1.5g") == 1.5 * GB
    for read, text in product(
        (speed, byte_count), ("", "-1", "0", "0GB", "many", "inf", "1e99", "GB", "1e99GB", "nan")
    ):
        with pytest.raises(BadParameter, match="such as"):
            read(text)
