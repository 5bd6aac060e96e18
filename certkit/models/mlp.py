"""A multilayer perceptron whose every layer is 1-Lipschitz in the norm that its weights live in."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from certkit.config import MultilayerConfig
from certkit.models.layers import ACTIVATIONS, Linear, dropout


class Multilayer(nn.Module):
    """Images in [0, 1] of shape (B, channels, size, size) -> logits (B, classes)."""

    def __init__(self, config: MultilayerConfig) -> None:
        super().__init__()
        self.centred = config.centred
        *hidden_widths, last = pairwise(config.widths)
        hidden: list[nn.Module] = []
        for width, out in hidden_widths:
            hidden += [
                Linear(width, out, bias=config.bias, units=config.units),
                ACTIVATIONS[config.activation](),
                *dropout(config.dropout),
            ]
        self.hidden = nn.Sequential(*hidden)
        self.head = Linear(*last, bias=config.bias, units=config.units, zero=config.zero_head)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - 0.5 if self.centred else x
        logits: Tensor = self.head(self.hidden(centred.flatten(1)))
        return logits
