"""Readers of functions applied entry by entry."""

from __future__ import annotations

import torch
from torch.fx import Node

from certkit.engine.readers.table import reads
from certkit.engine.reading import Graph, Reading

aten = torch.ops.aten


@reads(aten.abs.default)
def absolute(node: Node, graph: Graph) -> Reading:
    return graph.reading("abs", node, [node.args[0]], {}, {})


@reads(aten.relu.default)
def relu(node: Node, graph: Graph) -> Reading:
    return graph.reading("relu", node, [node.args[0]], {}, {})


@reads(aten.gelu.default)
def gelu(node: Node, graph: Graph) -> Reading:
    return graph.reading("gelu", node, [node.args[0]], {"approximate": node.kwargs.get("approximate", "none")}, {})


@reads(aten.maximum.default, aten.minimum.default)
def larger_or_smaller(node: Node, graph: Graph) -> Reading:
    names = [graph.operand(node, argument) for argument in node.args]
    return Reading("larger-or-smaller", names, graph.attributes(node), {})
