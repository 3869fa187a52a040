import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import SETTINGS, Keeper, as_overrides, be_quick, machine, opened, request, train_small, write_pictures
from test_train import products

import calotype
from calotype.cli import app as cli
from calotype.cli import commands, options
from calotype.cli.console import Terminal
from calotype.cli.options import PlanOptions, ResumeOptions, SampleOptions, TrainOptions
from calotype.files import read_json, write_whole
from calotype.planning import Plan
from calotype.run import Run
from calotype.training import pipeline
from calotype.types import UserError

SETS = [word for override in as_overrides(SETTINGS) for word in ("--set", override)]
SMALL = ["--size", "16", "--budget", "1s", *SETS]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


@pytest.fixture
def tell(capsys, monkeypatch):
    """Calls the command line: its exit code, and its lines on standard output and standard error."""

    def tell(*words):
        monkeypatch.setattr(sys, "argv", ["calotype", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out.splitlines(), printed.err.splitlines()

    return tell


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures")


def python(*lines, **more):
    """A process that has the same calotype as this one, and the tests beside it."""
    places = os.pathsep.join(map(str, (Path(__file__).parent, Path(calotype.__file__).parents[1])))
    places = os.pathsep.join([places, os.environ["PYTHONPATH"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], env=environment, text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )  # fmt: skip


# -- Help --------------------------------------------------------------------------------------------------------------


def test_help_comes_at_once():
    """Without torch, which takes seconds to import."""
    process = python(
        "import sys, calotype",
        "from calotype.cli.app import main",
        "from calotype.cli.options import app, data_app",
        "commands = [[one.name] for one in app.registered_commands]",
        "commands += [['data', one.name] for one in data_app.registered_commands]",
        "for words in ([], ['data'], *commands):",
        "    sys.argv = ['calotype', *words, '--help']",
        "    try: main()",
        "    except SystemExit as end: assert not end.code, words",
        "slow = {'torch', 'numpy', 'PIL', 'rich.progress'} & set(sys.modules)",
        "assert not slow, slow",
    )
    printed, wrong = process.communicate(timeout=60)
    registered = len(options.app.registered_commands) + len(options.data_app.registered_commands)
    assert process.returncode == 0 and wrong == "" and printed.count("Usage: calotype") == registered + 2
    assert "Traceback" not in printed and "b'" not in printed  # as text: click asks a stream whether it takes bytes


def test_every_command_has_a_function():
    registered = [*options.app.registered_commands, *options.data_app.registered_commands]
    assert {command.callback for command in registered} == set(commands.FUNCTIONS)


def test_the_lists_of_commands_are_not_cut_off(tell, monkeypatch):
    """The first sentence of each fits on a line of 80 columns, and all arguments are written alike."""
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["data"]):
        _, printed, _ = tell(*words, "--help")
        lines = printed[printed.index("Commands:") + 1 :]
        assert len(lines) > 2 and all(line.endswith(".") and not line.endswith("...") for line in lines if line)
    usages = [tell(name, "--help")[1][0].partition("[OPTIONS]")[2] for name in ("train", "enlarge", "push", "serve")]
    assert all(usages) and not [usage for usage in usages if usage != usage.upper()]


@pytest.mark.parametrize("seed", ["x", "1.5", str(2**62 + 1), str(-(2**62) - 1)])
def test_a_seed_is_a_whole_number_in_its_bounds(tell, seed):
    code, _, wrong = tell("sample", "run", "--seed", seed)
    assert code == 2 and seed in wrong[-1] and "whole number from -4611686018427387904" in wrong[-1]


def test_without_a_command_it_shows_the_commands(tell):
    code, printed, wrong = tell()
    assert code == 2 and any(line.split()[:1] == ["train"] for line in printed + wrong)


# -- The user's mistakes -----------------------------------------------------------------------------------------------


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def only_text(folder):
    empty(folder)
    (folder / "holiday.jpg").write_text("no picture")


def not_empty(folder):
    (folder.parent / "run").mkdir()
    (folder.parent / "run" / "something").touch()


def a_run(folder):
    not_empty(folder)
    (folder.parent / "run" / "run.json").write_text("{}")


def a_file(folder):
    (folder.parent / "run").touch()


def bad_recipe(folder):
    (folder.parent / "recipe.toml").write_text("size = 16\n[denoiser]\nbach = 3\n")


def an_archive(folder):
    folder.with_name("a.zip").write_bytes(b"PK")


def raw_pictures(folder):
    write_whole(folder.with_name("raw") / "0.CR2", b"II")


MISTAKES = {
    "missing folder": (["train", "{0}/picture"], "did you mean .*pictures?"),
    "a file": (["train", "{0}/pictures/a/0.png"], "is a file; give the folder"),
    "empty folder": (["train", "{0}/pictures"], "it is empty", empty),
    "text": (["train", "{0}/pictures"], r"holiday\.jpg \(found text instead", only_text),
    "size 0": (["train", "{0}/pictures", "--size", "0"], "greater than or equal to 1"),
    "size -5": (["train", "{0}/pictures", "--size", "-5"], "greater than or equal to 1"),
    "size 3": (["train", "{0}/pictures", "--size", "3"], "try 4"),
    "size 4": (["train", "{0}/pictures", "--size", "4"], "at least 8 px"),
    "size 18": (["train", "{0}/pictures", "--size", "18"], "try 16 or 20"),
    "size big": (["train", "{0}/pictures", "--size", "big"], "'--size'"),
    "budget": (["train", "{0}/pictures", "--budget", "soon"], "20s, 10m or 1h30m"),
    "no budget": (["plan", "{0}/pictures", "--budget", "0m"], "20s, 10m or 1h30m"),
    "kind": (["train", "{0}/pictures", "--kind", "gan"], "'gan' is not one of 'latent', 'cascade'"),
    "no recipe": (["train", "{0}/pictures", "--recipe", "{0}/none.toml"], r"none\.toml does not exist"),
    "recipe": (["plan", "{0}/pictures", "--recipe", "{0}/recipe.toml"], "line 3: .*did you mean", bad_recipe),
    "key": (["train", "{0}/pictures", "--set", "denoiser.widht=3"], "unknown key denoiser.widht; did you mean"),
    "value": (["train", "{0}/pictures", "--set", "seed=x"], "valid integer"),
    "no value": (["train", "{0}/pictures", "--set", "seed"], "expected key=value"),
    "unfit": (["plan", "{0}/pictures", "--set", "autoencoder.network.reduction=32"], "reduction is 32, but"),
    "device": (["train", "{0}/pictures", "--device", "gpu"], "device is 'gpu', but this machine has"),
    "not empty": (["train", "{0}/pictures", "--out", "{0}/run"], "is not an empty folder; choose another", not_empty),
    "a run": (["train", "{0}/pictures", "--out", "{0}/run"], "go on with: calotype resume", a_run),
    "out is a file": (["train", "{0}/pictures", "--out", "{0}/run"], "is not an empty folder", a_file),
    "option": (["train", "{0}/pictures", "--sizes", "3"], "No such option"),
    "command": (["trian", "{0}/pictures"], "Did you mean 'train'"),
    "no folder": (["train"], "Missing argument"),
    "resume nothing": (["resume", "{0}/nothing"], "is not a run"),
    "resume pictures": (["resume", "{0}/pictures"], "is not a run"),
    "sample nothing": (["sample", "{0}/nothing"], "expected the folder of a run"),
    "check nothing": (["data", "check", "{0}/nothing"], "there is no folder"),
    "check text": (["data", "check", "{0}/pictures"], "so training cannot start", only_text),
    "check size": (["data", "check", "{0}/pictures", "--size", "0"], "greater than or equal to 1"),
    "size": (["plan", "{0}/pictures", "--size", "0"], "greater than or equal to 1"),
    "an archive": (["train", "{0}/a.zip"], "is an archive; unpack it", an_archive),
    "raw pictures": (["plan", "{0}/raw"], r"by suffix: .cr2 1; convert pictures of other kinds", raw_pictures),
    "empty variable": (["train", "", "--size", "16"], "a path is empty"),
    "empty place": (["train", "{0}/pictures", "--out="], "a path is empty"),
    "home of nobody": (["plan", "{0}/pictures", "--space", "diffusers:~nobody-here/vae"], "is no path .*give that of"),
    "runs nowhere": (["runs", "{0}/nothing"], "no run in"),
    "report pictures": (["report", "{0}/pictures"], "is not a run"),
    "sweep nothing": (["sweep", "{0}/nothing"], "is not a run"),
    "sweep steps": (["sweep", "{0}/nothing", "--steps", "many"], "between commas"),
    "sample unfinished": (["sample", "{0}/run"], "training is not finished; try: calotype resume", a_run),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_user_is_reported_in_one_line(tell, folder, monkeypatch, mistake):
    monkeypatch.setattr(commands.training, "examine", lambda device: find(device) and machine())
    words, message, *prepare = MISTAKES[mistake]
    for work in prepare:
        work(folder)
    before = sorted(folder.parent.rglob("*"))
    code, _, wrong = tell(*(word.format(folder.parent) for word in words))
    assert code == 2 and len(wrong) == 1 and wrong[0].startswith("calotype: ")
    assert sorted(folder.parent.rglob("*")) == before  # no half of a run is left
    match(message, wrong[0])


def test_a_current_folder_that_was_removed_is_one_line(tell, folder, monkeypatch):
    """Before torch is imported, which would end the process with a message of its own."""
    (gone := folder.parent / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, wrong = tell("runs")
    assert code == 2 and wrong == [
        "calotype: Invalid value: the current folder was removed; go to another one with cd; try: calotype --help"
    ]


def find(device):
    from calotype.machine import find_device

    return find_device(device)


def match(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "aa"], "label 'aa' is unknown; did you mean a\\? this model knows a, b"),
        (["--label", "zebra"], "label 'zebra' is unknown; this model knows a, b"),
        (["--sampler", "euler_a"], "sampler.*'euler', .*'dpm_solver'.*got 'euler_a'"),
        (["--steps", "0"], "steps.*greater than 0"),
        (["--guidance", "-1"], "guidance.*greater than or equal to 0"),
        (["--count", "0"], "count is 0, but must be at least 1"),
        (["--device", "cuda:9"], "device is 'cuda:9', but"),
    ],
)
def test_a_mistake_in_sampling_is_reported_in_one_line(tell, finished, tmp_path, words, message):
    code, _, wrong = tell("sample", finished, "--out", tmp_path / "out", *words)
    assert code == 2 and len(wrong) == 1
    match(message, wrong[0])
    assert [*tmp_path.glob("out/*")] == []


@pytest.mark.parametrize("home", [None, "caches"])
@pytest.mark.parametrize("problem", [RuntimeError("oh\nno"), KeyError("x"), OSError(errno.EBADF, "Bad descriptor")])
def test_our_mistakes_are_reported_in_one_line_and_kept_in_a_file(tell, folder, monkeypatch, tmp_path, problem, home):
    def fail(*arguments):
        raise problem

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if home else "")
    monkeypatch.setitem(commands.FUNCTIONS, PlanOptions, fail)
    code, _, wrong = tell("plan", folder)
    assert code == 1 and len(wrong) == 1 and "this is a bug in Calotype" in wrong[0]
    (log,) = (tmp_path / (home or ".cache") / "calotype").iterdir()
    assert "Traceback" in log.read_text() and "in fail" in log.read_text() and str(log) in wrong[0]


