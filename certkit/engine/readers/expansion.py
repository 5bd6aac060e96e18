"""Reader of linear maps around activations, and of sums of them: products of matrices instead of products of norms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import Node

from certkit.bounds.rules.fused import AT_ZERO, SLOPES
from certkit.bounds.spectral import U, absolute_norm, absolute_sums, largest, spectral_norm, up
from certkit.engine.readers.subgraph import SAME, Array, Found, gathered, linear_of, multiple, summands
from certkit.engine.reading import Graph
from certkit.errors import Refusal

aten = torch.ops.aten
FUNCTIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.gelu.default: "gelu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.softplus.default: "softplus",
}
CROSSED = (0, 1, 2)  # how many activations an expansion passes
WIDEST = 8192


def expansion(node: Node, graph: Graph) -> Found | None:
    """A linear map or a sum, taken apart through up to two activations until one value is all that is read."""
    shape = graph.program.shapes.get(node)
    if shape is None or len(shape) < 2 or shape[-1] > WIDEST:
        return None
    added = summands(node, graph)
    if linear_of(node, graph) is None and not (added and all(graph.depends(value) for _, value in added)):
        return None
    found = [way for crossed in CROSSED if (way := gathered_past(node, graph, crossed)) is not None]
    if not found:
        return None
    ways = [pieces(root, inner, graph) for root, inner in found]
    values = list(dict.fromkeys(value for way in ways for value, _, _ in way))
    evidence = graph.measured(("expansion", node.name), lambda: measured(found, graph))
    if not evidence:
        return None
    terms = [[[values.index(value), name, middle] for value, name, middle in way] for way in ways]
    bare = all(_bare(inner, graph) for _, inner in found)
    return Found("expansion", values, {"terms": terms, "bare": bare}, evidence)


def gathered_past(node: Node, graph: Graph, crossed: int) -> tuple[Node, list[Node]] | None:
    """The value behind so many activations and the linear map before them (without any, behind two linear maps)."""

    def enough(inner: list[Node]) -> bool:
        kinds = [function(each, graph) is not None for each in inner]
        if sum(kinds) != crossed:
            return False
        linear = [linear_of(each, graph) is not None for each in inner]
        if not crossed:
            return any(linear) and (sum(linear) > 1 or not linear[-1])
        return any(linear[: kinds.index(True)])

    def follows(each: Node) -> list[Node] | None:
        if function(each, graph) is not None or each.target in SAME or each.target is aten.neg.default:
            return [each.args[0]]  # type: ignore[list-item]
        if (linear := linear_of(each, graph)) is not None:
            return [linear.x] if max(graph.shape(linear.x)[-1], graph.shape(each)[-1]) <= WIDEST else None
        if (added := summands(each, graph)) is not None:
            return [value for _, value in added if graph.depends(value)]
        if (scaled := multiple(each, graph)) is not None and by_feature(scaled[1], graph.shape(each)) is not None:
            return [scaled[0]]
        return None

    return gathered(node, graph, follows, enough)


def function(node: Node, graph: Graph) -> str | None:
    """The name under which the slopes of an activation are known; None for any other node."""
    if node.target is aten.gelu.default and node.kwargs.get("approximate", "none") == "tanh":
        return "gelu-tanh"
    return FUNCTIONS.get(node.target)


def middle_of(name: str) -> float:
    """A number near the middle of a function's slopes that float64 holds."""
    ends = SLOPES[name]
    return float((ends.low + ends.high) / 2)


def by_feature(factors: Array, shape: tuple[int, ...]) -> Array | None:
    """One factor per entry of the last axis, if the same ones count at every place."""
    if factors.size == 1:
        return np.full(shape[-1], factors.reshape(()).item())
    return factors.reshape(-1) if factors.size == shape[-1] == factors.shape[-1] else None


def _bare(inner: list[Node], graph: Graph) -> bool:
    """Whether the value is 0 where the root is: no constant is added, and every activation is 0 at 0."""
    for node in inner:
        linear, added, name = linear_of(node, graph), summands(node, graph), function(node, graph)
        if linear is not None and linear.bias is not None and bool(linear.bias.any()):
            return False
        if added is not None and not all(graph.depends(value) for _, value in added):
            return False
        if name is not None and name not in AT_ZERO:
            return False
    return True


# --- The maps themselves ----------------------------------------------------------------------------------------------


