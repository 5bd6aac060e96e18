"""Readers of linear maps, sums, constant factors and means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from certkit.bounds.spectral import absolute_norm, absolute_sums, euclidean, largest, spectral_norm, up
from certkit.engine.program import module_path, operator_name
from certkit.engine.readers import products
from certkit.engine.readers import shape as shapes
from certkit.engine.readers.normalisation import left_out
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import Refusal

aten = torch.ops.aten


@reads(aten.linear.default)
def linear(node: Node, graph: Graph) -> Reading:
    x, weight, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
    if weight not in graph.constants or (bias is not None and bias not in graph.constants):
        raise Refusal(f"{module_path(node)}: a linear map whose weight depends on the input has no rule")
    w = array(graph.constants[weight])
    b = array(graph.constants[bias]) if bias is not None else None
    if len(graph.shape(x)) < 2 or w.ndim != 2 or (b is not None and b.shape != w.shape[:1]):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {graph.shape(x)} with weight {w.shape} and bias "
            f"{None if b is None else b.shape} has no rule; expected weight (outputs, inputs) and bias (outputs,)"
        )
    return graph.reading("linear", node, [x], {}, {**stretch(graph, weight, w[None]), **shift(b)})


def stretch(graph: Graph, weight: Node, matrices: NDArray[np.float64], turned: str = "") -> dict[str, float]:
    """How much the largest of some matrices (count, outputs, inputs) stretches what it maps."""
    return graph.measured(
        ("linear" + turned, weight.name),
        lambda: {
            "sigma": max(spectral_norm(w) for w in matrices),
            "absolute": max(absolute_norm(w) for w in matrices),
            "row_l2": max(float(euclidean(w, axis=1).max()) for w in matrices),
            "row_l1": max(float(absolute_sums(w, axis=1).max()) for w in matrices),
        },
    )


def shift(bias: NDArray[np.float64] | None) -> dict[str, float]:
    return {
        "bias_l2": 0.0 if bias is None else float(euclidean(bias.reshape(1, -1), axis=1)[0]),
        "bias_linf": 0.0 if bias is None else largest(bias),
    }


@reads(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default)
def matmul(node: Node, graph: Graph) -> Reading:
    a, b = node.args[:2]
    if graph.depends(a) and graph.depends(b):
        return products.matrices(node, graph)
    return mapped(node, graph, a, b, None)


@reads(aten.addmm.default)
def addmm(node: Node, graph: Graph) -> Reading:
    bias, x, weight = node.args[:3]
    if argument(node, 3, "beta", 1) != 1 or argument(node, 4, "alpha", 1) != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with alpha or beta has no rule; multiply first")
    b = graph.constants.get(bias)  # type: ignore[arg-type]
    if (
        not graph.depends(x)
        or graph.depends(weight)
        or b is None
        or b.shape not in ((graph.shape(node)[1],), (1, graph.shape(node)[1]))
    ):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} has a rule for a constant matrix and a bias of its columns only"
        )
    return mapped(node, graph, x, weight, array(b))


def mapped(node: Node, graph: Graph, a: Any, b: Any, bias: NDArray[np.float64] | None) -> Reading:
    """A product with a constant matrix: on the right it maps features, on the left it mixes tokens."""
    left = graph.depends(b)
    x, weight = (b, a) if left else (a, b)
    before, after, w = graph.shape(x), graph.shape(node), array(graph.constants[weight])
    if w.ndim == 1 and not left and len(before) == len(after) + 1:  # x @ w: one output, whose axis is then taken away
        shape = (*after, 1)
        evidence = {**stretch(graph, weight, w[None, None], "-vector"), **shift(None)}
        name = graph.step("linear", node, [graph.name(x)], {"shape": list(shape)}, evidence, suffix="column")
        return Reading("relabel", [name], {**graph.attributes(node), "groups": shapes.view_groups(shape, after)}, {})
    if w.ndim < 2 or len(before) != len(after) or len(before) < (3 if left else 2) or before[:-2] != after[:-2]:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {graph.shape(a)} and {graph.shape(b)} has no rule; "
            "expected a value (batch, ..., features) and a constant matrix"
        )
    matrices = w.reshape(-1, *w.shape[-2:])
    if not left:
        evidence = {**stretch(graph, weight, matrices.swapaxes(1, 2), "-right"), **shift(bias)}
        return graph.reading("linear", node, [x], {}, evidence)
    rank = len(before)
    swap = [[[axis], [axis]] for axis in range(1, rank - 2)] + [[[rank - 2], [rank - 1]], [[rank - 1], [rank - 2]]]
    evidence = {**stretch(graph, weight, matrices, "-left"), **shift(None)}
    turned, mixed = ((*shape[:-2], shape[-1], shape[-2]) for shape in (before, after))
    name = graph.step("relabel", node, [graph.name(x)], {"shape": list(turned), "groups": swap}, {}, suffix="turned")
    name = graph.step("linear", node, [name], {"shape": list(mixed)}, evidence, suffix="mixed")
    return Reading("relabel", [name], {**graph.attributes(node), "groups": swap}, {})


@reads(aten.add.Tensor, aten.sub.Tensor)
def add(node: Node, graph: Graph) -> Reading | None:
    if node.target is aten.add.Tensor and left_out(node, graph):
        return None  # the softmax that reads it knows of the mask
    if argument(node, 2, "alpha", 1) != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with alpha has no rule; multiply first")
    a, b = node.args[0], node.args[1]
    for value in (a, b):
        if isinstance(value, Node) and not graph.depends(value) and bool(torch.isinf(graph.constants[value]).any()):
            raise Refusal(
                f"{module_path(node)}: {operator_name(node)} of an infinite constant has no bound where anything but a softmax "
                "reads the result"
            )
    names = [products.operand(node, graph, a), products.operand(node, graph, b)]
    if node.target is aten.sub.Tensor:
        names[1] = graph.step("negate", node, [names[1]], graph.attributes(node), {}, suffix="minus")
    return Reading("add", names, graph.attributes(node), {})


@reads(aten.mul.Tensor, aten.div.Tensor)
def scale(node: Node, graph: Graph) -> Reading:
    a: Any = node.args[0]
    b: Any = node.args[1]
    if node.target is aten.mul.Tensor and not graph.depends(a):
        a, b = b, a
    if graph.depends(b):
        return products.multiplied(node, graph) if node.target is aten.mul.Tensor else products.divided(node, graph)
    factor = graph.constants[b] if isinstance(b, Node) else torch.tensor(float(b), dtype=torch.float64)
    values = array(factor)
    if node.target is aten.div.Tensor:
        if bool((values == 0).any()):
            raise Refusal(f"{module_path(node)}: a division by zero has no bound")
        values = 1.0 / values
        stretch = up(up(largest(values)))
        low, high = math.nextafter(float(values.min()), -math.inf), up(float(values.max()))
    else:
        stretch, low, high = largest(values), float(values.min()), float(values.max())
    return graph.reading("scale", node, [a], {"low": low, "high": high}, {"largest": stretch})


@reads(aten.neg.default)
def negate(node: Node, graph: Graph) -> Reading:
    return graph.reading("negate", node, [node.args[0]], {}, {})


@reads(aten.mean.dim)
def mean(node: Node, graph: Graph) -> Reading:
    axes = reduced_axes(node, graph, argument(node, 1, "dim"))
    return graph.reading("mean", node, [node.args[0]], {"axes": axes}, {})


@reads(aten.sum.dim_IntList)
def sum_(node: Node, graph: Graph) -> Reading:
    axes = reduced_axes(node, graph, argument(node, 1, "dim"))
    return graph.reading("sum", node, [node.args[0]], {"axes": axes}, {})


def reduced_axes(node: Node, graph: Graph, given: Any) -> list[int]:
    rank = len(graph.shape(node.args[0]))
    axes = sorted({axis % rank for axis in given or range(rank)})
    if 0 in axes:
        kind = "mean" if node.target is aten.mean.dim else "sum"
        raise Refusal(f"{module_path(node)}: a {kind} over the batch axis has no rule; name the axes of one sample")
    return axes
