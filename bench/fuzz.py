"""Fuzzing of the readers of files from strangers, with atheris (libFuzzer, which follows the coverage of Python code).

    python bench/fuzz.py FOLDER [--seconds 3600] [--seed 1] [--only recipe shard ...]
    python bench/fuzz.py FOLDER --again FOLDER/found-0

atheris is no dependency: `pip install atheris` into an environment that has the other packages. Whatever a file holds,
a reader returns, or raises a `UserError` of one line that names the file, or its folder; in 5 seconds of processor
time, and with at most 2 GB above what the process holds at first. A file for which that is not so is kept as
FOLDER/found-N, with the reason in found-N.txt, one for each place in the code; the second command reads it again.
FOLDER/corpus grows by files that reach new code, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
with atheris.instrument_imports(include=["calotype", "PIL", "tomllib", "tarfile", "csv", "json"]):
    import mutations
    import strangers

    from calotype.build import build_autoencoder
    from calotype.data.captions import read_captions
    from calotype.data.images import deep_range, read_picture
    from calotype.data.shards import read_index, scan
    from calotype.data.split import split_rule
    from calotype.escaping import plain
    from calotype.files import write_tensors
    from calotype.interop.autoencoders import read_autoencoder_config
    from calotype.nets.weights import load_file_into
    from calotype.planning import Plan
    from calotype.recipe import Recipe
    from calotype.run import read_events, read_state
    from calotype.settings import parse_recipe, read_overrides, read_recipe, to_toml, upgraded
    from calotype.store import read_description
    from calotype.types import UserError

SECONDS, MEMORY = 5.0, 2**31
LONGEST = 2**17
"""Bytes of a file."""
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
STOPPED = GOLDEN / "stopped-run"
CONFIG = b'{"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [32, 64]}'


def captions(file: Path) -> None:
    _, found = read_captions(file.parent, ["0.png"])
    if any(note != plain(note) for note in found.notes(["0.png"])):
        raise AssertionError("a note steers the terminal")


def setting(file: Path) -> None:
    fitting(read_overrides([file.read_bytes().decode("utf-8", "replace")]))


def fitting(settings: dict[str, Any]) -> None:
    """Whether settings fit together, which is told of the recipe and not of the file."""
    try:
        parse_recipe(settings)
    except UserError as error:
        if not str(error).startswith("recipe: "):
            raise


@cache
def small_shard() -> Path:
    path = Path(tempfile.mkdtemp()) / "small.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in {"0.png": mutations.pictures()["rgb.png"], "0.txt": b"a cat", "0.cls": b"cats"}.items():
            (member := tarfile.TarInfo(name)).size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def weights(file: Path) -> None:
    network = parse_recipe(upgraded(read_description(GOLDEN / "labels" / "model.json").recipe)).autoencoder.network
    load_file_into(file, lambda: build_autoencoder(network, "float32"), lambda vae: vae)


def stored(name: str) -> list[bytes]:
    return [(STOPPED / name).read_bytes()]


def encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]


class Reader(NamedTuple):
    """Reads a file that has this name."""

    name: str
    read: Callable[[Path], object]
    seeds: list[bytes]
    """Files to begin with."""


def readers() -> dict[str, Reader]:
    pictures, index = [*mutations.pictures().values()], small_shard().with_suffix(".index")
    write_tensors(index, scan(small_shard()).tensors())
    recipes, numbers = [to_toml(Recipe()), *map(strangers.recipe_text, range(60))], range(60)
    words = [b"a cat\nsitting", "m\u1ed9t con m\u00e8o".encode("utf-16")]
    each = [
        *(Reader(name, read_picture, pictures) for name in ("0.png", "0.jpg", "0.tif")),
        Reader("small.png", lambda file: read_picture(file, 48), pictures),
        Reader("deep.png", deep_range, pictures),
        *(Reader(name, captions, [text]) for name, text in mutations.captions("0.png").items()),
        Reader("0.txt", captions, words),
        Reader("recipe.toml", lambda file: fitting(read_recipe(file)), encoded(recipes)),
        Reader("--set", setting, encoded(map(strangers.override, numbers))),
        Reader("0.tar", scan, [small_shard().read_bytes()]),
        Reader("0.index", lambda file: read_index(file, small_shard()), [index.read_bytes()]),
        Reader("autoencoder.safetensors", weights, [(GOLDEN / "labels" / "autoencoder.safetensors").read_bytes()]),
        Reader("model.json", read_description, [(GOLDEN / "labels" / "model.json").read_bytes()]),
        Reader("run.json", read_state, stored("run.json")),
        Reader("plan.json", lambda file: Plan.read(file, Recipe()), stored("plan.json")),
        Reader("split.json", lambda file: split_rule(file.parent), stored("split.json")),
        Reader("log.jsonl", read_events, stored("log.jsonl")),
        Reader("config.json", lambda file: read_autoencoder_config(file.parent), [CONFIG]),
    ]
    return {reader.name: reader for reader in each}


# -- One file ----------------------------------------------------------------------------------------------------------


def problem(reader: Reader, content: bytes) -> str:
    """What is wrong in how the reader takes a file with this content; empty where nothing is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        file = Path(folder) / reader.name
        file.write_bytes(content)
        began, held, message = time.process_time(), restarted_peak(), ""
        try:
            reader.read(file)
        except UserError as error:
            message = plain(str(error))  # as a terminal shows it
        except Exception:
            return traceback.format_exc()
        seconds, more = time.process_time() - began, peak() - held
    if seconds > SECONDS or more > MEMORY:
        return f"slow or large: {seconds:.1f} s, {more / 1e6:,.0f} MB more than before"
    if message and (len(message.splitlines()) > 1 or not (reader.name in message or folder in message)):
        return f"not one line that names the file, or its folder: {message!r}"
    return ""