@pytest.mark.parametrize("command", ["train", "sample"])
@pytest.mark.parametrize("name", ["ENOSPC", "EACCES", "EPERM", "EROFS", "EFBIG", "EIO", "ESTALE", "EMFILE"])
def test_a_disk_that_is_full_closed_or_broken_is_not_our_mistake(tell, folder, monkeypatch, name, command):
    """And only what trains can be resumed."""
    number = getattr(errno, name)

    def fail(*arguments):
        raise OSError(number, os.strerror(number), "/some/where")

    monkeypatch.setitem(commands.FUNCTIONS, {"train": TrainOptions, "sample": SampleOptions}[command], fail)
    code, _, wrong = tell(command, folder)
    assert code == 2 and len(wrong) == 1 and os.strerror(number) in wrong[0] and "/some/where" in wrong[0]
    assert ("resume" in wrong[0]) == (command == "train" and name in ("ENOSPC", "EIO", "ESTALE", "EMFILE"))


def test_ctrl_c_before_training_ends_quietly(tell, folder, monkeypatch):
    def interrupt(device):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.training, "examine", interrupt)
    code, _, wrong = tell("plan", folder, *SMALL)
    assert code == 130 and len(wrong) <= 1


# -- Training ----------------------------------------------------------------------------------------------------------


