"""Linear maps, convolutions, pooling, normalisation, softmax and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.errors import one_line
from certkit.foreign.operators.node import Attributes, Value, tensor, translates


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
