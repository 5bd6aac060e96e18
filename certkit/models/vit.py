"""A Lipschitz vision transformer: patches, tokenwise layers, attention, and a head that reads all tokens.

No normalisation layer anywhere; every matrix lives in the spectral norm. Shape suffixes: B batch, C channels, S image
side, T tokens, D width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from certkit.config import VisionTransformerConfig
from certkit.models.attention import Attention
from certkit.models.layers import Linear, MaxMin, Patches, Residual, dropout


class VisionTransformer(nn.Module):
    """Images in [0, 1] of shape (B, C, size, size) -> logits (B, classes)."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        grid = config.image_size // config.patch
        tokens, width = grid**2, config.width
        self.patches = Patches(grid, config.patch)
        self.embed = nn.Sequential(Linear(config.channels * config.patch**2, width, tokens=tokens), MaxMin())
        position = neighbours(grid, config.heads, config.position)
        blocks: list[nn.Module] = []
        for _ in range(config.blocks):
            attention = Attention(width, config.heads, position, scale=config.scale, rate=config.position_rate)
            blocks.append(Residual(attention, config.residual) if config.residual < 1 else attention)
            blocks += dropout(config.dropout)
            for _ in range(config.mlp_layers):
                blocks += [MaxMin(), Linear(width, width, tokens=tokens), *dropout(config.dropout)]
            blocks.append(MaxMin())
        self.blocks = nn.Sequential(*blocks)
        hidden: list[nn.Module] = []
        for entries, out in pairwise(config.hidden):
            hidden += [Linear(entries, out), MaxMin(), *dropout(config.dropout)]
        self.hidden = nn.Sequential(*hidden)
        self.head = Linear(config.hidden[-1], config.classes)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        x_BTD = self.embed(self.patches(x_BCSS - 0.5))
        logits: Tensor = self.head(self.hidden(self.blocks(x_BTD).flatten(1)))
        return logits


def neighbours(grid: int, heads: int, strength: float) -> Tensor:
    """Constant scores (heads, T, T) with which head h first looks ``strength`` more at one neighbour of each token.

    The offsets go round the token, itself first, and wrap at the border, so that every key is looked at equally often:
    column sums of the softmax are 1, the best that the Lipschitz bound of attention can meet.
    """
    first = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
    seen = {(down % grid, right % grid) for down, right in first}
    farther = [(down, right) for down in range(grid) for right in range(grid) if (down, right) not in seen]
    offsets = [*first, *sorted(farther, key=lambda offset: sum(min(n, grid - n) ** 2 for n in offset))]
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    scores = torch.zeros(heads, grid**2, grid**2)
    for head in range(heads):
        down, right = offsets[head % len(offsets)]
        neighbour = ((rows + down) % grid * grid + (columns + right) % grid).flatten()
        scores[head, torch.arange(grid**2), neighbour] = strength
    return scores
