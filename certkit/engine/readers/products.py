"""Readers of products and quotients of two values that depend on the input, and of attention that is written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from certkit.bounds.number import Up
from certkit.bounds.rules.attention import largest_score
from certkit.bounds.softmax import softmax_mass
from certkit.bounds.spectral import euclidean, frobenius, largest, up
from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.readers.normalisation import (
    SOFTMAX,
    Scores,
    constant_mask,
    left_out,
    mask_size,
    original,
    scores_of,
    written,
)
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading
from certkit.errors import NoRule, Refusal

aten = torch.ops.aten


def operand(node: Node, graph: Graph, value: Any, shape: tuple[int, ...] | None = None) -> str:
    """The name of an operand in the node's shape: constants become steps, and values that torch broadcasts are repeated."""
    wanted = graph.shape(node) if shape is None else shape
    if not graph.depends(value) or graph.shape(value) == wanted or len(graph.shape(value)) != len(wanted):
        return graph.operand(node, value, wanted)
    suffix = f"broadcast{len(graph.steps)}"
    return graph.step("broadcast", node, [graph.name(value)], repeats(wanted), {}, suffix=suffix)


def repeats(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"shape": list(shape), "axes": list(range(len(shape)))}


@reads(aten.expand.default)
def expand(node: Node, graph: Graph) -> Reading:
    before, after = graph.shape(node.args[0]), graph.shape(node)
    if len(before) != len(after) or before[0] != after[0]:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {before} to {after} moves the batch axis; that has no rule"
        )
    return graph.reading("broadcast", node, [node.args[0]], repeats(after), {})


def multiplied(node: Node, graph: Graph) -> Reading:
    """mul of two values that depend on the input."""
    a, b = node.args
    if (found := written(node, graph)) is not None:
        return found
    if a is b:
        return graph.reading("power", node, [a], {"exponent": 2}, {})
    return Reading("product", [operand(node, graph, a), operand(node, graph, b)], graph.attributes(node), {})


def divided(node: Node, graph: Graph) -> Reading:
    """div by a value that depends on the input."""
    a, b = node.args
    if graph.depends(a) and (found := written(node, graph)) is not None:
        return found
    return Reading("quotient", [operand(node, graph, a), operand(node, graph, b)], graph.attributes(node), {})


@reads(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def replaced(node: Node, graph: Graph) -> Reading | None:
    """Entries that a constant chooses are replaced by constants: x times 0 or 1, plus what stands there instead."""
    if left_out(node, graph):
        return None
    filled = node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
    where, yes, no = (node.args[1], node.args[2], node.args[0]) if filled else node.args
    if graph.depends(where) or (graph.depends(yes) and graph.depends(no)):
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)} where the choice, or both values, depend on the input; "
            f"to certify this model, {REMEDY}"
        )
    chosen = graph.constants[where].bool()  # type: ignore[index]
    value, other = (yes, no) if graph.depends(yes) else (no, yes)
    kept = chosen if value is yes else ~chosen
    constant = graph.constants[other].double() if isinstance(other, Node) else torch.tensor(float(other)).double()  # type: ignore[arg-type]
    instead = torch.where(kept, 0.0, constant)
    name = operand(node, graph, value)
    inside = {"low": float(kept.min()), "high": float(kept.max())}
    evidence = {"largest": inside["high"]}
    name = graph.step("scale", node, [name], {**graph.attributes(node), **inside}, evidence, suffix="kept")
    return Reading("add", [name, held(node, graph, instead)], graph.attributes(node), {})


def held(node: Node, graph: Graph, values: torch.Tensor) -> str:
    """A constant that the graph does not hold itself, as a step."""
    shape = graph.shape(node)
    full = np.ascontiguousarray(np.broadcast_to(values.numpy(), shape))
    evidence = {
        "l2": frobenius(full),
        "token": float(euclidean(full.reshape(-1, shape[-1]), axis=1).max()),
        "linf": largest(full),
    }
    attributes = {"shape": list(shape), "low": float(full.min()), "high": float(full.max())}
    return graph.step("constant", node, [], attributes, evidence, suffix="instead")


# --- Products of matrices ---------------------------------------------------------------------------------------------


