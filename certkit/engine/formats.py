"""What becomes of a weight that is stored in fewer bits: the number formats, each with its rounding.

A rounded weight is given in the dtype that it came in, as a program sees it that widens stored weights before it uses them.
torch casts a float64 weight by way of float32, so that it may end beside the nearest number where it lay next to a tie.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certkit.errors import ConfigError, Refusal, one_line, suggestion

E4M3_LARGEST = 448.0
INT8_LARGEST = 127.0


def bf16(weight: Tensor) -> Tensor:
    """To the nearest bfloat16, ties to even, as torch casts; what is beyond its largest number, 3.39e38, becomes infinity."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def fp8_unscaled(weight: Tensor) -> Tensor:
    """To the nearest e4m3 number, ties to even, as torch casts; what is beyond the largest, 448, becomes 448 with its sign."""
    return weight.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).to(weight.dtype)


def fp8(weight: Tensor) -> Tensor:
    """e4m3 with one scale per tensor, max|w| / 448: the rounded w / scale, times the scale again in the weight's dtype."""
    scale = _scale(weight.abs().max() if weight.numel() else weight.new_zeros(()), E4M3_LARGEST)
    return fp8_unscaled(weight / scale) * scale


def int8(weight: Tensor) -> Tensor:
    """Whole numbers from -127 to 127, ties to even, with one scale per output channel, max|w| / 127; no zero point.

    The output channel is the first axis, as torch keeps linear maps, convolutions and tables. A bias, or any other weight
    of fewer than two axes, stays as it is. Whole number times scale is rounded to the weight's dtype.
    """
    if weight.ndim < 2 or not weight.numel():
        return weight.clone()
    scale = _scale(weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True), INT8_LARGEST)
    return torch.round(weight / scale).clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8).to(weight.dtype) * scale


def _scale(largest: Tensor, levels: float) -> Tensor:
    """largest / levels, but no subnormal number: those are too coarse to divide by, and 0 stands for a channel of zeros."""
    return (largest / levels).clamp_min(torch.finfo(largest.dtype).tiny)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "bf16": bf16,
    "fp8-e4m3": fp8,
    "fp8-e4m3-unscaled": fp8_unscaled,
    "int8": int8,
}
USUAL = ("bf16", "fp8-e4m3", "int8")


def named(formats: tuple[str, ...]) -> tuple[str, ...]:
    """The formats, each once. Raises ConfigError for none, and for one that is not in the table."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                f"no number format is called {one_line(name, 40)!r}; expected one of {', '.join(FORMATS)}"
                f"{suggestion(name, FORMATS)}"
            )
    if not formats:
        raise ConfigError(f"no number format was given; expected some of {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def rounded(model: nn.Module, name: str) -> nn.Module:
    """A copy of the model with every parameter rounded to the format; tied ones stay tied, and buffers are not touched.

    What the model stores is rounded: a weight that it computes from stored ones is computed from the rounded ones. Raises
    Refusal, naming the parameter, where the format cannot hold it.
    """
    twin = copy.deepcopy(model)
    for path, parameter in twin.named_parameters():
        if not parameter.is_floating_point():
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise Refusal(f"weight {path!r} holds NaN or infinity; a network with such a weight has no bound")
        value = FORMATS[name](parameter.detach().cpu())
        if not bool(torch.isfinite(value).all()):
            largest = float(parameter.detach().abs().max())
            raise Refusal(
                f"weight {path!r} cannot be rounded to {name}: it holds {largest:.4g}, which {name} rounds to infinity"
            )
        parameter.data = value.to(parameter.device)
    return twin
