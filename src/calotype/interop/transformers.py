"""A text encoder in the layout of transformers: a folder of config.json, tokenizer.json and safetensors.

Its code is that of the package, for the few kinds that are listed here; nothing in the folder can run, pickles are
never read, and no hub is asked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from calotype.files import read_json, sha256
from calotype.interop.folders import (
    TOKENIZER,
    config_folder,
    open_tokenizer,
    read_parts,
    require_package,
    weights_files,
)
from calotype.nets.frozen import Encoding, FolderConfig, PretrainedEncoder
from calotype.types import UserError

KINDS = {
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""The `model_type` of what is known, and its class there."""
SHIFTED = ("roberta", "xlm-roberta", "mpnet")
"""They leave their first places unused: as many as the number of the padding, and one."""
ENCODER_WEIGHTS, ENCODER_PARTS = "model.safetensors", r"model(-\d{5}-of-\d{5})?\.safetensors"
DEPTHS = ("num_hidden_layers", "num_layers", "n_layers")


class TransformersEncoder(nn.Module):
    """A network of transformers; the pooled text is CLIP's own, and the mean over the tokens of all others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        output = self.network(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        context = output.last_hidden_state
        is_clip = type(self.network).__name__ == "CLIPTextModel"
        return Encoding(context, output.pooler_output if is_clip else context.mean(1))


def open_encoder(config: FolderConfig) -> PretrainedEncoder:
    """Raises `UserError` where the folder holds no encoder that is known, or another one than the recipe names."""
    folder, digest = Path(config.path), digest_of(Path(config.path))
    if config.digest not in ("", digest):
        raise UserError(
            f"the text encoder in {folder} has sha256 {digest[:12]}, but {config.digest[:12]} was trained with; "
            f"put that one there"
        )
    kind, settings = read_encoder_config(folder)
    network = load_network(folder, kind, KINDS[kind], settings)
    theirs: Any = network.config
    spare = (theirs.pad_token_id or 0) + 1 if kind in SHIFTED else 0
    most = min(config.words, getattr(theirs, "max_position_embeddings", config.words + spare) - spare)
    tokenize = open_tokenizer(folder / TOKENIZER, most, theirs.vocab_size)
    encoder = TransformersEncoder(network).eval().requires_grad_(False)
    return PretrainedEncoder(tokenize, encoder, theirs.hidden_size, most, f"{digest} {most}")


def digest_of(folder: Path) -> str:
    """Of the files that are read. Raises `UserError` where one is missing."""
    require_package("transformers")
    files = [config_file(folder), folder / TOKENIZER, *weights_files(folder, ENCODER_WEIGHTS, ENCODER_PARTS)]
    hashes = (f"{file.name} {sha256(file)}" for file in files if file.is_file())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def config_file(folder: Path) -> Path:
    expected = f"{TOKENIZER} and {ENCODER_WEIGHTS} of a text encoder"
    return config_folder("denoiser.text.path", folder, expected) / "config.json"


def read_encoder_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """What kind of encoder it is, and the settings of that. Raises `UserError` for a kind that is not known."""
    file = config_file(folder)
    settings = read_json(file)
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{file}: model_type is {kind!r:.40}, but must be one of {', '.join(KINDS)}")
    settings = settings.get("text_config") if kind == "clip" else settings
    if not isinstance(settings, dict):
        raise UserError(f"{file}: text_config is {settings!r:.40}, but must hold the settings of the text encoder")
    return kind, settings


def load_network(folder: Path, kind: str, class_name: str, settings: dict[str, Any]) -> nn.Module:
    """With its weights, in float32. Raises `UserError` if one is missing, damaged, or of another shape."""
    file, weights = folder / "config.json", read_parts(weights_files(folder, ENCODER_WEIGHTS, ENCODER_PARTS))
    for name in DEPTHS:
        if isinstance(depth := settings.get(name), int) and depth > len(weights):
            raise UserError(
                f"{file}: {name} is {depth}, but there are {len(weights)} weights; take both from one place"
            )
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    network: Any = getattr(transformers, class_name)
    try:
        loaded, loading = network.from_pretrained(
            None, config=network.config_class.from_dict(settings), state_dict=weights, output_loading_info=True,
            attn_implementation="eager", dtype=torch.float32,
        )  # fmt: skip
    except Exception as error:  # whatever a wrong config makes theirs raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{file}: no {kind} can be made of it and the weights ({reason}); take both from one place"
        ) from None
    if missing := sorted(name for name in loading["missing_keys"] if "pooler" not in name):
        raise UserError(f"{folder} has no weights for {missing[0]:.80}, which its config.json asks for; copy it again")
    if not all(value.isfinite().all() for value in loaded.parameters()):
        raise UserError(f"{folder} has weights that are not numbers; take another copy of them")
    return loaded
