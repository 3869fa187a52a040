"""Pictures of the model in this folder, with numpy and onnxruntime alone.

    python sample.py --count 9 --out grid.png
    python sample.py --label NAME --prompt "a red cat" --seed 1

Equal seeds give the pictures of Calotype in float32, to a level of 8 bits. Sigmas, sampler and guidance of each stage
are in calotype.json, and may be changed there. From Python: `sample.Bundle(folder).sample(labels=[0, 1], seed=0)`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import struct
import sys
import unicodedata
import zlib
from collections import deque
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import onnxruntime

NULL_LABEL = -1
NEGATIVE_SCALE = 1.3  # guidance scale of a negative prompt where the prior is the guide
RAMP = math.log(5)
PIXELS_AT_ONCE = 2**15  # of all pictures that are sampled together
LETTERS, LONGEST_NGRAM, BUCKETS, LONGEST_PROMPT = 12, 3, 4096, 2000
WORD = re.compile(r"\w+[^\w\s]* ?|[^\w\s]+ ?|\s")
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese: each letter is a token
TOKEN = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")


class Bundle:
    """The folder of an exported model; graphs are opened when they are first used."""

    def __init__(self, folder=None, providers=("CPUExecutionProvider",), threads=0):
        """`threads` of a graph; 0: one a core."""
        self.folder = Path(folder) if folder else Path(__file__).resolve().parent
        if not (settings := self.folder / "calotype.json").is_file():
            raise FileNotFoundError(f"{settings} is missing; give a folder that calotype export --to onnx wrote")
        self.about = json.loads(settings.read_text("utf-8"))
        self.classes, self.stages, self.size = self.about["classes"], self.about["stages"], self.about["size"]
        self.providers, self.settings = list(providers), onnxruntime.SessionOptions()
        self.settings.intra_op_num_threads = threads
        self.sessions, self.texts = {}, {}

    def sample(self, labels, prompts=None, negatives=None, seed=0, first=0, picture=None, strength=0.6, noise=None):
        """Pictures (count, size, size, 3), bytes, one for each label: the index of a class, or `NULL_LABEL`.

        `prompts` and `negatives` are None, or one text for each. With a `picture` (size, size, 3), bytes, they are
        variations of it: `strength` in (0, 1] is the share of the steps that are taken (image-to-image).
        `noise(index, size, where, shape)` gives the noise of picture `index` of the stage of that size; by default it
        is drawn from the seed, as Calotype draws it. The first picture has the index `first`. Raises `ValueError`.
        """
        self.check(labels, prompts, negatives, picture, strength)
        noise, start = noise or seeded(seed), None
        if picture is not None:
            start = (np.asarray(picture, "f4").transpose(2, 0, 1)[None] / 127.5 - 1, strength)
        prompts, negatives = prompts or [""] * len(labels), negatives or [""] * len(labels)
        images, few = [], max(1, PIXELS_AT_ONCE // self.size**2)
        for begin in range(0, len(labels), few):
            rows = range(begin, min(begin + few, len(labels)))
            part = ([values[row] for row in rows] for values in (labels, prompts, negatives))
            images.append(self.images(*part, [first + row for row in rows], noise, start))
        return to_bytes(np.concatenate(images))

    def check(self, labels, prompts, negatives, picture, strength):
        """Raises `ValueError` for what this model cannot draw."""
        count, side = len(self.classes), self.size
        if not len(labels):
            raise ValueError(f"labels is empty; give one for each picture, {NULL_LABEL} for no class")
        if wrong := [label for label in labels if not NULL_LABEL <= label < count]:
            raise ValueError(f"label {wrong[0]} is unknown; expected an index of the {count} classes, or {NULL_LABEL}")
        for name, texts in (("prompts", prompts), ("negatives", negatives)):
            if texts and len(texts) != len(labels):
                raise ValueError(f"{name} has {len(texts)} texts for {len(labels)} labels; give one for each")
            if texts and any(texts) and self.about["text"] is None:
                raise ValueError(f"this model reads no prompt; leave {name} out")
        if picture is not None and np.shape(picture) != (side, side, 3):
            raise ValueError(f"the picture has the shape {np.shape(picture)}; expected {(side, side, 3)}: resize it")
        if picture is not None and not 0 < strength <= 1:
            raise ValueError(f"strength is {strength}; expected a number above 0 and up to 1")

    def images(self, labels, prompts, negatives, indices, noise, start=None):
        """Images (count, 3, size, size) in [-1, 1]; see `sample`."""
        prompts, negatives, images = [*map(cleaned, prompts)], [*map(cleaned, negatives)], None
        for stage in self.stages:
            size, until, known = stage["size"], stage["until"], self.condition(stage, images, indices, noise)
            given = {"label": np.array(labels, np.int64), **self.text(stage, prompts), **known}
            without = {"label": np.full(len(labels), NULL_LABEL), **self.text(stage, negatives), **known}
            same = min(labels) == max(labels) == NULL_LABEL and prompts == negatives
            guided = self.guided(stage, given, without, same, any(negatives))
            amount = stage["sampling"]["epsilon_scaling"]
            denoise = epsilon_scaled(guided, amount, deviation(stage, known)) if amount else guided
            clean, steps = self.beginning(stage, known, start)
            sigmas = [*(sigma for sigma in stage["sigmas"][-1 - steps :] if sigma > until), until]

            def drawn(*where, size=size, shape=tuple(stage["shape"])):
                return np.stack([noise(index, size, where, shape) for index in indices])

            fresh = (drawn("fresh", step) for step in range(1 << 30))
            noisy = clean + np.float32(sigmas[0]) * drawn("start")
            states = SAMPLERS[stage["sampling"]["sampler"]](denoise, noisy, sigmas, fresh)
            noisy = deque(chain([noisy], states), maxlen=1).pop()  # without steps where all are below `until`
            level = 0 if until else stage["sampling"]["final_denoising"]
            images = noisy if until else self.decode(stage, denoise(noisy, level) if level else noisy)
        return images

    def beginning(self, stage, known, start):
        """The latents to which noise is added, and how many steps are taken from there."""
        steps = len(stage["sigmas"]) - 1
        if start is None or start[1] == 1:
            return known.get("low_res", np.float32(0)), steps
        picture, strength = start
        small = picture.reshape(1, 3, stage["size"], self.size // stage["size"], stage["size"], -1).mean((3, 5))
        if "encoder" in stage["graphs"]:
            small = self.run(stage, "encoder", {"images": small})["latents"]
        return small, max(1, round(strength * steps))

    def decode(self, stage, latents):
        if "decoder" not in stage["graphs"]:
            return latents.clip(-1, 1)
        return self.run(stage, "decoder", {"latents": latents})["images"]

    def condition(self, stage, images, indices, noise):
        """What a stage that enlarges knows of the picture below it."""
        if images is None:
            return {}
        sampling = stage["sampling"]
        level = np.full(len(images), sampling["augmentation"], np.float32)
        if sampling["conditioning"] == "truncated":  # as noisy as that already
            added = np.zeros_like(images)
        else:
            added = np.stack([noise(index, stage["size"], ("augmentation",), images.shape[1:]) for index in indices])
        known = self.run(stage, "condition", {"images": images, "noise": added, "augmentation": level})
        return {**known, "augmentation": level}

    # -- Guidance ------------------------------------------------------------------------------------------------------

    def guided(self, stage, given, without, same, negative):
        """The denoiser, a function of noisy latents and sigma, guided as the stage's `sampling` says."""
        settings = stage["sampling"]
        scale, nothing = settings["guidance"], {**without, **self.text(stage, [""] * len(without["label"]))}

        def at(noisy, sigma, condition):
            return {**condition, "noisy": noisy, "sigma": np.full(len(noisy), sigma, np.float32)}

        def network(noisy, sigma, condition):
            values = at(noisy, sigma, condition)
            if "prior" in stage["graphs"]:
                values |= self.run(stage, "prior", values)
            return self.run(stage, "denoiser", values)["denoised"], values.get("mean")

        def by_prior(noisy, sigma, condition, weak):
            estimate, mean = network(noisy, sigma, condition)
            ramp = (np.log(sigma / deviation(stage, condition)) / RAMP).clip(-1, 1)
            guided = mean + (1 + (scale - 1) * (1 + settings["guidance_slope"] * ramp)) * (estimate - mean)
            if settings["prior_guidance"] and weak is not None:
                guided += settings["prior_guidance"] * (mean - self.run(stage, "prior", at(noisy, sigma, weak))["mean"])
            return guided.astype(np.float32)

        def denoise(noisy, sigma):
            inside = settings["guidance_low"] < sigma <= settings["guidance_high"]
            by_network = settings["guide"] != "prior"
            if scale == 1 or not inside or (by_network and same):
                return network(noisy, sigma, given)[0]
            if by_network:
                weak = network(noisy, sigma, without)[0]
                return weak + np.float32(scale) * (network(noisy, sigma, given)[0] - weak)
            strong = by_prior(noisy, sigma, given, None if same else without)
            if not negative:
                return strong
            weak = by_prior(noisy, sigma, without, nothing)
            return weak + np.float32(NEGATIVE_SCALE) * (strong - weak)

        return denoise

    # -- Texts ---------------------------------------------------------------------------------------------------------

    def text(self, stage, prompts):
        """Words, mask, pooled text and bag of n-grams of each prompt; nothing where the model reads no text."""
        values = {}
        if "text" in stage["graphs"]:
            words, pooled = zip(*(self.encode(stage, prompt) for prompt in prompts))
            longest = max(map(len, words))
            padded = [np.pad(each, ((0, longest - len(each)), (0, 0))) for each in words]
            read = [len(each) if prompt else 0 for each, prompt in zip(words, prompts)]
            mask = np.arange(longest) < np.array(read)[:, None]
            values = {"words": np.stack(padded), "mask": mask, "pooled": np.stack(pooled)}
        if self.about["vocabulary"] is not None:
            known = [set(ngram_buckets(prompt)) for prompt in prompts]
            values["bag"] = np.array([[bucket in own for bucket in self.about["vocabulary"]] for own in known], "f4")
        return values

    def encode(self, stage, text):
        """Words (word, width) and the pooled text (width,); an empty text has no words."""
        key, about = (stage["size"], text), self.about["text"]
        if not text:
            width = about["width"][str(stage["size"])]
            return np.zeros((1, width), "f4"), np.zeros(width, "f4")
        if key not in self.texts:
            read = letters_of if about["kind"] == "bytes" else self.tokens
            encoded = self.run(stage, "text", {"tokens": read(text, about["words"])[None]})
            self.texts[key] = encoded["words"][0], encoded["pooled"][0]
        return self.texts[key]

    def tokens(self, text, most):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            sys.exit("the text encoder of this model needs one more package; try: pip install tokenizers")
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(most)
        return np.array(tokenizer.encode(text).ids, np.int64)

    def run(self, stage, graph, values):
        """The outputs of a graph by their names."""
        file = stage["graphs"][graph]
        if file not in self.sessions:
            self.sessions[file] = onnxruntime.InferenceSession(self.folder / file, self.settings, self.providers)
        session = self.sessions[file]
        outputs = session.run(None, {one.name: values[one.name] for one in session.get_inputs()})
        return {one.name: value for one, value in zip(session.get_outputs(), outputs)}


