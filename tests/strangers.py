"""Recipes and folders as strangers may send them: mutations of sound ones, each made from a number."""

import copy
import hashlib
import json
import os
import random
import shutil
import struct
from pathlib import Path

import tomli_w
import torch
from safetensors.torch import load_file, save_file

from calotype.recipe import Recipe
from calotype.tables import all_keys

WORDS = ("", "x", "nan", "\x1b[31m", "\u202e", "../../etc/passwd", "/etc/passwd", "a" * 5000, "\x00", "ünï", "0x10")
NUMBERS = (
    0, -1, 1, 2, 3, 10**6, 10**9, -(10**9), 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-300, 1e300, float("nan"),
    float("inf"), float("-inf"),
)  # fmt: skip
OTHERS = (True, False, [], {}, [1], [[]], [0, -1], ["a"], {"a": 1}, {"kind": "unet"}, {"kind": "none"}, None)


def value(rng):
    """Anything that TOML or JSON can hold, and None."""
    return copy.deepcopy(rng.choice(rng.choice((WORDS, NUMBERS, OTHERS))))


# -- Recipes -----------------------------------------------------------------------------------------------------------


def keys():
    recipe = Recipe().model_dump()
    names = [*all_keys(recipe), *(f"enlarge.64.{key}" for key in ("batch", "crop", "sampling.steps", "backbone.width"))]
    return [*names, "unknown", "denoiser.unknown", "denoiser.backbone.unknown", "a" * 3000, "", ".", "a..b"]


def recipe_text(number):
    """A recipe of one to four keys with values that may be anything; one in four is damaged as a text."""
    rng, settings = random.Random(number), {}
    for _ in range(rng.randint(1, 4)):
        table, (*tables, last) = settings, rng.choice(keys()).split(".")
        for name in tables:
            table = table.setdefault(name, {}) if isinstance(table.get(name, {}), dict) else {}
        chosen = value(rng)
        table[last] = 0 if chosen is None else chosen
    text = tomli_w.dumps(settings)
    return text if rng.random() < 0.75 else damaged_text(text, rng)


def damaged_text(text, rng):
    place = rng.randrange(len(text) + 1)
    wrong = rng.choice((
        "[" * 5000, "{" * 5000, "=", "\x00", "\x1b", "1" * 5000, "a.b = 1\n" * 2, "'''", '"""', "\n[[x]]\n", "\\u12",
        text,
        "a" + ".a" * 5000 + " = 1\n", "x = " + "[\n" * 5000 + "]\n" * 5000, "x = -" + "9" * 5000 + "\n", "\ud800",
    ))  # fmt: skip
    return rng.choice((text[:place] + wrong + text[place:], text[:place], wrong, text[:place] + wrong))


def override(number):
    rng = random.Random(number)
    return f"{rng.choice(keys())}={damaged_text(json.dumps(value(rng)), rng) if rng.random() < 0.3 else value(rng)}"


# -- Folders -----------------------------------------------------------------------------------------------------------


def seal(folder):
    """Writes a manifest that agrees with the regular files of a folder."""
    files = [file for file in folder.iterdir() if file.is_file() and not file.is_symlink()]
    entries = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
        if file.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(entries))


def wrong_tensors(file, rng):
    """A safetensors file that is none, or holds other tensors."""
    (wrong_header if rng.random() < 0.5 else other_tensors)(file, rng)


def wrong_header(file, rng):
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    first = header[next(name for name in header if name != "__metadata__")]
    size = None
    match rng.randrange(7):
        case 0:
            torch.save({name: tensor.clone() for name, tensor in load_file(file).items()}, file)  # a pickle
            return
        case 1:
            file.write_bytes(rng.choice((content[: rng.randrange(len(content))], b"", struct.pack("<Q", 9) + b"[" * 9)))
            return
        case 2:
            size = 2 ** rng.choice((64, 63, 40, 20)) - 1
        case 3:
            first["data_offsets"] = rng.choice(([0, 10**12], [-4, 4], [4, 0], [0, 1], "x", [2**64, 2**64 + 4]))
        case 4:
            first["shape"] = rng.choice(([2**62, 4], [-1], [], "x", [1] * 5000, [0]))
        case 5:
            first["dtype"] = rng.choice(("F8_E4M3", "F4", "I64", "C64", "X", 3, None, "BOOL"))
        case 6:
            header["__metadata__"] = value(rng)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + content[8 + length :])


