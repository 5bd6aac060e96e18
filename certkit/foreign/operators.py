"""ONNX operators as torch computes them. Attributes that no line reads are refused: nothing is left out in silence.

Source: the operators' definitions in https://onnx.ai/onnx/operators/, sets 9 to 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.errors import NoRule, Refusal, one_line

Value = Tensor | NDArray[Any] | None
FLOATS = {1: torch.float32, 11: torch.float64}


@dataclass(slots=True)
class Attributes:
    """The attributes of a node, each taken once."""

    label: str
    operator: str
    given: dict[str, Any]
    outputs: int
    opset: int

    def take(self, name: str, default: Any = None) -> Any:
        found = self.given.pop(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def only(self, name: str, expected: Any) -> None:
        """Take an attribute that may have one value. Raises NoRule."""
        if (found := self.take(name, expected)) != expected:
            self.refuse(f"with {name} = {one_line(found, 40)}")

    def refuse(self, what: str) -> NoReturn:
        raise NoRule(f"{self.label}: ONNX operator {self.operator} {what} has no rule")

    def finish(self) -> None:
        if self.given:
            self.refuse(f"with {', '.join(map(one_line, sorted(self.given)))}")

    def constant(self, value: Value, what: str) -> NDArray[Any]:
        """An input that must not depend on the network's input."""
        if isinstance(value, Tensor) or value is None:
            raise Refusal(
                f"{self.label}: {what} of ONNX operator {self.operator} depends on the input; that has no rule"
            )
        return value

    def integers(self, value: Value, what: str) -> list[int]:
        return [int(n) for n in np.asarray(self.constant(value, what)).reshape(-1)]

    def either(self, value: Value, name: str) -> Value:
        """An operand that is an input in newer operator sets and an attribute in older ones."""
        found = self.take(name)
        return value if found is None else np.asarray(found)

    def axes(self, value: Value) -> list[int] | None:
        """Axes, an attribute in older operator sets and an input in newer ones."""
        if value is None:
            found = self.take("axes")
            return None if found is None else [int(n) for n in found]
        return self.integers(value, "axes")


Translation = Callable[..., Any]
OPERATORS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Enter a translation for some operators."""

    def enter(translation: Translation) -> Translation:
        OPERATORS.update(dict.fromkeys(names, translation))
        return translation

    return enter


def tensor(value: Value) -> Any:
    """An operand: arrays of one entry as numbers, which every shape takes; other arrays as tensors."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return array.item() if array.size == 1 and array.ndim < 2 else torch.from_numpy(np.array(array))


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


# --- Shapes ---------------------------------------------------------------------------------------------------------


@translates("Reshape")
def reshape(given: Attributes, x: Tensor, shape: Value) -> Tensor:
    wanted = given.integers(shape, "the shape")
    if not given.take("allowzero", 0):
        wanted = [int(x.shape[at]) if n == 0 else n for at, n in enumerate(wanted)]
    return torch.reshape(x, wanted)


