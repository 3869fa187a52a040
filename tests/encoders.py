"""Text encoders so small that making one takes a moment; they know a few words of English and Vietnamese."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from calotype.interop.folders import TOKENIZER, open_tokenizer
from calotype.nets.frozen import Bert, PretrainedEncoder

WORDS = (
    "<s>",
    "<pad>",
    "</s>",
    "[UNK]",
    "a",
    "red",
    "cat",
    "on",
    "the",
    "sofa",
    "bức",
    "tranh",
    "picture",
    *"0123456789",
)
WIDTH, PLACES = 16, 24


def write_vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(folder / TOKENIZER))
    return folder / TOKENIZER


def small_encoder(folder: Path, most: int = 12) -> PretrainedEncoder:
    torch.manual_seed(3)
    network = Bert(len(WORDS), PLACES, WIDTH, 1, 2).eval().requires_grad_(False)
    tokenize = open_tokenizer(write_vocabulary(folder), most, len(WORDS))
    return PretrainedEncoder(tokenize, network, WIDTH, most, f"small {most}")


def write_encoder(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """Random weights in the layout of transformers, with what it has beside the text where there is more."""
    import transformers

    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    known = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": PLACES,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    short = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    deep = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    eyes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 8,
        "patch_size": 4,
    }
    network = {
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**shape, **known)),
        "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**short, **known)),
        "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**shape, **known)),
        "xlm-roberta": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**shape, **known)),
        "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**shape, **known)),
        "clip_text_model": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**shape, **known)),
        "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=shape | known, vision_config=eyes)),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**deep, vocab_size=len(WORDS))),
        "mt5": lambda: transformers.MT5Model(transformers.MT5Config(**deep, vocab_size=len(WORDS))),
        "umt5": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**deep, vocab_size=len(WORDS))),
    }[kind]()  # fmt: skip
    for parameter in network.parameters():  # so small that otherwise all texts are nearly one
        parameter.data += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    write_vocabulary(folder)
    return folder