def trained(tell, folder, *more):
    code, printed, wrong = tell("train", folder, "--out", folder.parent / "run", *SMALL, *more)
    assert (code, wrong) == (0, [])
    return printed


def test_from_pictures_to_pictures(tell, folder, finished):
    printed = trained(tell, folder)
    run = folder.parent / "run"
    assert f"done: look at {run / 'report.html'} and {run / 'samples' / 'grid.png'}" in printed
    assert printed[-1] == f"more pictures: calotype sample {run} --count 16"
    assert all((run / name).stat().st_size for name in ("report.html", "recipe.toml", "plan.json", "log.jsonl"))
    assert products(run) == products(finished)  # nothing depends on who asks, or on when
    state = read_json(run / "run.json")
    assert state["status"] == "finished" and set(state["legs"].values()) == {"finished"}
    code, printed, wrong = tell("sample", run, "--count", "2", "--label", "b", "--seed", "3", "--steps", "2")
    assert (code, wrong) == (0, [])
    assert {"3-0000-b.png", "3-0001-b.png", "grid.png"} <= {path.name for path in (run / "samples-1").iterdir()}
    code, printed, wrong = tell("resume", run)
    assert code == 0 and "finished already" in printed[0]


def test_a_plan_writes_nothing(tell, folder):
    before = sorted(folder.parent.rglob("*"))
    code, printed, wrong = tell("plan", folder, *SMALL)
    assert (code, wrong) == (0, []) and "Plan" in printed and printed[-1].startswith("needs")
    assert sorted(folder.parent.rglob("*")) == before


