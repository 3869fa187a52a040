"""A text encoder in the layout of transformers: a folder of config.json, tokenizer.json and safetensors.

Its code is that of the package, for the few kinds that are listed here; nothing in the folder can run, pickles are
never read, and no hub is asked.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calotype.files import read_json, sha256
from calotype.interop.vocabulary import FILE, need, open_vocabulary
from calotype.nets.frozen import Encoding, FolderConfig, Reader
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
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
BESIDE = "encoder"
"""Where in a model's folder its encoder is looked for first; it is not put there, for its size and its licence."""
DEPTHS = ("num_hidden_layers", "num_layers", "n_layers")


class Theirs(nn.Module):
    """Their network, as ours answer: the text of CLIP is what it was trained to be, of others the mean of its words."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        output = self.network(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        context = output.last_hidden_state
        is_clip = type(self.network).__name__ == "CLIPTextModel"
        return Encoding(context, output.pooler_output if is_clip else context.mean(1))


def open_reader(config: FolderConfig) -> Reader:
    """Raises `UserError` where the folder holds no encoder that is known, or another one than the recipe names."""
    folder, found = Path(config.path), digest_of(Path(config.path))
    if config.digest not in ("", found):
        raise UserError(
            f"the text encoder in {folder} has sha256 {found[:12]}, but {config.digest[:12]} was trained with; "
            f"put that one there"
        )
    kind, settings = read_config(folder)
    network = build(folder, kind, settings)
    theirs: Any = network.config
    spare = (theirs.pad_token_id or 0) + 1 if kind in SHIFTED else 0
    most = min(config.words, getattr(theirs, "max_position_embeddings", config.words + spare) - spare)
    spell = open_vocabulary(folder / FILE, most, theirs.vocab_size)
    reader = Theirs(network).eval().requires_grad_(False)
    return Reader(spell, reader, theirs.hidden_size, f"{found} {most}")


def at_hand(model: Path, text: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model's text encoder, with the place where it lies now: in the model's folder, or as before.

    Raises `UserError` where it is in neither.
    """
    if text.get("kind") != "folder":
        return text
    here = model / BESIDE
    if not here.is_dir() and not Path(text["path"]).is_dir():
        raise UserError(
            f"the model in {model} reads with a text encoder (sha256 {text['digest'][:12]}) that was in {text['path']} "
            f"and is gone; put it, or a link to it, at {here}"
        )
    return {**text, "path": str(here)} if here.is_dir() else text


def digest_of(folder: Path) -> str:
    """Of the files that are read. Raises `UserError` where one is missing."""
    need("transformers")
    files = [find(folder) / "config.json", folder / FILE, *weights_files(folder)]
    hashes = (f"{file.name} {sha256(file)}" for file in files if file.is_file())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def find(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"denoiser.text.path: {folder} {what}; expected one with config.json, {FILE} and model.safetensors"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"denoiser.text.path: no config.json in {folder}; expected the folder of a text encoder")
    return folder


def weights_files(folder: Path) -> list[Path]:
    """One, or the parts of a large one. Raises `UserError` where there are none that can be read."""
    files = sorted(file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name))
    if not files:
        pickles = sorted(folder.glob("*.bin"))
        raise UserError(
            f"{pickles[0]} is a pickle, which can run code, and is never read; convert it to model.safetensors"
            if pickles
            else f"{folder / 'model.safetensors'} is missing; expected the encoder's weights beside its config.json"
        )
    return [folder / "model.safetensors"] if folder / "model.safetensors" in files else files


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """What kind of encoder it is, and the settings of that. Raises `UserError` for a kind that is not known."""
    file = find(folder) / "config.json"
    settings = read_json(file)
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{file}: model_type is {kind!r:.40}, but must be one of {', '.join(KINDS)}")
    settings = settings.get("text_config") if kind == "clip" else settings
    if not isinstance(settings, dict):
        raise UserError(f"{file}: text_config is {settings!r:.40}, but must hold the settings of the text encoder")
    return kind, settings


def build(folder: Path, kind: str, settings: dict[str, Any]) -> nn.Module:
    """With its weights, in float32. Raises `UserError` if one is missing, damaged, or of another shape."""
    file, weights = folder / "config.json", read_weights(folder)
    for name in DEPTHS:
        if isinstance(depth := settings.get(name), int) and depth > len(weights):
            raise UserError(
                f"{file}: {name} is {depth}, but there are {len(weights)} weights; take both from one place"
            )
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    network: Any = getattr(transformers, KINDS[kind])
    try:
        made, loading = network.from_pretrained(
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
    if not all(value.isfinite().all() for value in made.parameters()):
        raise UserError(f"{folder} has weights that are not numbers; take another copy of them")
    return made


def read_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in weights_files(folder):
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged, or is not safetensors ({error}); copy it again") from None
    return weights