def epsilon_scaled(denoise, amount, deviation):
    """Leaves a share of the noise in each estimate, `amount` where signal and noise are equal (arXiv 2308.15321)."""

    def scaled(noisy, sigma):
        ratio, estimate = (sigma / deviation) ** 2, denoise(noisy, sigma)
        return estimate + np.float32(amount * 4 * ratio / (1 + ratio) ** 2) * (noisy - estimate)

    return scaled


def deviation(stage, condition):
    """Of clean latents about the mean at which sampling starts, of each picture or of all."""
    known = np.hypot(np.float32(stage["sigma_data"]), condition.get("deviation", np.float32(0)))
    return known.mean((1, 2, 3), keepdims=True) if known.ndim else known


# -- Samplers: generators of the states after each step; see the papers for their algorithms --------------------------


def euler(denoise, noisy, sigmas, fresh):
    """First order (DDIM, arXiv 2010.02502)."""
    for sigma, next_sigma in pairwise(sigmas):
        noisy = noisy + (next_sigma - sigma) * ((noisy - denoise(noisy, sigma)) / sigma)
        yield noisy


def heun(denoise, noisy, sigmas, fresh):
    """Second order (EDM, arXiv 2206.00364, algorithm 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        if next_sigma > 0:
            ahead = noisy + (next_sigma - sigma) * slope
            slope = (slope + (ahead - denoise(ahead, next_sigma)) / next_sigma) / 2
        noisy = noisy + (next_sigma - sigma) * slope
        yield noisy


def dpm_solver(denoise, noisy, sigmas, fresh):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""
    before = None
    for sigma, next_sigma in pairwise(sigmas):
        denoised = extrapolated = denoise(noisy, sigma)
        if before is not None and next_sigma > 0:
            last_sigma, last_denoised = before
            ratio = math.log(sigma / next_sigma) / math.log(last_sigma / sigma)
            extrapolated = denoised + ratio / 2 * (denoised - last_denoised)
        noisy = extrapolated + next_sigma / sigma * (noisy - extrapolated)
        before = sigma, denoised
        yield noisy


def ancestral(denoise, noisy, sigmas, fresh):
    """DDPM (arXiv 2006.11239, eq. 6 and 7)."""
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(noisy, sigma)
        ratio = (next_sigma / sigma) ** 2
        noisy = denoised + ratio * (noisy - denoised) + next_sigma * math.sqrt(1 - ratio) * next(fresh)
        yield noisy


SAMPLERS = {"euler": euler, "heun": heun, "dpm_solver": dpm_solver, "ancestral": ancestral}


# -- Noise and texts as Calotype has them ------------------------------------------------------------------------------


def seeded(seed):
    """Gaussian noise keyed by a path, so that a picture does not depend on its batch (Philox: SC 2011)."""

    def noise(index, size, where, shape):
        path = (seed, "sample", index, size, *where)
        key = int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=16).digest(), "big")
        return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)

    return noise


def cleaned(text):
    """On one line, in normal form C, without control characters; what is clean stays as it is."""
    kept = (letter for letter in normalized(text) if unicodedata.category(letter)[0] != "C")
    return normalized("".join(kept))[:LONGEST_PROMPT].rstrip()


def normalized(text):
    return unicodedata.normalize("NFC", " ".join(text.split()))


def letters_of(text, most):
    """The bytes (word, 12) of the first `most` words, long ones in parts, 0 where a word has ended."""
    words = (word.encode("utf-8", "replace") for word in WORD.findall(text.lower().replace("\0", " ")))
    parts = [word[start : start + LETTERS] for word in words for start in range(0, len(word), LETTERS)][:most]
    return np.array([list(part.ljust(LETTERS, b"\0")) for part in parts], np.int64)


def ngram_buckets(caption):
    """Hashes of a caption's words, pairs and triples of words."""
    words = TOKEN.findall(caption.lower())
    spans = ((at, at + length) for length in range(1, LONGEST_NGRAM + 1) for at in range(len(words)))
    return {zlib.crc32(" ".join(words[first:last]).encode("utf-8", "replace")) % BUCKETS for first, last in spans}