class Map(NamedTuple):
    """A linear map of the last axis: a matrix, or the diagonal of one, and how far it may be from the exact one in norm."""

    matrix: Array
    off: float

    def after(self, weight: Array) -> Map:
        """This map after x W': a sum of n products errs by gamma_n |M||W|, entry by entry (Higham, ASNA 2nd ed., 3.5)."""
        straight = self.matrix.ndim == 1
        gamma = 1.01 * (1 if straight else len(weight) + 1) * U
        rounding = gamma * self.absolute() * absolute_norm(weight) + 1e-290
        matrix = self.matrix[:, None] * weight if straight else self.matrix @ weight
        return Map(matrix, up(up(self.off * spectral_norm(weight)) + up(rounding)) * (1 + 8 * U))

    def times(self, factors: Array) -> Map:
        """This map after a product with constants, each held to one rounding."""
        found = Map(self.matrix * factors, 0.0)
        rounding = 4 * U * found.absolute() + 1e-290
        return Map(found.matrix, up(up(self.off * largest(factors)) + up(rounding)) * (1 + 8 * U))

    def plus(self, other: Map) -> Map:
        ranks = {self.matrix.ndim, other.matrix.ndim}
        one, two = (m if ranks != {1, 2} or m.ndim == 2 else np.diag(m) for m in (self.matrix, other.matrix))
        found = Map(one + two, 0.0)
        return Map(found.matrix, up(up(self.off + other.off) + up(2 * U * found.absolute())))

    def absolute(self) -> float:
        """An upper bound of the spectral norm of the matrix's absolute values."""
        return largest(self.matrix) if self.matrix.ndim == 1 else absolute_norm(self.matrix)

    def stretch(self) -> float:
        """An upper bound of the exact map's spectral norm."""
        return up((largest(self.matrix) if self.matrix.ndim == 1 else spectral_norm(self.matrix)) + self.off)

    def row(self) -> float:
        """An upper bound of its largest absolute row sum: a row of length d sums to at most sqrt(d) times its norm."""
        straight = self.matrix.ndim == 1
        longest = largest(self.matrix) if straight else float(absolute_sums(self.matrix, axis=1).max())
        return up(longest + up(up(self.off * math.sqrt(self.matrix.shape[-1])) * (1 + 4 * U)))


Piece = tuple[
    Node, str, float
]  # a value; the activation whose remainder is meant ("" for the value itself); its middle


def pieces(root: Node, inner: list[Node], graph: Graph) -> list[Piece]:
    """What the last node is a sum of maps of, in the order of ``maps``."""
    found: list[Piece] = []
    for node in reversed(inner):
        if (name := function(node, graph)) is not None:
            found.append((node.args[0], name, middle_of(name)))  # type: ignore[arg-type]
    return [*found, (root, "", 0.0)]


def maps(root: Node, inner: list[Node], graph: Graph) -> list[Map]:
    """The map of each piece: from the last node back, what each node counts for in it."""
    found: list[Map] = []
    counts = {inner[-1]: Map(np.ones(graph.shape(inner[-1])[-1]), 0.0)}

    def count(node: Any, reached: Map) -> None:
        counts[node] = counts[node].plus(reached) if node in counts else reached

    for node in reversed(inner):
        here = counts[node]
        if (name := function(node, graph)) is not None:
            found.append(here)
            count(node.args[0], here.times(np.asarray(middle_of(name))))
        elif node.target in SAME:
            count(node.args[0], here)
        elif node.target is aten.neg.default:
            count(node.args[0], Map(-here.matrix, here.off))
        elif (linear := linear_of(node, graph)) is not None:
            count(linear.x, here.after(linear.weight))
        elif (added := summands(node, graph)) is not None:
            for sign, value in added:
                if graph.depends(value):
                    count(value, Map(sign * here.matrix, here.off))
        else:
            scaled = multiple(node, graph)
            assert scaled is not None
            factors = by_feature(scaled[1], graph.shape(node))
            assert factors is not None
            count(scaled[0], here.times(factors))
    return [*found, counts[root]]


def measured(ways: list[tuple[Node, list[Node]]], graph: Graph) -> dict[str, float]:
    """The norms of all maps of all ways; none at all where a product of finite weights leaves the range of float64."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            norms = {
                f"{kind}{way}.{place}": size
                for way, (root, inner) in enumerate(ways)
                for place, each in enumerate(maps(root, inner, graph))
                for kind, size in (("sigma", each.stretch()), ("row", each.row()))
            }
    except Refusal:
        return {}
    return norms if all(map(math.isfinite, norms.values())) else {}
