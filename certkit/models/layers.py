"""Layers of Lipschitz transformers: a forward map, and the norm that each weight lives in.

Built from ordinary torch operators, so that the certificate engine reads the same graph that runs.
Shape suffixes: B batch, H heads, T tokens, D model width, E head width, F fan-out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.models.geometry import Declared, Entries, Geometry, Spectral


def orthogonal(rows: int, columns: int) -> nn.Parameter:
    """A random matrix with all singular values 1: where every spectral cap starts."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns)))


class Linear(Declared):
    """x_BTD -> x_BTD @ weight_FD.T + bias; ``tokens`` gives every token a bias of its own, which says where it stands."""

    geometry: ClassVar[Mapping[str, Geometry]] = {"weight": Spectral(), "bias": Entries()}

    def __init__(self, width: int, out: int, *, bias: bool = True, tokens: int | None = None) -> None:
        super().__init__()
        self.weight = orthogonal(out, width)
        shape = (out,) if tokens is None else (tokens, out)
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or self.bias.ndim == 1:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight) + self.bias


class MaxMin(nn.Module):
    """Sorts each entry of the first half against its partner in the second: an isometry almost everywhere.

    Anil, Lucas and Grosse 2019, arXiv 1811.05381.
    """

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=-1)


class Attention(Declared):
    """Multi-head softmax attention with a learned constant score for every pair of positions, per head.

    Scores are (scale / head width) q·k plus the constant; no bias on q, k, v, so that sizes stay those of the tokens. The
    constant costs the Lipschitz bound only what its softmax concentrates on one key.
    """

    geometry: ClassVar[Mapping[str, Geometry]] = {"position_HTT": Entries()}

    def __init__(self, width: int, heads: int, position_HTT: Tensor, *, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale / (width // heads)
        self.q, self.k, self.v = (Linear(width, width, bias=False) for _ in range(3))
        self.out = Linear(width, width, tokens=position_HTT.shape[-1])
        self.position_HTT = nn.Parameter(position_HTT.clone())

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (self._heads(map_(x_BTD)) for map_ in (self.q, self.k, self.v))
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BHTE, v_BHTE, attn_mask=self.position_HTT.unsqueeze(0), scale=self.scale
        )
        joined: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return joined

    def _heads(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        return x_BTD.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


class Residual(nn.Module):
    """x -> (1 - weight) x + weight f(x): 1-Lipschitz when f is, whatever the weight in [0, 1]."""

    def __init__(self, inner: nn.Module, weight: float) -> None:
        super().__init__()
        self.inner, self.weight = inner, weight

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(x)
        return (1 - self.weight) * x + self.weight * inner