# -- Pictures ----------------------------------------------------------------------------------------------------------


def to_bytes(images):
    """(count, 3, height, width) in [-1, 1] -> (count, height, width, 3) in 0 ... 255."""
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(pictures, gap=2):
    """Pictures in rows on white."""
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    sheet = np.full((-(-count // columns) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def png(picture):
    """The file of a picture (height, width, 3)."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main():
    parser = argparse.ArgumentParser(description="Pictures of the model in this folder.")
    parser.add_argument("--count", type=int, default=9)
    parser.add_argument("--label", help="class of the pictures; default: each in turn")
    parser.add_argument("--prompt", default="", help="what the pictures show, in words")
    parser.add_argument("--negative", default="", help="what to avoid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 disables it")
    parser.add_argument("--out", default="grid.png", help="PNG file to write")
    options, bundle = parser.parse_args(), Bundle()
    classes, prompt, negative = bundle.classes, cleaned(options.prompt), cleaned(options.negative)
    if options.count < 1:
        parser.error(f"--count is {options.count}, but must be at least 1")
    forms = {normalized(name): name for name in classes} | {name: name for name in classes}  # of Unicode
    label = options.label and forms.get(options.label, forms.get(normalized(options.label)))
    if options.label is not None and label not in classes:
        known = f"this model knows {', '.join(classes)}" if classes else "this model has no classes"
        parser.error(f"--label {options.label} is unknown; {known}")
    if (prompt or negative) and bundle.about["text"] is None:
        parser.error("this model reads no prompt; leave --prompt and --negative out")
    if options.guidance is not None and not 0 <= options.guidance < math.inf:
        parser.error(f"--guidance is {options.guidance}, but must be a number from 0 on; 1 disables it")
    try:
        Path(options.out).open("ab").close()  # before the time that pictures take
    except OSError as error:
        parser.error(f"--out {options.out} cannot be written: {error.strerror}; give a file in a folder that there is")
    if options.guidance is not None:
        bundle.stages[0]["sampling"]["guidance"] = options.guidance
    in_turn = [index % len(classes) if classes and not prompt else NULL_LABEL for index in range(options.count)]
    labels = in_turn if options.label is None else [classes.index(label)] * options.count
    texts = ([text] * options.count for text in (prompt, negative))
    Path(options.out).write_bytes(png(grid(bundle.sample(labels, *texts, options.seed))))
    print(f"{options.count} picture{'s' * (options.count > 1)} in {options.out}")


if __name__ == "__main__":
    main()
