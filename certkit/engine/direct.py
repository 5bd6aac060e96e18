"""Convolutions by direct sums, the arithmetic whose rounding their rule charges for: windows, then one matrix product.

``torch`` promises no algorithm for a convolution; oneDNN and NNPACK know Winograd and FFT, which err by more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.convolution import Convolution

aten = torch.ops.aten
CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.convolution.default,
)


def geometry(target: Any, args: tuple[Any, ...], size: tuple[int, ...], kernel: tuple[int, ...]) -> Convolution | None:
    """What the arguments of a convolution mean on images of a size; None where it is transposed."""
    dims = len(kernel)

    def numbers(position: int, default: int) -> tuple[int, ...]:
        given = args[position] if len(args) > position else default
        wide = list(given) if isinstance(given, (list, tuple)) else [given]
        return tuple(wide * dims if len(wide) == 1 else wide)

    general = target is aten.convolution.default
    dilation = numbers(5, 1)
    groups = args[8] if general else args[6] if len(args) > 6 else 1
    if general and args[6]:
        return None
    named = args[4] if len(args) > 4 else "valid"
    if isinstance(named, str) and not general and target in CONVOLUTIONS[3:6]:
        # torch puts what is left over of 'same' behind
        total = [d * (k - 1) * (named == "same") for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((n // 2, n - n // 2) for n in total)
    else:
        padding = tuple((n, n) for n in numbers(4, 0))
    return Convolution(size, numbers(3, 1), padding, dilation, int(groups))


def convolve(target: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any) -> Tensor:
    """The convolution node ``target(x, weight, bias, *options)``, not transposed."""
    kernel = tuple(weight.shape[2:])
    given = geometry(target, (x, weight, bias, *options), tuple(x.shape[2:]), kernel)
    assert given is not None
    x = F.pad(x, [n for pad in reversed(given.padding) for n in pad])
    for axis, (k, s, d) in enumerate(zip(kernel, given.stride, given.dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]  # (batch, channels, positions..., taps...)
    positions, groups = x.shape[2 : 2 + len(kernel)], given.groups
    windows = x.reshape(x.shape[0], groups, x.shape[1] // groups, math.prod(positions), math.prod(kernel))
    windows = windows.transpose(2, 3).flatten(3)
    y = windows @ weight.reshape(groups, weight.shape[0] // groups, -1).mT
    y = y.transpose(2, 3).reshape(x.shape[0], weight.shape[0], *positions)
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(kernel))