def other_tensors(file, rng):
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = rng.choice([*tensors])
    whole = tensors[name].is_floating_point()
    match rng.randrange(6):
        case 0:
            del tensors[name]
        case 1:
            tensors[rng.choice(("extra", "../x", "network.x", "\x1b"))] = torch.zeros(2)
        case 2:
            tensors[name] = torch.zeros(*tensors[name].shape, 2)
        case 3:
            tensors[name] = tensors[name].to(torch.int32 if whole else torch.float16)
        case 4:
            flat = tensors[name].double().flatten()
            flat[: max(1, len(flat) // 2)] = rng.choice((float("nan"), float("inf")))
            tensors[name] = flat.reshape(tensors[name].shape).to(tensors[name].dtype if whole else torch.float32)
        case 5:
            tensors = {}
    save_file(tensors, file)


def wrong_json(file, rng):
    """A JSON file that is none, or holds something else at one place."""
    if rng.random() < 0.3:
        file.write_bytes(rng.choice((
            b"", b"[]", b"{}", b"null", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN",
            b'{"format": 6}', b"[" + b"1" * 5000 + b"]", b'{"version": 1e999}', b" " * 100, file.read_bytes()[:-9],
        )))  # fmt: skip
        return
    stored = json.loads(file.read_text())
    places = [*containers(stored)]
    for _ in range(rng.randint(1, 2)):
        place = rng.choice(places)
        if isinstance(place, dict) and place:
            name = rng.choice([*place])
            if rng.random() < 0.25:
                del place[name]
            else:
                place[name] = value(rng)
        elif isinstance(place, list):
            place.insert(0, value(rng))
        else:
            place["unknown"] = value(rng)
    file.write_text(json.dumps(stored))


def containers(stored):
    if isinstance(stored, dict | list):
        yield stored
        for inner in stored.values() if isinstance(stored, dict) else stored:
            yield from containers(inner)


def wrong_file(file, rng):
    """Something else by the name of a file, or nothing."""
    file.unlink()
    match rng.randrange(5):
        case 0:
            os.mkfifo(file)
        case 1:
            file.symlink_to(rng.choice(("/dev/zero", "/etc/hostname", file.name, "../model", "/dev/null")))
        case 2:
            file.mkdir()
        case 3:
            file.write_bytes(os.urandom(100))


def wrong_manifest(folder, rng):
    seal(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [*manifest]
    match rng.randrange(6):
        case 0:
            manifest = {"model.json": manifest[rng.choice(names)]} if "model.json" in names else {}
        case 1:
            del manifest[rng.choice(names)]
        case 2:
            manifest[rng.choice(("../run.json", "/etc/hostname", "a\x00b", "", "..", "x" * 300))] = {
                "bytes": 1, "sha256": "0" * 64,
            }  # fmt: skip
        case 3:
            os.mkfifo(folder / "pipe")
            manifest["pipe"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        case 4:
            (folder / "device").symlink_to("/dev/zero")
            manifest["device"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        case 5:
            manifest[rng.choice(names)] = value(rng)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def mutate(folder, number, files=None):
    """Makes one thing wrong in a folder with a manifest, which agrees with what is wrong. Returns what it was."""
    rng = random.Random(number)
    weights, settings = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.json"))
    settings = [file for file in settings if file.name != "manifest.json"]
    draw = rng.random()
    if draw < 0.45:
        file = rng.choice(weights)
        wrong_tensors(file, rng)
        seal(folder)
    elif draw < 0.8:
        file = rng.choice(settings)
        wrong_json(file, rng)
        seal(folder)
    elif draw < 0.9:
        file = rng.choice([*weights, *settings])
        seal(folder)
        wrong_file(file, rng)
    else:
        file = folder / "manifest.json"
        wrong_manifest(folder, rng)
    return file.name


def mutate_run(folder, number):
    """Makes one file of a run wrong: its settings, its state, its plan, a line of its log, its closed forms."""
    rng = random.Random(number)
    kinds = ("*.json", "*.toml", "*.jsonl", "constants/*/constants.json", "samples/*.json", "previews/*.json")
    file = rng.choice([file for kind in kinds for file in sorted(folder.glob(kind))])
    if file.suffix == ".toml":
        file.write_bytes(recipe_text(number).encode("utf-8", "surrogatepass"))
    elif rng.random() < 0.12:
        wrong_file(file, rng)
    elif file.suffix == ".jsonl":
        lines, place = file.read_bytes().splitlines(), folder / "line"
        chosen = rng.randrange(len(lines))
        place.write_bytes(lines[chosen])
        wrong_json(place, rng)
        lines[chosen] = place.read_bytes()
        file.write_bytes(b"\n".join(lines))
    else:
        wrong_json(file, rng)
    if (file.parent / "manifest.json").exists():
        seal(file.parent)


def copied_model(model, place):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(model, place)
    return Path(place)