def peak() -> int:
    """The most bytes held since the peak was restarted (Linux), or ever."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def restarted_peak() -> int:
    """The bytes held now, where the system can count anew from here; so an input is not hidden by a larger one."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def place_of(reason: str) -> str:
    """What tells apart the kinds of problems: the last place in our code, or the first words."""
    ours = [line for line in reason.splitlines() if "/calotype/" in line]
    return ours[-1] if ours else reason[:40]


class Fuzzer:
    """The first byte of an input chooses the reader, the rest is the file."""

    def __init__(self, chosen: list[Reader], folder: Path) -> None:
        self.chosen, self.folder, self.known = chosen, folder, set[tuple[str, str]]()

    def seed(self) -> None:
        for number, reader in enumerate(self.chosen):
            for place, content in enumerate(reader.seeds):
                (self.folder / "corpus" / f"{number}-{place}").write_bytes(bytes([number]) + content)

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        reader = self.chosen[data[0] % len(self.chosen)]
        reason = problem(reader, data[1:])
        if reason and (kind := (reader.name, place_of(reason))) not in self.known:
            self.known.add(kind)
            name = f"found-{len(self.known) - 1}"
            (self.folder / name).write_bytes(data[1:])
            (self.folder / f"{name}.txt").write_text(f"{reader.name}\n{reason}")
            print(f"{name}: {reader.name}: {reason.splitlines()[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = readers()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=known, default=[*known], metavar="NAME", help=", ".join(known))
    parser.add_argument("--again", type=Path, help="a file that was found")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.again:
        name = arguments.again.with_suffix(".txt").read_text().partition("\n")[0]
        print(problem(known[name], arguments.again.read_bytes()) or "nothing is wrong")
        return
    (arguments.folder / "corpus").mkdir(parents=True, exist_ok=True)
    fuzzer = Fuzzer([known[name] for name in arguments.only], arguments.folder)
    fuzzer.seed()
    options = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", f"-max_len={LONGEST}"]
    options += [
        "-timeout=60",
        f"-rss_limit_mb={(peak() + 2 * MEMORY) // 2**20}",
        f"-artifact_prefix={arguments.folder}/",
    ]
    atheris.Setup([sys.argv[0], str(arguments.folder / "corpus"), *options, "-print_final_stats=1"], fuzzer)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
