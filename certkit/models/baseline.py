"""Standard pre-normalised transformers, the honest baselines: LayerNorm, biases, GELU, x + f(LN(x)), learned positions.

No Lipschitz bound is claimed. Weights declare their norms all the same, so that every optimiser and every constraint can
be tried on them. Shape suffixes: B batch, C channels, S image side, H heads, T tokens, D width, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.config import LanguageBaselineConfig, VisionBaselineConfig
from certkit.models.attention import heads_apart
from certkit.models.geometry import Declared, Entries, Geometry
from certkit.models.gpt import LanguageModel
from certkit.models.layers import Embedding, Linear, Patches, Units, dropout

SPREAD = 0.02  # of embeddings and positions at the start, as in GPT-2


class LayerNorm(Declared):
    """Every token less its mean, over its standard deviation, times a weight, plus a bias."""

    geometry: ClassVar[Mapping[str, Geometry]] = {"weight": Entries(), "bias": Entries()}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias)


class Positions(Declared):
    """x_BTD + a learned vector for each place."""

    geometry: ClassVar[Mapping[str, Geometry]] = {"weight_TD": Entries()}

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight_TD = nn.Parameter(SPREAD * torch.randn(tokens, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.weight_TD[: x_BTD.shape[1]]


class StandardAttention(nn.Module):
    """Multi-head softmax attention with biases and scores q·k / sqrt(head width)."""

    def __init__(self, width: int, heads: int, *, causal: bool, units: Units, shrink: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.q, self.k, self.v = (dense(width, width, units=units) for _ in range(3))
        self.out = dense(width, width, units=units, shrink=shrink)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (heads_apart(map_(x_BTD), self.heads) for map_ in (self.q, self.k, self.v))
        share = self.dropout if self.training else 0.0
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=self.causal, dropout_p=share)
        joined: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return joined


class Added(nn.Module):
    """x -> x + f(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(x)
        return x + inner


def dense(width: int, out: int, *, units: Units, bias: bool = True, shrink: float = 1.0) -> Linear:
    """A linear layer that starts as wide as nn.Linear does, 1/sqrt(3 width), which is GPT-2's 0.02 at width 833."""
    layer = Linear(width, out, bias=bias, units=units, zero=True)
    nn.init.normal_(layer.weight, std=shrink / math.sqrt(3 * width))
    return layer


def normalised(config: VisionBaselineConfig | LanguageBaselineConfig, *, causal: bool, units: Units) -> nn.Sequential:
    """Attention and MLP in turn, each added to what it reads through LayerNorm, then one last LayerNorm."""
    width, hidden, share = config.width, config.width * config.expansion, config.dropout
    shrink = 1 / math.sqrt(max(1, 2 * config.blocks))  # as in GPT-2: the sum of all blocks starts no larger than one
    parts: list[nn.Module] = []
    for _ in range(config.blocks):
        attention = StandardAttention(width, config.heads, causal=causal, units=units, shrink=shrink, dropout=share)
        wide, narrow = dense(width, hidden, units=units), dense(hidden, width, units=units, shrink=shrink)
        parts.append(Added(LayerNorm(width), attention, *dropout(share)))
        parts.append(Added(LayerNorm(width), wide, nn.GELU(), narrow, *dropout(share)))
    return nn.Sequential(*parts, LayerNorm(width))


class VisionBaseline(nn.Module):
    """Images in [0, 1] of shape (B, C, size, size) -> logits (B, classes), of the mean over all tokens."""

    def __init__(self, config: VisionBaselineConfig) -> None:
        super().__init__()
        grid, width = config.image_size // config.patch, config.width
        self.patches = Patches(grid, config.patch)
        patch = dense(config.channels * config.patch**2, width, units="l2")
        self.embed = nn.Sequential(patch, Positions(grid**2, width), *dropout(config.dropout))
        self.blocks = normalised(config, causal=False, units="l2")
        self.head = dense(width, config.classes, units="l2")

    def forward(self, x_BCSS: Tensor) -> Tensor:
        x_BTD = self.blocks(self.embed(self.patches(x_BCSS - 0.5)))
        logits: Tensor = self.head(x_BTD.mean(1))
        return logits


def language_baseline(config: LanguageBaselineConfig) -> LanguageModel:
    """GPT-2 as nanoGPT builds it, with a head of its own and without dropout unless the run asks for it."""
    embed = Embedding(config.vocabulary, config.width)
    nn.init.normal_(embed.weight, std=SPREAD)
    return LanguageModel(
        embed,
        nn.Sequential(
            Positions(config.context, config.width),
            *dropout(config.dropout),
            *normalised(config, causal=True, units="rms"),
        ),
        dense(config.width, config.vocabulary, units="rms", bias=False),
        context=config.context,
    )