ODD = {
    "one picture": lambda folder: write_pictures(folder, 1, classes=()),
    "two pictures": lambda folder: write_pictures(folder, 2),
    "small pictures": lambda folder: write_pictures(folder, 5, 4),
    "white": lambda folder: folder.mkdir() or Image.new("RGB", (16, 16), "white").save(folder / "white.png"),
    "black and white": lambda folder: folder.mkdir() or [
        Image.new("RGB", (16, 16), name).save(folder / f"{name}.png") for name in ("black", "white")
    ],
}  # fmt: skip


@pytest.mark.parametrize("write", ODD.values(), ids=ODD)
def test_few_small_and_flat_pictures_train(tell, tmp_path, write):
    write(tmp_path / "pictures")
    trained(tell, tmp_path / "pictures", "--set", "autoencoder.images=12", "--set", "denoiser.images=8")
    samples = opened(tmp_path / "run" / "samples")
    assert len(samples) > 4 and "<html" in (tmp_path / "run" / "report.html").read_text()[:500]


def test_the_unet_of_a_recipe_file_trains(tell, folder):
    (folder.parent / "recipe.toml").write_text("[denoiser.backbone]\nkind = 'unet'\nwidth = 8\nblocks = 1\n")
    sets = [word for pair in zip(*[iter(SETS)] * 2, strict=True) if "backbone" not in pair[1] for word in pair]
    assert len(sets) < len(SETS)
    words = ["--size", "16", "--recipe", folder.parent / "recipe.toml", *sets, "--set", "denoiser.images=8"]
    code, _, wrong = tell("train", folder, "--out", folder.parent / "run", *words)
    assert (code, wrong) == (0, [])
    assert read_json(folder.parent / "run" / "model" / "model.json")["recipe"]["denoiser"]["backbone"]["kind"] == "unet"


