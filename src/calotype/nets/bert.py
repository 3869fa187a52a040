"""BERT (arXiv 1810.04805) as an encoder of texts: the shape of MiniLM (arXiv 2002.10957)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from calotype.nets.blocks import Tokens
from calotype.nets.frozen import Encoding


class Bert(nn.Module):
    """Texts of equally many tokens; the mean of a text's words is the whole text (arXiv 1908.10084)."""

    def __init__(self, vocabulary: int, places: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(places, width)
        self.sentences = nn.Embedding(2, width)  # the first or the second; a caption has no second
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(BertBlock(width, heads) for _ in range(depth))

    def forward(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        places = self.places.weight[: tokens.shape[1]]
        context = self.norm(self.words(tokens) + places + self.sentences.weight[0])
        for block in self.blocks:
            context = block(context)
        return Encoding(context, context.mean(1))


class BertBlock(nn.Module):
    """Attention, then a feed-forward network; each is normalised after it is added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm_attend, self.norm_feed = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, tokens: Tokens) -> Tokens:
        heads = (one(tokens).unflatten(2, (self.heads, -1)) for one in (self.query, self.key, self.value))
        query, key, value = (one.transpose(1, 2) for one in heads)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = self.norm_attend(tokens + self.out(mixed))
        return self.norm_feed(tokens + self.down(F.gelu(self.up(tokens))))
