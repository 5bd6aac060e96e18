"""Small networks and samples that several tests audit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.data import Dataset


def samples(count: int = 24, classes: int = 3, shape: tuple[int, ...] = (1, 2, 2), seed: int = 0) -> Dataset:
    """Random images in [0, 1] with random labels."""
    rng = np.random.default_rng(seed)
    images = rng.random((count, *shape)).astype(np.float32)
    return Dataset.of(images, rng.integers(0, classes, count), name="random", classes=[str(c) for c in range(classes)])


def labelled_by(model: nn.Module, data: Dataset) -> Dataset:
    """The same images, each labelled as the model sees it, so that every sample is correct."""
    with torch.no_grad():
        labels = model(data.images).argmax(1)
    return Dataset.of(data.images, labels, name="random", classes=data.record.classes)


def linear(classes: int = 3, entries: int = 4, seed: int = 0) -> nn.Module:
    """Flatten and one linear map: its certified radius is known in closed form."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, classes)).eval()


def perceptron(hidden: int = 8, classes: int = 3, entries: int = 4, seed: int = 0) -> nn.Module:
    """Two linear maps with a GELU between them, whose bound is no equality."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, hidden), nn.GELU(), nn.Linear(hidden, classes)).eval()


class SixHeads(nn.Module):
    """Six heads with identity weights on 24 entries per token, images of 8 x 24: one row is one token.

    When every token moves by one vector, each head hands its slice of it on, and the slices add up over the heads: a
    bound that counts one head is short by sqrt(6).
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.tokens, self.width = 6, 8, 24
        self.head = nn.Linear(self.width, 2)
        with torch.no_grad():
            direction = torch.ones(self.width) / self.width**0.5
            self.head.weight.copy_(torch.stack([direction, -direction]) / 2**0.5)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], self.tokens, self.width) - 0.5
        split = tokens.reshape(x.shape[0], self.tokens, self.heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(split, split, split, scale=0.1)
        joined = mixed.transpose(1, 2).reshape(x.shape[0], self.tokens, self.width)
        logits: Tensor = self.head(joined.mean(1))
        return logits
