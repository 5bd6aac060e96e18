"""Readers of convolutions and of pooling over windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from certkit.bounds.convolution import Convolution, convolution_norms
from certkit.bounds.spectral import euclidean, largest
from certkit.engine.direct import CONVOLUTIONS, geometry
from certkit.engine.program import module_path, operator_name
from certkit.engine.readers.shape import routes
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import Refusal

aten = torch.ops.aten
Places = NDArray[np.int64]


@reads(*CONVOLUTIONS)
def convolution(node: Node, graph: Graph) -> Reading:
    if node.kwargs:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with named arguments has no rule")
    x, weight, bias = node.args[0], argument(node, 1, "weight"), argument(node, 2, "bias")
    if weight not in graph.constants or (bias is not None and bias not in graph.constants):
        raise Refusal(f"{module_path(node)}: a convolution whose weight depends on the input has no rule")
    if graph.constants[weight].is_complex():
        raise Refusal(f"{module_path(node)}: a convolution with complex weights has no rule")
    w = array(graph.constants[weight])
    shape = graph.shape(x)
    if len(shape) != w.ndim:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {shape} with weight {w.shape} has no rule; "
            "expected a batch of images with channels"
        )
    found = geometry(node.target, node.args, shape[2:], w.shape[2:])
    if found is None:
        raise Refusal(f"{module_path(node)}: a transposed convolution has no rule")
    if (1, len(w), *found.outputs(w.shape[2:])) != graph.shape(node):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} of {shape} does not give {graph.shape(node)}")
    evidence = graph.measured(("convolution", f"{weight.name} {found}"), lambda: convolution_norms(w, found))
    b = array(graph.constants[bias]) if bias is not None else np.zeros(1)
    vector = {"bias_l2": float(euclidean(b.reshape(1, -1), axis=1)[0]), "bias_linf": largest(b)}
    return graph.reading("convolution", node, [x], {"terms": math.prod(w.shape[1:])}, {**evidence, **vector})


# --- Pooling. ---------------------------------------------------------------------------------------------------------


def _numbers(value: Any, dims: int) -> tuple[int, ...]:
    wide = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(wide * dims if len(wide) == 1 else wide)


def _sliding(node: Node, graph: Graph, dims: int, dilation: tuple[int, ...]) -> list[Places]:
    """Per dimension, which input position each place of each window is, −1 outside the image: (outputs, places)."""
    kernel = _numbers(argument(node, 1, "kernel_size"), dims)
    stride = _numbers(argument(node, 2, "stride") or kernel, dims)
    padding = _numbers(argument(node, 3, "padding", 0), dims)
    found = Convolution(graph.shape(node.args[0])[-dims:], stride, tuple((p, p) for p in padding), dilation, 1)
    windows = []
    for n, k, s, (before, _), d, out in zip(
        found.size, kernel, found.stride, found.padding, dilation, graph.shape(node)[-dims:], strict=True
    ):
        at = np.arange(out)[:, None] * s + np.arange(k)[None, :] * d - before
        windows.append(np.where((at >= 0) & (at < n), at, -1))
    return windows


def _spanning(node: Node, graph: Graph, dims: int) -> list[Places]:
    """The same for adaptive pooling: output i of o spans the positions floor(i·n/o) .. ceil((i+1)·n/o) − 1 of n."""
    windows = []
    for n, out in zip(graph.shape(node.args[0])[-dims:], graph.shape(node)[-dims:], strict=True):
        spans = [range(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
        longest = max(len(span) for span in spans)
        windows.append(np.array([[*span, *[-1] * (longest - len(span))] for span in spans]))
    return windows


def _windows(node: Node, graph: Graph, windows: list[Places]) -> tuple[Places, tuple[int, ...]]:
    """The numbers of the input entries in each window, −1 for none: (1, channels, positions..., places).

    All channels are pooled alike, so that two of them tell what all do; the second part is the input's shape with these.
    """
    before = graph.shape(node.args[0])
    dims = len(windows)
    if len(before) != dims + 2 or before[0] != 1:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {before} has no rule; expected a batch of images with channels"
        )
    before = (1, min(before[1], 2), *before[2:])
    found = np.arange(before[1]).reshape(1, before[1], *(1,) * (2 * dims))
    for axis, places in enumerate(windows):
        shape = [1] * (2 + 2 * dims)
        shape[2 + axis], shape[2 + dims + axis] = places.shape
        spread = places.reshape(shape)
        found = np.where((found >= 0) & (spread >= 0), found * before[2 + axis] + spread, -1)
    return found.reshape(*found.shape[: 2 + dims], -1), before


@reads(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(node: Node, graph: Graph) -> Reading:
    dims = len(graph.shape(node)) - 2
    dilation = _numbers(argument(node, 4, "dilation", 1), dims)
    sources, before = _windows(node, graph, _sliding(node, graph, dims, dilation))
    if bool((sources < 0).all(axis=-1).any()):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} has a window of padding alone; its value is -infinity"
        )
    found = [list(route) for route in routes(sources, before, within=[sources.ndim - 1])]
    return graph.reading("window-max", node, [node.args[0]], {"routes": found}, {})


@reads(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(node: Node, graph: Graph) -> Reading:
    dims = len(graph.shape(node)) - 2
    if argument(node, 4, "ceil_mode", False):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with ceil_mode has no rule")
    if argument(node, 6, "divisor_override") is not None:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with divisor_override has no rule; multiply instead")
    windows = _sliding(node, graph, dims, (1,) * dims)
    return _mean(node, graph, windows, count_padding=argument(node, 5, "count_include_pad", True))


@reads(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool(node: Node, graph: Graph) -> Reading:
    return _mean(node, graph, _spanning(node, graph, len(graph.shape(node)) - 2), count_padding=False)


def _mean(node: Node, graph: Graph, windows: list[Places], *, count_padding: bool) -> Reading:
    sources, before = _windows(node, graph, windows)
    terms = math.prod(places.shape[1] for places in windows)
    fewest = terms if count_padding else math.prod(int((places >= 0).sum(axis=1).min()) for places in windows)
    last = sources.ndim - 1
    places = [routes(sources[..., place], before) for place in range(terms)]
    # One place at a time: the widest read and the largest count of any place. Where windows are of several lengths, the
    # mean is one of vectors over A only if A stays at one position.
    # Place by place only where every window holds all its places: two windows of one entry each may hold it at different ones.
    even = count_padding or all(bool((at >= 0).all()) for at in windows)
    single = [
        [sorted(set().union(*(same[0] for same in alike))), alike[0][1], max(same[2] for same in alike), 0]
        for alike in zip(*places, strict=True)
        if even or not {*alike[0][1]} - {1}
    ]
    attributes = {
        "fewest": fewest,
        "terms": terms,
        "padded": int(count_padding and bool((sources < 0).any())),
        "joint": [list(route) for route in routes(sources, before, within=[last])],
        "single": single,
    }
    return graph.reading("window-mean", node, [node.args[0]], attributes, {})