def test_a_run_that_fails_says_so_and_can_go_on(tell, folder, monkeypatch, finished):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "save_model", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        code, _, wrong = tell("train", folder, "--out", folder.parent / "run", *SMALL)
    assert code == 2 and len(wrong) == 1
    assert read_json(folder.parent / "run" / "run.json")["status"] == "failed"
    assert tell("resume", folder.parent / "run")[0] == 0
    assert products(folder.parent / "run") == products(finished)


def test_collections_of_garbage_do_not_visit_what_is_imported(tell, monkeypatch, tmp_path):
    """A training makes a dozen of them, which took it 3 s."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append({"torch", "torch._dynamo"} <= sys.modules.keys()))
    for words in (["train", tmp_path / "missing", *SMALL], ["resume", tmp_path / "missing"]):
        assert tell(*words)[0] == 2
    assert frozen == [True, True]


# -- Sampling ----------------------------------------------------------------------------------------------------------


def sampled(tell, run, out, *words):
    assert tell("sample", run, "--out", out, *words)[0] == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def same(one, other):
    first, second = (np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (one, other))
    away = np.abs(first - second)
    return away.max() <= 1 and away.mean() < 0.01


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver", "ancestral"])
def test_a_picture_depends_on_its_seed_and_number_alone(tell, finished, tmp_path, sampler):
    """However many are made with it; sums in another order may tip a value that lies between two of 256 levels."""
    one, two, many = (
        sampled(tell, finished, tmp_path / count, "--count", count, "--seed", "7", "--sampler", sampler)
        for count in ("1", "2", "30")
    )
    shared = set(one) - {"grid.png", "samples.json"}
    assert shared == {"7-0000-a.png"} and len({*many.values()}) == len(many) == 32
    assert same(one["7-0000-a.png"], two["7-0000-a.png"]) and same(one["7-0000-a.png"], many["7-0000-a.png"])
    assert same(two["7-0001-b.png"], many["7-0001-b.png"])
    other = sampled(tell, finished, tmp_path / "other", "--count", "1", "--seed", "8", "--sampler", sampler)
    assert other["8-0000-a.png"] != one["7-0000-a.png"]


def test_chunks_do_not_show(finished, monkeypatch):
    model = calotype.load(finished)
    whole = [np.asarray(picture) for picture in model.sample(5, seed=1)]
    monkeypatch.setattr("calotype.diffusion.stage.BATCH_VALUES", 2 * 3 * 16**2)
    assert all((one == other).all() for one, other in zip(whole, model.sample(5, seed=1), strict=True))


def test_python_and_the_command_line_make_the_same_pictures(tell, finished, tmp_path):
    sampled(tell, finished, tmp_path / "out", "--count", "3", "--label", "b", "--seed", "5", "--guidance", "3")
    found = opened(tmp_path / "out")
    pictures = calotype.load(finished).sample(3, label="b", seed=5, guidance=3.0)
    assert [picture.size for picture in pictures] == [(16, 16)] * 3
    for index, picture in enumerate(pictures):
        assert (np.asarray(picture) == np.asarray(found[f"5-{index:04d}-b.png"])).all()
    printed = read_json(tmp_path / "out" / "samples.json")
    assert printed["labels"] == ["b"] * 3 and printed["seed"] == 5 and printed["sampling"]["guidance"] == 3.0


def test_labels_and_guidance_are_heard(finished):
    model = calotype.load(finished)
    assert model.classes == ("a", "b")
    pictures = [
        np.asarray(model.sample(1, **{"guidance": 300.0, **condition})[0])
        for condition in ({"label": "a"}, {"label": "b"}, {"label": "a", "guidance": 1.0})
    ]
    assert len({picture.tobytes() for picture in pictures}) == 3
    with pytest.raises(UserError, match=r"unknown key sampling\.stepps; did you mean"):
        model.sample(1, stepps=3)


def test_a_model_works_alone_wherever_it_is(tell, finished, tmp_path):
    """Without the run, the pictures or a network that it would have to fetch."""
    moved = shutil.copytree(finished / "model", tmp_path / "elsewhere" / "model of mine")
    names = {path.name for path in moved.iterdir()}
    weights, card = {"autoencoder.safetensors", "denoiser.safetensors"}, {"README.md", "samples.png"}
    assert names == {"model.json", "manifest.json", *weights, *card}
    assert sampled(tell, moved, tmp_path / "a", "--count", "2") == sampled(
        tell, finished, tmp_path / "b", "--count", "2"
    )
    assert str(finished.parent) not in (moved / "model.json").read_text()


@pytest.mark.parametrize("name", ["model.json", "manifest.json", "autoencoder.safetensors", "denoiser.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_model_is_refused(tell, finished, tmp_path, name, damage):
    path = shutil.copytree(finished / "model", tmp_path / "model") / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.unlink() if damage == "gone" else path.write_bytes(flipped if damage == "flipped" else content[:middle])
    code, _, wrong = tell("sample", path.parent, "--out", tmp_path / "out")
    assert code == 2 and len(wrong) == 1
    match("no model in" if (name, damage) == ("model.json", "gone") else "is damaged", wrong[0])


def test_a_model_of_another_version_is_refused(finished, tmp_path):
    from calotype.files import whole_folder, write_json
    from calotype.store import READABLE_FORMATS

    with whole_folder(tmp_path / "model") as folder:
        write_json(folder / "model.json", {**read_json(finished / "model" / "model.json"), "format": 99})
    with pytest.raises(
        UserError, match=f"has format 99, but this version of calotype reads {' and '.join(map(str, READABLE_FORMATS))}"
    ):
        calotype.load(tmp_path / "model")


@pytest.mark.parametrize("images", [0, 960])
def test_a_model_written_when_there_was_a_joint_leg_makes_the_same_pictures(finished, tmp_path, images):
    from calotype.files import whole_folder, write_json

    about = read_json(finished / "model" / "model.json")
    joint = {"images": images, "batch": 8, "losses": {"foresight": 0.5, "foresight_share": 0.5}, "pictures": 64}
    with whole_folder(tmp_path / "model") as folder:
        shutil.copytree(finished / "model", folder, ignore=shutil.ignore_patterns("manifest.json"), dirs_exist_ok=True)
        write_json(folder / "model.json", {**about, "recipe": {**about["recipe"], "joint": joint}})
    old, new = (calotype.load(path).sample(1)[0] for path in (tmp_path, finished))
    assert old.tobytes() == new.tobytes()


# -- Processes ---------------------------------------------------------------------------------------------------------

TRAIN = """
import sys, time
from pathlib import Path
import pytest
import small
from calotype import files
from calotype.cli import app as cli
from calotype.cli import commands
from calotype.data import sources
from calotype.training import leg
small.be_quick(pytest.MonkeyPatch())
leg.SAVE_SECONDS = 0.0
mark, go = Path({mark!r}), Path({go!r})
def wait():
    mark.touch()
    end = time.monotonic() + 60
    while not go.exists() and time.monotonic() < end:
        time.sleep(0.01)
{wait}
sys.argv = ['calotype', 'train', {folder!r}, '--out', {run!r}, *{words!r}]
cli.main()
"""
WHILE_IT_LEARNS = """
real = sources.PictureSource.batch
def batch(self, start, count):
    if start == 20: wait()
    return real(self, start, count)
