"""Readers of several operators at once.

Each pattern looks at one node and back from it. What it finds is entered beside the bound that the operators give, and
the rule takes the better of the two; where no pattern fits, the operators' bound stands alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from certkit.bounds.spectral import euclidean, spectral_norm
from certkit.engine.readers import curves
from certkit.engine.readers.entries import combination
from certkit.engine.readers.expansion import expansion
from certkit.engine.readers.subgraph import MOVES, SAME, VIEWS, Found, Linear, linear_of
from certkit.engine.reading import Graph, Reading

aten = torch.ops.aten


def read(node: Node, graph: Graph) -> Reading | None:
    """What the node's rule must know; where a pattern fits, the fused rule with the operators' bound as its last input."""
    plain = curves.read(node, graph)
    if plain is None:
        return None
    for pattern in PATTERNS:
        found = pattern(node, graph)
        if found is not None and all(value.name in graph.bounds for value in found.values):
            # a curve has entered the operators' bound itself, beside its own
            known = "function" if plain.rule == "curve" else "operators"
            name = graph.step(plain.rule, node, plain.inputs, plain.attributes, plain.evidence, suffix=known)
            inputs = [*(graph.name(value) for value in found.values), name]
            return Reading(found.rule, inputs, {**graph.attributes(node), **found.attributes}, found.evidence)
    return plain


# --- Parts of a linear map --------------------------------------------------------------------------------------------


def parts(node: Node, graph: Graph) -> Found | None:
    """The last of the moves that cut the outputs of a linear map into parts: heads, or queries of a joint projection."""
    if node.target not in MOVES or not isinstance(node.meta.get("val"), Tensor):
        return None
    cut = _cut_of(node, graph)
    if cut is None or (node.users and all(_goes_on(user, graph) for user in node.users)):
        return None
    linear, places, features, rows = cut
    if len(features) < 2 and rows.size == len(linear.weight):
        return None  # nothing was cut
    sets = [features] if len(features) < 2 else [features, features[-1:]]
    evidence = graph.measured(("parts", node.name), lambda: _measured_parts(linear, rows, features, sets))
    return Found("linear-parts", [linear.x], {"places": places, "parts": sets}, evidence)


PRODUCTS = (aten.matmul.default, aten.bmm.default)


def _goes_on(user: Node, graph: Graph) -> bool:
    """Whether a reader moves the entries on, so that they can be looked at there, and not only to be multiplied.

    Attention that is written out reads its keys before they are turned.
    """
    if user.target not in MOVES or _multiplied(user):
        return False
    return not isinstance(user.meta.get("val"), Tensor) or _cut_of(user, graph) is not None


def _multiplied(node: Node) -> bool:
    return any(user.target in PRODUCTS or (user.target in MOVES and _multiplied(user)) for user in node.users)


Cut = tuple[Linear, list[list[Any]], list[int], NDArray[np.int64]]


def _cut_of(node: Node, graph: Graph) -> Cut | None:
    """The linear map whose outputs a node moves, which of its axes number places and outputs, and which outputs."""
    source = node
    while source.target in MOVES and isinstance(source.args[0], Node):
        source = source.args[0]
    linear = linear_of(source, graph)
    laid = None if linear is None else _laid(node, source, graph)
    cut = None if laid is None else _cut(laid, graph.shape(source))
    return None if linear is None or cut is None else (linear, *cut)


def _laid(node: Node, source: Node, graph: Graph) -> Any:
    """Where the node's entries lie among those of ``source``: a tensor without memory, whose strides say it; None if no view does."""
    if node is source:
        return torch.empty(graph.shape(source), device="meta")
    before = _laid(node.args[0], source, graph)  # type: ignore[arg-type]
    if before is None or node.target in SAME:
        return before
    if node.target is operator.getitem:
        return before[node.args[1]]
    if node.target in VIEWS:
        try:
            return before.view(graph.shape(node))
        except RuntimeError:
            return None
    assert callable(node.target)
    return node.target(before, *node.args[1:], **node.kwargs)


def _cut(laid: Tensor, whole: tuple[int, ...]) -> tuple[list[list[Any]], list[int], NDArray[np.int64]] | None:
    """Which axes number places and which number outputs, and the numbers of the outputs along the latter; None if mixed.

    The entry at index i is entry offset + sum(stride * i) of the whole, row by row; its output is that number modulo the
    length of the last axis. An axis whose steps stay within one axis of the whole numbers entries of that axis.
    """
    strides = torch.empty(whole, device="meta").stride()
    last = len(whole) - 1
    offset = laid.storage_offset()
    reach: dict[int, int] = {}
    start = []
    for stride in strides:
        start.append(offset // stride)
        offset %= stride
    numbered: dict[int, list[int]] = {axis: [] for axis in range(len(whole))}
    for axis, (count, stride) in enumerate(zip(laid.shape, laid.stride(), strict=True)):
        if count > 1:
            old = next((a for a in range(len(whole)) if strides[a] <= stride), None)
            if old is None or stride % strides[old] or axis == 0:
                return None
            numbered[old].append(axis)
            reach[old] = reach.get(old, start[old]) + (count - 1) * (stride // strides[old])
    if any(furthest >= whole[old] for old, furthest in reach.items()) or numbered[0]:
        return None
    features = numbered[last]
    rows = np.full((1,) * len(features), start[last], dtype=np.int64)
    for place, axis in enumerate(features):
        steps = np.arange(laid.shape[axis]) * laid.stride(axis)
        rows = rows + steps.reshape([-1 if place == other else 1 for other in range(len(features))])
    return [[old, axes] for old, axes in numbered.items() if axes and old != last], features, rows


def _measured_parts(
    linear: Linear, rows: NDArray[np.int64], features: list[int], sets: list[list[int]]
) -> dict[str, float]:
    found = {}
    for number, chosen in enumerate(sets):
        inside = tuple(place for place, axis in enumerate(features) if axis in chosen)
        count = int(np.prod([rows.shape[place] for place in inside]))
        blocks = np.moveaxis(rows, inside, range(-len(inside), 0)).reshape(-1, count)
        found[f"sigma{number}"] = max(spectral_norm(linear.weight[block]) for block in blocks)
        bias = np.zeros(len(linear.weight)) if linear.bias is None else linear.bias
        found[f"bias{number}"] = float(euclidean(bias[blocks], axis=1).max())
    return found


PATTERNS: tuple[Callable[[Node, Graph], Found | None], ...] = (parts, combination, expansion)
