"""The end of a classifier's graph, of which pairs of logits have bounds of their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from certkit.bounds.ledger import MAX_PAIRED_CLASSES
from certkit.bounds.number import Up
from certkit.engine.execute import aten
from certkit.engine.readers import argument
from certkit.engine.reading import Graph


@dataclass(frozen=True, slots=True)
class Head:
    """The logits are x W' + b times numbers, of which ``factor`` bounds the product's absolute value."""

    x: Node
    weight: Node
    bias: Node | None
    factor: Up


def head_of(graph: Graph) -> Head | None:
    """The linear map that the logits come from; None without one, and beyond MAX_PAIRED_CLASSES."""
    node, factor = graph.program.output, Up.of(1)
    while node.target is aten.mul.Tensor and isinstance(node.args[1], (int, float)) and graph.depends(node.args[0]):
        factor = factor * Up.of(abs(float(node.args[1])))
        (node, _) = node.args  # type: ignore[assignment]
    shape = graph.shape(node)
    if node.target is not aten.linear.default or len(shape) != 2 or shape[-1] > MAX_PAIRED_CLASSES:
        return None
    x, weight, bias = (argument(node, place, name) for place, name in enumerate(("input", "weight", "bias")))
    return Head(x, weight, bias, factor)
