"""Layers of Lipschitz transformers: a forward map, and the norm that each weight lives in.

Built from ordinary torch operators, so that the certificate engine reads the same graph that runs.
Shape suffixes: B batch, C channels, S image side, G patches per side, P patch side, T tokens, D model width, F fan-out,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.rules.pointwise import GELU_SLOPE
from certkit.models.geometry import Declared, Entries, Geometry, Rows, Spectral

Units: TypeAlias = Literal["l2", "rms"]


def orthogonal(*shape: int, geometry: Spectral) -> nn.Parameter:
    """A random matrix, or a stack of them, with every singular value where its cap is: there training starts."""
    weight = torch.empty(shape)
    for matrix in weight.reshape(-1, *shape[-2:]):
        nn.init.orthogonal_(matrix, gain=geometry.limit(shape))
    return nn.Parameter(weight)


class Linear(Declared):
    """x_BTD -> x_BTD @ weight_FD.T + bias; ``tokens`` gives every token a bias of its own, which says where it stands.

    The weight starts at its cap in its own units, or at ``zero``.
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        bias: bool = True,
        tokens: int | None = None,
        units: Units = "l2",
        cap: float = 1.0,
        zero: bool = False,
    ) -> None:
        super().__init__()
        spectral = Spectral(cap=cap, units=units)
        self.geometry = {"weight": spectral, "bias": Entries()}  # type: ignore[misc]
        self.weight = nn.Parameter(torch.zeros(out, width)) if zero else orthogonal(out, width, geometry=spectral)
        shape = (out,) if tokens is None else (tokens, out)
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or self.bias.ndim == 1:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight) + self.bias


class Embedding(Declared):
    """Tokens (B, T), int64 -> their rows of a table (V, D); every row starts with RMS 1, the most its cap allows."""

    geometry: ClassVar[Mapping[str, Geometry]] = {"weight": Rows()}

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        rows = torch.randn(vocabulary, width)
        self.weight = nn.Parameter(rows / rows.square().mean(1, keepdim=True).sqrt())

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)


class Unembedding(Declared):
    """x_BTD -> scale x_BTD @ weight_VD.T, in RMS at most scale times the RMS of a token; without a bias."""

    geometry: ClassVar[Mapping[str, Geometry]] = {"weight": Spectral(units="rms")}

    def __init__(self, width: int, vocabulary: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = orthogonal(vocabulary, width, geometry=Spectral(units="rms"))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.scale * F.linear(x_BTD, self.weight)


class MaxMin(nn.Module):
    """Sorts each entry of the first half against its partner in the second: an isometry almost everywhere.

    Anil, Lucas and Grosse 2019, arXiv 1811.05381.
    """

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=-1)


class GELU(nn.Module):
    """x Phi(x) over its largest slope, that at sqrt(2): moves no entry further than its input, nor away from 0.

    The slope is the engine's, proved in tests/test_constants.py; 1.1289 would be below it.
    """

    slope = GELU_SLOPE["none"].to_float()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) / self.slope


class Absolute(nn.Module):
    """x -> |x|: an isometry almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"maxmin": MaxMin, "relu": nn.ReLU, "gelu": GELU, "abs": Absolute}


class Residual(nn.Module):
    """x -> (1 - weight) x + weight f(x): 1-Lipschitz when f is, whatever the weight in [0, 1]."""

    def __init__(self, inner: nn.Module, weight: float) -> None:
        super().__init__()
        self.inner, self.weight = inner, weight

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(x)
        return (1 - self.weight) * x + self.weight * inner


class Patches(nn.Module):
    """Images (B, C, S, S) -> their patches (B, T, C P P), row by row: a reordering of the entries."""

    def __init__(self, grid: int, patch: int) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch

    def forward(self, x_BCSS: Tensor) -> Tensor:
        batch, channels = x_BCSS.shape[:2]
        x_BCGPGP = x_BCSS.reshape(batch, channels, self.grid, self.patch, self.grid, self.patch)
        return x_BCGPGP.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def dropout(share: float) -> list[nn.Module]:
    """The layer that drops this share of all entries while training, if any: none has no place in the graph."""
    return [nn.Dropout(share)] if share else []