@translates("Flatten")
def flatten(given: Attributes, x: Tensor) -> Tensor:
    axis = given.take("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@translates("Transpose")
def transpose(given: Attributes, x: Tensor) -> Tensor:
    return torch.permute(x, given.take("perm", list(reversed(range(x.ndim)))))


@translates("Squeeze")
def squeeze(given: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    taken = given.axes(axes)
    if taken is None:
        given.refuse("without axes")
    return torch.squeeze(x, tuple(taken))


@translates("Unsqueeze")
def unsqueeze(given: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    added = given.axes(axes) or []
    rank = x.ndim + len(added)
    for axis in sorted(n % rank for n in added):
        x = torch.unsqueeze(x, axis)
    return x


@translates("Concat")
def concat(given: Attributes, *parts: Value) -> Tensor:
    whole = [part if isinstance(part, Tensor) else torch.from_numpy(np.array(part)) for part in parts]
    return torch.cat(whole, given.take("axis"))


@translates("Split")
def split(given: Attributes, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    axis, count = given.take("axis", 0), given.take("num_outputs", given.outputs)
    sizes = given.either(sizes, "split")
    if sizes is None:
        return torch.split(x, -(-int(x.shape[axis]) // count), axis)
    return torch.split(x, given.integers(sizes, "the sizes"), axis)


@translates("Slice")
def slice_(
    given: Attributes,
    x: Tensor,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> Tensor:
    starts, ends, axes = (given.either(v, n) for v, n in ((starts, "starts"), (ends, "ends"), (axes, "axes")))
    first, last = given.integers(starts, "the starts"), given.integers(ends, "the ends")
    along = list(range(len(first))) if axes is None else given.integers(axes, "the axes")
    stride = [1] * len(first) if steps is None else given.integers(steps, "the steps")
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        if step < 1:
            given.refuse("backwards")
        place = [slice(None)] * x.ndim
        place[axis % x.ndim] = slice(*slice(start, end, step).indices(int(x.shape[axis])))
        x = x[tuple(place)]
    return x


@translates("Gather")
def gather(given: Attributes, x: Tensor, indices: Value) -> Tensor:
    axis = given.take("axis", 0) % x.ndim
    places = np.asarray(given.constant(indices, "the indices"))
    places = np.where(places < 0, places + x.shape[axis], places)
    if places.ndim == 0:
        return torch.select(x, axis, int(places))
    found = torch.index_select(x, axis, torch.from_numpy(places.reshape(-1)))
    return torch.reshape(found, (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


@translates("Expand")
def expand(given: Attributes, x: Tensor, shape: Value) -> Tensor:
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(given.integers(shape, "the shape")))
    return x.expand(wanted)


@translates("Tile")
def tile(given: Attributes, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat(given.integers(repeats, "the repeats"))


@translates("Pad")
def pad(given: Attributes, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    given.only("mode", "constant")
    pads, value = given.either(pads, "pads"), given.either(value, "value")
    wide = given.integers(pads, "the widths")
    along = list(range(x.ndim)) if axes is None else [n % x.ndim for n in given.integers(axes, "the axes")]
    sides = {axis: (wide[at], wide[at + len(along)]) for at, axis in enumerate(along)}
    flat = [n for axis in reversed(range(x.ndim)) for n in sides.get(axis, (0, 0))]
    return F.pad(x, flat, value=0.0 if value is None else np.asarray(given.constant(value, "the value")).item())


# --- Layers ---------------------------------------------------------------------------------------------------------


@translates("Gemm")
def gemm(given: Attributes, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    """alpha A B + beta C; as a linear map where it is one."""
    alpha, beta = given.take("alpha", 1.0), given.take("beta", 1.0)
    if given.take("transA", 0):
        given.refuse("with transA")
    weight = b if given.take("transB", 0) else torch.transpose(b, 0, 1)
    bias = None if c is None else tensor(c)
    if beta != 1.0 and bias is not None:
        bias = bias * beta
    if isinstance(bias, Tensor) and bias.ndim == 2 and bias.shape[0] == 1:
        bias = bias[0]
    if alpha != 1.0:
        weight = weight * alpha
    if isinstance(bias, Tensor) and bias.shape == weight.shape[:1]:
        return F.linear(a, weight, bias)
    product = F.linear(a, weight)
    return product if bias is None else product + bias


def _padding(given: Attributes, x: Tensor, kernel: Sequence[int], value: float) -> Tensor:
    """The input padded as ``pads`` or ``auto_pad`` says."""
    mode, dims = given.take("auto_pad", "NOTSET"), len(kernel)
    if mode not in ("NOTSET", "VALID"):
        given.refuse(f"with auto_pad = {one_line(mode, 20)}")
    pads = given.take("pads", [0] * 2 * dims)
    flat = [n for axis in reversed(range(dims)) for n in (pads[axis], pads[axis + dims])]
    return F.pad(x, flat, value=value) if mode == "NOTSET" and any(flat) else x


def _symmetric(given: Attributes, dims: int) -> list[int] | None:
    """The same padding on both sides, which a convolution does by itself."""
    pads = given.given.get("pads", [0] * 2 * dims)
    if given.given.get("auto_pad", b"NOTSET") != b"NOTSET" or list(pads[:dims]) != list(pads[dims:]):
        return None
    given.take("pads"), given.take("auto_pad")
    return list(pads[:dims])


CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@translates("Conv")
def conv(given: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    if given.take("kernel_shape", kernel) != kernel or len(kernel) not in CONVOLUTIONS:
        given.refuse(f"with kernel {kernel}")
    ones = [1] * len(kernel)
    padding = _symmetric(given, len(kernel))
    if padding is None:
        x, padding = _padding(given, x, kernel, 0.0), [0] * len(kernel)
    stride, dilation, groups = given.take("strides", ones), given.take("dilations", ones), given.take("group", 1)
    return CONVOLUTIONS[len(kernel)](x, weight, bias, stride, padding, dilation, groups)


@translates("MaxPool")
def max_pool(given: Attributes, x: Tensor) -> Tensor:
    kernel, given_outputs = given.take("kernel_shape"), given.outputs
    given.only("ceil_mode", 0)
    given.take("storage_order")
    if given_outputs > 1 or len(kernel) not in MAXIMA:
        given.refuse("with the places of the maxima")
    ones = [1] * len(kernel)
    padding = _symmetric(given, len(kernel))
    if padding is None or any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        given.refuse("with this padding")
    return MAXIMA[len(kernel)](x, kernel, given.take("strides", ones), padding, given.take("dilations", ones))


@translates("AveragePool")
def average_pool(given: Attributes, x: Tensor) -> Tensor:
    kernel = given.take("kernel_shape")
    ones = [1] * len(kernel)
    given.only("ceil_mode", 0)
    given.only("dilations", ones)
    padding = _symmetric(given, len(kernel))
    if padding is None or len(kernel) not in MEANS:
        given.refuse("with this padding")
    whole = bool(given.take("count_include_pad", 0))
    return MEANS[len(kernel)](x, kernel, given.take("strides", ones), padding, count_include_pad=whole)


@translates("GlobalAveragePool")
def global_average(given: Attributes, x: Tensor) -> Tensor:
    if x.ndim < 3:
        given.refuse(f"of shape {tuple(x.shape)}")
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@translates("GlobalMaxPool")
def global_max(given: Attributes, x: Tensor) -> Tensor:
    if x.ndim < 3:
        given.refuse(f"of shape {tuple(x.shape)}")
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@translates("BatchNormalization")
def batch_norm(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    given.only("training_mode", 0)
    given.only("spatial", 1)
    given.take("momentum")
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=given.take("epsilon", 1e-5))


@translates("LayerNormalization")
def layer_norm(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    given.only("stash_type", 1)
    if given.outputs > 1:
        given.refuse("with mean and deviation as outputs")
    shape = list(x.shape[given.take("axis", -1) % x.ndim :])
    if list(scale.shape) != shape or (bias is not None and list(bias.shape) != shape):
        given.refuse(f"with weights of shape {tuple(scale.shape)}")
    return F.layer_norm(x, shape, scale, bias, given.take("epsilon", 1e-5))


@translates("InstanceNormalization")
def instance_norm(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=given.take("epsilon", 1e-5))


@translates("GroupNormalization")
def group_norm(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    given.only("stash_type", 1)
    if scale.shape[0] != x.shape[1]:
        given.refuse("with one weight per group")
    return F.group_norm(x, given.take("num_groups"), scale, bias, given.take("epsilon", 1e-5))


@translates("Softmax")
def softmax(given: Attributes, x: Tensor) -> Tensor:
    """Before set 13 over all axes from the named one on, which is the same for the last one alone."""
    axis = given.take("axis", 1 if given.opset < 13 else -1)
    if given.opset < 13 and axis % x.ndim != x.ndim - 1:
        given.refuse(f"over axis {axis} in operator set {given.opset}")
    return torch.softmax(x, axis)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
}


@translates(*REDUCTIONS)
def reduced(given: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    given.only("noop_with_empty_axes", 0)
    over = given.axes(axes)
    if not over:
        given.refuse("over all axes, the batch among them,")
    return REDUCTIONS[given.operator](x, tuple(over), bool(given.take("keepdims", 1)))
