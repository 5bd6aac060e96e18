"""Several operators seen at once: linear maps however they are written, moves of entries, and the value behind a subgraph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from certkit.engine.readers.table import argument
from certkit.engine.reading import Graph, array

aten = torch.ops.aten
Array = NDArray[np.float64]
MAX_NODES = 32  # of one subgraph


class Found(NamedTuple):
    """A fused rule, the values that it reads, and what it must know beside the output's shape."""

    rule: str
    values: list[Node]
    attributes: dict[str, Any]
    evidence: Mapping[str, float]


class Linear(NamedTuple):
    """x W' + b over the last axis: the value x, W (outputs, inputs) and b."""

    x: Node
    weight: Array
    bias: Array | None


def linear_of(node: Node, graph: Graph) -> Linear | None:
    """The node as a linear map of the last axis of one value, if it is one."""
    if node.target is aten.linear.default:
        x, weight, bias, turned = node.args[0], node.args[1], argument(node, 2, "bias"), False
    elif node.target is aten.addmm.default:
        bias, x, weight, turned = *node.args[:3], True
        if argument(node, 3, "beta", 1) != 1 or argument(node, 4, "alpha", 1) != 1:
            return None
    elif node.target in (aten.mm.default, aten.matmul.default):
        x, weight, bias, turned = *node.args[:2], None, True
    else:
        return None
    if not isinstance(x, Node) or not graph.depends(x) or not isinstance(weight, Node) or graph.depends(weight):
        return None
    w = array(graph.constants[weight])
    b = None if bias is None else array(graph.constants[bias]).reshape(-1)
    if w.ndim != 2 or len(graph.shape(x)) != len(graph.shape(node)):
        return None
    w = w.T if turned else w
    return None if b is not None and b.shape != w.shape[:1] else Linear(x, w, b)


SAME = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default, aten.dropout.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints)
TURNS = (
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
)
MOVES = (*SAME, *VIEWS, *TURNS, operator.getitem)


def gathered(
    node: Node,
    graph: Graph,
    follows: Callable[[Node], list[Node] | None],
    enough: Callable[[list[Node]], bool] = lambda inner: True,
) -> tuple[Node, list[Node]] | None:
    """The value through which all that ``node`` reads must come, with the nodes from there to it, in order; or None.

    The latest node is taken apart, as long as ``follows`` names the values that it reads, until one value is left that
    does for ``enough`` of the nodes between.
    """
    frontier, inner = {node}, list[Node]()
    while True:
        latest = max(frontier)  # nodes are ordered as they run
        # the pieces of a split, a tuple, are no value
        if len(frontier) == 1 and inner and latest in graph.program.shapes and enough(inner[::-1]):
            return latest, inner[::-1]
        read = follows(latest)
        if read is None or len(inner) == MAX_NODES:
            return None
        frontier = (frontier - {latest}) | set(read)
        inner.append(latest)


def summands(node: Node, graph: Graph) -> list[tuple[float, Any]] | None:
    """The two signed operands of a sum or difference that torch does not broadcast, constants included; None for another node."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or argument(node, 2, "alpha", 1) != 1:
        return None
    a, b = node.args[:2]
    if any(graph.depends(value) and graph.shape(value) != graph.shape(node) for value in (a, b)):
        return None
    return [(1.0, a), (-1.0 if node.target is aten.sub.Tensor else 1.0, b)]


def multiple(node: Node, graph: Graph) -> tuple[Node, Array] | None:
    """A value times a constant, or over one: the value and the factors, of which those of a quotient are rounded once."""
    if node.target not in (aten.mul.Tensor, aten.div.Tensor):
        return None
    value, other = node.args[:2]
    if node.target is aten.mul.Tensor and not graph.depends(value):
        value, other = other, value
    if not isinstance(value, Node) or not graph.depends(value) or graph.depends(other):
        return None
    factors = array(graph.constants[other]) if isinstance(other, Node) else np.asarray(float(other))  # type: ignore[arg-type]
    if graph.shape(value) != graph.shape(node) or not np.isfinite(factors).all():
        return None
    if node.target is aten.div.Tensor:
        with np.errstate(divide="ignore", over="ignore"):
            factors = 1.0 / factors
        if not np.isfinite(factors).all() or bool((np.abs(factors) < 1e-290).any()):
            return None
    return value, factors