sources.PictureSource.batch = batch
"""
WHILE_IT_SAVES = """
real = files._put
def put(temporary, path):
    if path.name == 'denoiser-0000000012': wait()
    real(temporary, path)
files._put = put
"""


def training(folder, wait, **more):
    """Another process that trains, at the place where it waits."""
    mark, go = folder.parent / "mark", folder.parent / "go"
    names = {"mark": str(mark), "go": str(go), "folder": str(folder), "run": str(folder.parent / "run")}
    process = python(TRAIN.format(wait=wait, words=SMALL, **names), **more)
    end = time.monotonic() + 60
    while not mark.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    if not mark.exists():
        process.kill()
        pytest.fail(process.communicate()[1])
    return process, go


def resumed(run):
    """By this process, to the end."""
    return products(commands.resume(ResumeOptions(run), Keeper()))


def test_ctrl_c_saves_and_says_so(folder, finished):
    """And as long as the process lives, nobody else can go on with its run."""
    process, go = training(folder, WHILE_IT_LEARNS)
    run = folder.parent / "run"
    before = (run / "run.json").read_bytes()
    with pytest.raises(UserError, match=f"in use by process {process.pid}"):
        commands.resume(ResumeOptions(run), Keeper())
    assert (run / "run.json").read_bytes() == before
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    go.touch()
    _, wrong = process.communicate(timeout=60)
    assert process.returncode == 130 and wrong.count("\n") == 1 and "training so far is saved" in wrong
    assert Run.open(run).state.status == "interrupted"
    assert (run / "checkpoints" / "autoencoder-0000000024").is_dir() and (run / "report.html").exists()
    assert resumed(run) == products(finished)


def test_a_process_killed_while_it_saves_leaves_a_sound_run(folder, finished):
    process, _ = training(folder, WHILE_IT_SAVES)
    process.kill()
    process.communicate()
    run = folder.parent / "run"
    left = {path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("denoiser")}
    assert left == {"denoiser-0000000004", "denoiser-0000000008"} and (run / "lock").exists()
    assert resumed(run) == products(finished)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


# -- Voice -------------------------------------------------------------------------------------------------------------


def test_a_terminal_prints_markup_unchanged_whatever_is_in_it(capsys):
    """Square brackets are markup to rich."""
    console = Terminal()
    console.say("[bold]run[/bold] [1/2] [/nonsense]")
    with console.bar("[red]pictures") as progress:
        progress(3, 3, "[/x] done")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[bold]run[/bold] [1/2] [/nonsense]"
    assert printed[1].startswith("[red]pictures: 3 of 3, ") and printed[1].endswith("; [/x] done")


def test_plain_lines_estimate_what_is_left_only_after_a_while(capsys, monkeypatch):
    """The first picture, which may take seconds, is no measure of the others."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    with Terminal().bar("pictures") as progress:
        for now, done in ((105.0, 1), (130.0, 100), (140.0, 300)):
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            progress(done, 300)
    assert capsys.readouterr().out.splitlines() == [
        "pictures: 1 of 300, 5.0 s elapsed",
        "pictures: 100 of 300, 30 s elapsed, 1 min 00 s left",
        "pictures: 300 of 300, 40 s elapsed",
    ]


def test_the_plan_is_printed_in_full(finished, capsys):
    from calotype.settings import parse_recipe, read_recipe

    plan = Plan.read(finished / "plan.json", parse_recipe(read_recipe(finished / "recipe.toml")))
    Terminal().plan(plan)
    printed = capsys.readouterr().out
    assert all(choice.what in printed for choice in plan.choices) and all(note in printed for note in plan.notes)
    assert "8 steps" in printed and "M parameters" in printed and "MB of disk" in printed


def test_the_first_free_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        free = commands.training.run_folder(request(tmp_path / "my pictures", None), 16)
        assert free == Path("runs") / f"my pictures-16-{number}"
        free.mkdir(parents=True)


def test_a_run_that_would_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"needs about [\d,]+ MB in .* free some space") as error:
        train_small(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_are_shown_on_consoles_of_any_encoding(monkeypatch, encoding):
    from calotype.cli.console import Terminal
    from calotype.cli.process import lasting_streams

    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    with lasting_streams():
        Terminal().say("labels ảnh, 猫, caf" + chr(0xDCE9))
    printed = stream.buffer.getvalue().decode(encoding)
    assert r"\udce9" in printed and (r"\u732b" in printed or "猫" in printed)
