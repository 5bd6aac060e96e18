"""Causal language models as three parts, and the Lipschitz one. Shape suffixes: B batch, T tokens, D width, V vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from certkit.config import LanguageModelConfig
from certkit.models.attention import CausalAttention, Rotary
from certkit.models.layers import ACTIVATIONS, Embedding, Linear, Residual, Unembedding, dropout


class LanguageModel(nn.Module):
    """Tokens (B, T), int64, T at most ``context`` -> logits (B, T, V); token t is answered from tokens 0 to t."""

    def __init__(self, embed: nn.Module, blocks: nn.Sequential, head: nn.Module, *, context: int) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = embed, blocks, head
        self.context = context

    def forward(self, tokens_BT: Tensor) -> Tensor:
        embedded_BTD: Tensor = self.embed(tokens_BT)
        return self.from_embeddings(embedded_BTD)

    def from_embeddings(self, x_BTD: Tensor) -> Tensor:
        """The logits of tokens given as points of the embedding space, where they can be moved a little."""
        logits_BTV: Tensor = self.head(self.hidden(x_BTD))
        return logits_BTV

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """What the head reads, token by token. Raises ValueError for more tokens than the context."""
        if x_BTD.shape[1] > self.context:
            raise ValueError(f"{x_BTD.shape[1]} tokens are more than the context of {self.context}")
        hidden_BTD: Tensor = self.blocks(x_BTD)
        return hidden_BTD


class AtEmbeddings(nn.Module):
    """Embeddings (B, T, D) -> the logits (B, V) that answer one position: what is certified where embeddings move.

    Only that position passes through the head, which acts on each token alone.
    """

    def __init__(self, model: LanguageModel, *, position: int = -1) -> None:
        super().__init__()
        self.model, self.position = model, position

    def forward(self, x_BTD: Tensor) -> Tensor:
        logits_BV: Tensor = self.model.head(self.model.hidden(x_BTD)[:, self.position])
        return logits_BV


def language_model(config: LanguageModelConfig) -> LanguageModel:
    """A transformer of 2 * blocks residual connections (1 - 1/N) x + 1/N f(x), N of them: arXiv 2507.13338.

    In the largest RMS of a token it is, on embeddings of RMS at most 1 and with every weight inside its cap,
    final_scale-Lipschitz at scale 1, and no activation is larger than 1: attention is 1-Lipschitz there and each MLP
    two matrices of norm 1 with a 1-Lipschitz function that fixes 0 between them; convex combinations of such maps are
    such maps. Positions come from rotations, which move nothing apart.
    """
    width, connections = config.width, 2 * config.blocks
    rotary = Rotary(config.context, width // config.heads)
    blocks: list[nn.Module] = []
    for _ in range(config.blocks):
        attention = CausalAttention(width, config.heads, rotary, scale=config.scale, zero=config.zero_outputs)
        blocks += [
            Residual(inner, 1 / connections)
            for inner in (
                nn.Sequential(attention, *dropout(config.dropout)),
                nn.Sequential(
                    Linear(width, width * config.expansion, bias=False, units="rms"),
                    ACTIVATIONS[config.activation](),
                    Linear(width * config.expansion, width, bias=False, units="rms", zero=config.zero_outputs),
                    *dropout(config.dropout),
                ),
            )
        ]
    return LanguageModel(
        Embedding(config.vocabulary, width),
        nn.Sequential(*blocks),
        Unembedding(width, config.vocabulary, scale=config.final_scale),
        context=config.context,
    )
