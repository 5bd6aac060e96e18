"""Functions of entries, products and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.foreign.operators.node import OPERATORS, Attributes, Translation, Value, tensor, translates

FLOATS = {1: torch.float32, 11: torch.float64}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Div": lambda a, b: a / b,
    "Mul": lambda a, b: a * b,
    "Sub": lambda a, b: a - b,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Translation:
    return lambda given, x: function(x)


def _binary(function: Callable[[Any, Any], Any]) -> Translation:
    return lambda given, a, b: function(tensor(a), tensor(b))


OPERATORS |= {name: _unary(function) for name, function in UNARY.items()}
OPERATORS |= {name: _binary(function) for name, function in BINARY.items()}


@translates("MatMul")
def matmul(given: Attributes, a: Value, b: Value) -> Tensor:
    """A product; with a weight matrix on the right it is a linear map, and told as one."""
    left, right = (v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for v in (a, b))
    if isinstance(right, nn.Parameter) and right.ndim == 2 and left.ndim > 1:
        return F.linear(left, torch.transpose(right, 0, 1))
    return torch.matmul(left, right)


@translates("Pow")
def power(given: Attributes, x: Tensor, exponent: Value) -> Tensor:
    number = np.asarray(given.constant(exponent, "the exponent"))
    if number.size != 1:
        given.refuse("with several exponents")
    return torch.pow(x, number.item())


@translates("Max", "Min")
def extreme(given: Attributes, *values: Value) -> Tensor:
    if len(values) == 1:
        return tensor(values[0])  # type: ignore[no-any-return]
    first, *rest = (v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for v in values)
    for value in rest:
        a, b = torch.broadcast_tensors(first, value)  # type: ignore[no-untyped-call]
        first = torch.maximum(a, b) if given.operator == "Max" else torch.minimum(a, b)
    return first


@translates("Gelu")
def gelu(given: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=given.take("approximate", "none"))


@translates("LeakyRelu")
def leaky_relu(given: Attributes, x: Tensor) -> Tensor:
    return F.leaky_relu(x, given.take("alpha", 0.01))


@translates("Elu")
def elu(given: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, given.take("alpha", 1.0))


@translates("HardSigmoid")
def hard_sigmoid(given: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(x * given.take("alpha", 0.2) + given.take("beta", 0.5), 0.0, 1.0)


@translates("PRelu")
def prelu(given: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    whole = slope.numel() == 1
    per_channel = slope.ndim == x.ndim - 1 and slope.shape[0] == x.shape[1] == slope.numel()
    if not whole and not per_channel:
        given.refuse(f"with slopes of shape {tuple(slope.shape)}")
    return F.prelu(x, slope.reshape(-1))


@translates("Clip")
def clip(given: Attributes, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    limits = given.either(low, "min"), given.either(high, "max")
    ends = [None if end is None else np.asarray(given.constant(end, "a bound")).item() for end in limits]
    return x if ends == [None, None] else torch.clamp(x, *ends)


@translates("Cast")
def cast(given: Attributes, x: Tensor) -> Tensor:
    given.take("saturate")
    if FLOATS.get(given.take("to")) is not x.dtype:
        given.refuse("to another precision")
    return x


@translates("Dropout")
def dropout(given: Attributes, x: Tensor, ratio: Value = None, training: Value = None) -> Tensor:
    given.take("seed"), given.take("ratio")
    if given.outputs > 1 or (training is not None and bool(given.constant(training, "training_mode"))):
        given.refuse("in training mode")
    return x


@translates("Where")
def where(given: Attributes, condition: Value, a: Value, b: Value) -> Tensor:
    chosen = torch.from_numpy(np.array(given.constant(condition, "the condition")))
    return torch.where(chosen, tensor(a), tensor(b))