def matrices(node: Node, graph: Graph) -> Reading:
    """matmul or bmm of two values that depend on the input; softmax weights are known to be shares."""
    a, b = node.args[:2]
    first, second, shape = graph.shape(a), graph.shape(b), graph.shape(node)
    if len(first) < 3 or len(first) != len(second):
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)} of {first} and {second} where both depend on the input; "
            f"to certify this model, {REMEDY}"
        )
    weights = original(a)
    stacked = [(*shape[:-2], *own[-2:]) for own in (first, second)]
    if (
        weights.target not in SOFTMAX
        or argument(weights, 1, "dim") % len(first) != len(first) - 1
        or stacked[0] != first
    ):
        names = [operand(node, graph, value, own) for value, own in zip((a, b), stacked, strict=True)]
        return Reading("matmul", names, graph.attributes(node), {})
    scores = scores_of(weights.args[0], graph)
    if stacked[1] == second and (found := attention(node, graph, scores, b)) is not None:
        return found
    size = graph.bounds[graph.name(scores.value)].within(frozenset()).size
    columns, _ = softmax_mass(*rows_of(node, scores, size, first), size.to_float())
    names = [graph.name(a), operand(node, graph, b, stacked[1]), graph.name(scores.value)]
    return Reading("mixture", names, graph.attributes(node), {"column_sum": columns})


def rows_of(
    node: Node, scores: Scores, size: Up, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A constant mask over scores of that shape, (..., rows, keys): its finite part, and the keys that it leaves in."""
    finite, keep = constant_mask(node, scores, size, shape)
    whole = np.broadcast_shapes(finite.shape, keep.shape, shape[-2:])
    return np.ascontiguousarray(np.broadcast_to(finite, whole)), np.ascontiguousarray(np.broadcast_to(keep, whole))


def attention(node: Node, graph: Graph, scores: Scores, v: Any) -> Reading | None:
    """softmax(factor * q @ k.T + mask) @ v, factor and mask constant, is attention; None for any other scores."""
    found = similarity(scores.value, graph)
    if found is None:
        return None
    q, k, factor = found
    rows, keys = (graph.shape(value) for value in (q, k))
    if rows[:-2] != keys[:-2] or keys[:-2] != graph.shape(v)[:-2] or graph.shape(node)[:-1] != rows[:-1]:
        return None
    score = largest_score(graph.bounds[graph.name(q)], graph.bounds[graph.name(k)], Up.of(factor))
    finite, keep = rows_of(node, scores, score, (*rows[:-1], keys[-2]))
    columns, rest = softmax_mass(finite, keep, score.to_float())
    evidence: dict[str, float | Up] = {
        "scale": factor,
        "mask_size": mask_size(finite, keep, score),
        "score": score,
        "column_sum": columns,
        "rest": rest,
    }
    return graph.reading("attention", node, [q, k, v], {}, evidence)


def similarity(value: Any, graph: Graph) -> tuple[Node, Node, float] | None:
    """(q, k, |factor|) of factor * q @ k.T with at most one constant factor, or None."""
    factor, node = 1.0, original(value)
    if isinstance(node, Node) and node.target in (aten.mul.Tensor, aten.div.Tensor):
        inner, number = node.args if graph.depends(node.args[0]) else reversed(node.args)
        if (
            graph.depends(number)
            or not graph.depends(inner)
            or (node.target is aten.div.Tensor and inner is not node.args[0])
        ):
            return None
        if isinstance(number, Node):
            values = graph.constants[number]
        else:
            values = torch.tensor(float(number), dtype=torch.float64)  # type: ignore[arg-type]
        if values.numel() != 1 or float(values) == 0.0:
            return None
        size = abs(float(values))
        factor, node = (size if node.target is aten.mul.Tensor else up(1.0 / size)), original(inner)
    if not isinstance(node, Node) or node.target not in (aten.matmul.default, aten.bmm.default):
        return None
    q, turned = original(node.args[0]), original(node.args[1])
    if not graph.depends(q) or not graph.depends(turned) or not _swaps(turned, graph):
        return None
    return q, turned.args[0], factor


def _swaps(node: Node, graph: Graph) -> bool:
    """Whether a value is another with its last two axes exchanged."""
    rank = len(graph.shape(node))
    if node.target is aten.transpose.int:
        return {int(axis) % rank for axis in node.args[1:3]} == {rank - 2, rank - 1}  # type: ignore[arg-type]
    if node.target is aten.permute.default:
        return [axis % rank for axis in argument(node, 1, "dims")] == [*range(rank - 2), rank - 1, rank - 2]
    return False
