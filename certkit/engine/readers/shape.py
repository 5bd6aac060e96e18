"""Readers of operators that only move entries, leave some out, or lay values side by side."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.readers.table import READERS, argument, reads
from certkit.engine.reading import Graph, Reading
from certkit.errors import NoRule, Refusal

aten = torch.ops.aten


@reads(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)
def same(node: Node, graph: Graph) -> Reading:
    return relabelled(node, graph)


@reads(aten.dropout.default, aten.native_dropout.default)
def dropout(node: Node, graph: Graph) -> Reading:
    if node.target is aten.native_dropout.default or argument(node, 2, "train"):
        raise Refusal(
            f"{module_path(node)}: dropout is active in the exported graph, so that the output is random; "
            "use nn.Dropout and model.eval(), or pass training=self.training"
        )
    return relabelled(node, graph)


@reads(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def relabelled(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    before, after = graph.shape(x), graph.shape(node)
    if before[0] != 1 or after[0] != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} merges the batch axis with others; that has no rule")
    return graph.reading("relabel", node, [x], {"groups": view_groups(before, after)}, {})


def view_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[list[int]]]:
    """The finest pairing of input axes with output axes that hold the same entries in the same order."""
    old = [axis for axis in range(1, len(before)) if before[axis] > 1]
    new = [axis for axis in range(1, len(after)) if after[axis] > 1]
    groups: list[list[list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [old[i]], [new[j]]
        p, q = before[old[i]], after[new[j]]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                left.append(old[i])
                p, i = p * before[old[i]], i + 1
            else:
                right.append(new[j])
                q, j = q * after[new[j]], j + 1
        groups.append([left, right])
    return groups


@reads(aten.permute.default, aten.transpose.int)
def permute(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    rank = len(graph.shape(x))
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % rank for axis in argument(node, 1, "dims")]
    if order[0] != 0:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} moves the batch axis; that has no rule")
    groups = [[[old], [new]] for new, old in enumerate(order) if new > 0]
    return graph.reading("relabel", node, [x], {"groups": groups}, {})


@reads(aten.slice.Tensor)
def slice_(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    if argument(node, 1, "dim", 0) % len(graph.shape(x)) == 0 and graph.shape(x) != graph.shape(node):
        raise Refusal(f"{module_path(node)}: a slice of the batch axis has no rule")
    return graph.reading("part", node, [x], {"axes": list(range(len(graph.shape(x))))}, {})


@reads(aten.select.int)
def select(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    axis = argument(node, 1, "dim") % len(graph.shape(x))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: a selection along the batch axis has no rule")
    return graph.reading("part", node, [x], {"axes": [a for a in range(len(graph.shape(x))) if a != axis]}, {})


@reads(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def split(node: Node, graph: Graph) -> Reading:
    # The pieces are read by getitem; the tuple itself stands for the whole value.
    (x, *_) = node.args
    axis = argument(node, 2, "dim", 0) % len(graph.shape(x))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: a split of the batch axis has no rule")
    return Reading(
        "part", [graph.name(x)], {"shape": list(graph.shape(x)), "axes": list(range(len(graph.shape(x))))}, {}
    )


@reads(operator.getitem)
def piece(node: Node, graph: Graph) -> Reading:
    source = node.args[0]
    if not isinstance(source, Node) or READERS.get(source.target) is not split:
        raise NoRule(f"{module_path(node)}: no rule for an element of {getattr(source, 'target', source)}; {REMEDY}")
    return graph.reading("part", node, [source], {"axes": list(range(len(graph.shape(node))))}, {})


@reads(aten.cat.default)
def cat(node: Node, graph: Graph) -> Reading:
    parts = node.args[0]
    axis = argument(node, 1, "dim", 0) % len(graph.shape(node))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: joining along the batch axis has no rule")
    pairs = _sorted_halves(parts, axis, graph)
    if pairs is not None:
        return graph.reading("sorted-pairs", node, [pairs], {"axis": axis}, {})
    assert isinstance(parts, (list, tuple))
    names = [graph.operand(node, part, shape=graph.shape(part)) for part in parts]
    return Reading("join", names, {**graph.attributes(node), "axis": axis}, {})


def _sorted_halves(parts: Any, axis: int, graph: Graph) -> Node | None:
    """The value whose two halves along ``axis`` are sorted entry against entry (MaxMin), or None.

    Matches cat([maximum(a, b), minimum(a, b)]) where a and b are the two pieces of one split along the same axis.
    """
    if len(parts) != 2 or [getattr(p, "target", None) for p in parts] != [aten.maximum.default, aten.minimum.default]:
        return None
    a, b = parts[0].args
    if tuple(parts[1].args) not in {(a, b), (b, a)}:
        return None
    if any(not isinstance(n, Node) or n.target is not operator.getitem for n in (a, b)) or a.args[0] is not b.args[0]:
        return None
    source = a.args[0]
    if READERS.get(source.target) is not split or {a.args[1], b.args[1]} != {0, 1}:
        return None
    whole = source.args[0]
    rank = len(graph.shape(whole))
    halves = graph.shape(a)[axis] == graph.shape(b)[axis] and graph.shape(a)[axis] * 2 == graph.shape(whole)[axis]
    return whole if argument(source, 2, "dim", 0) % rank == axis and halves else None
