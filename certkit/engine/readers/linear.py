"""Readers of linear maps, sums, constant factors and means."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from certkit.bounds.spectral import absolute_norm, absolute_sums, euclidean, largest, spectral_norm, up
from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import NoRule, Refusal

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
    evidence = graph.measured(
        ("linear", weight.name),
        lambda: {
            "sigma": spectral_norm(w),
            "absolute": absolute_norm(w),
            "row_l2": float(euclidean(w, axis=1).max()),
            "row_l1": float(absolute_sums(w, axis=1).max()),
        },
    )
    vector = {
        "bias_l2": 0.0 if b is None else float(euclidean(b.reshape(1, -1), axis=1)[0]),
        "bias_linf": 0.0 if b is None else largest(b),
    }
    return graph.reading("linear", node, [x], {}, {**evidence, **vector})


@reads(aten.add.Tensor, aten.sub.Tensor)
def add(node: Node, graph: Graph) -> Reading:
    if argument(node, 2, "alpha", 1) != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with alpha has no rule; multiply first")
    a, b = node.args[0], node.args[1]
    names = [graph.operand(node, a), graph.operand(node, b)]
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
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)} where both operands depend on the input; "
            f"to certify this model, {REMEDY}"
        )
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
    x, rank = node.args[0], len(graph.shape(node.args[0]))
    averaged = argument(node, 1, "dim")
    if not averaged:
        raise Refusal(f"{module_path(node)}: a mean over the batch axis has no rule; name the axes of one sample")
    axes = sorted({axis % rank for axis in averaged})
    if 0 in axes:
        raise Refusal(f"{module_path(node)}: a mean over the batch axis has no rule; name the axes of one sample")
    return graph.reading("mean", node, [x], {"axes": axes}, {})
