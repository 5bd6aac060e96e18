"""Reader of sums of a few entries of one value, such as rotations of pairs: together one constant matrix."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from certkit.bounds.spectral import U, up
from certkit.engine.readers.subgraph import MAX_NODES, MOVES, VIEWS, Found, gathered, multiple, summands
from certkit.engine.reading import Graph

aten = torch.ops.aten
Terms = list[tuple[Any, Any]]  # per term the number of an entry of the root, and its factor, in the value's shape
JOINS = (aten.cat.default, aten.stack.default)
MOVED = (*MOVES, aten.roll.default, aten.flip.default)
MAX_TERMS, MAX_ENTRIES = 4, 1 << 23
SMALLEST = 1e-290
PRODUCTS = 2 * MAX_NODES * U  # how far a factor, a product of constants of a path, may be off, relative


def combination(node: Node, graph: Graph) -> Found | None:
    """A sum or difference whose two terms are entries of one value, moved and multiplied by constants."""
    if summands(node, graph) is None or node.args[0] is node.args[1]:
        return None
    found = gathered(node, graph, lambda inner: _read(inner, graph))
    if found is None or graph.shape(found[0]) != graph.shape(node):
        return None
    root, inner = found
    shape = graph.shape(root)
    if int(np.prod(shape)) * MAX_TERMS > MAX_ENTRIES:
        return None
    evidence = graph.measured(("combination", node.name), lambda: _measured(_terms(root, inner, graph), shape))
    mixed = [axis for axis in range(len(shape)) if evidence.get(f"mixed{axis}")]
    if not mixed or mixed[0] == 0:
        return None
    return Found("combination", [root], {"mixed": mixed}, {name: evidence[name] for name in ("stretch", "row")})


def _read(node: Node, graph: Graph) -> list[Node] | None:
    """What a node reads whose entries are sums of entries of that, times constants; None for any other node."""
    if node.target in MOVED or node.target is aten.neg.default:
        return [node.args[0]]  # type: ignore[list-item]
    if node.target in JOINS:
        joined: Any = node.args[0]
        return list(joined) if all(graph.depends(part) for part in joined) else None
    if (scaled := multiple(node, graph)) is not None:
        return [scaled[0]]
    if (added := summands(node, graph)) is not None:
        return [value for _, value in added] if all(graph.depends(value) for _, value in added) else None
    return None


def _terms(root: Node, inner: list[Node], graph: Graph) -> Terms | None:
    """The entries of the last node as sums of entries of ``root``; None where there are too many terms."""
    shape = graph.shape(root)
    numbers = torch.arange(int(np.prod(shape))).reshape(shape)
    known: dict[Node, Terms] = {root: [(numbers, torch.ones(shape, dtype=torch.float64))]}
    for node in inner:
        known[node] = _of(node, known, graph)
        if len(known[node]) > MAX_TERMS:
            return None
    return known[inner[-1]]


def _of(node: Node, known: dict[Node, Terms], graph: Graph) -> Terms:
    """The terms of one node, from those of what it reads: moves act on numbers and factors alike."""
    rest: Any = node.args[1:]
    if node.target in MOVED:
        read: Any = node.args[0]
        if node.target is operator.getitem:
            return [tuple(part[rest[0]] for part in term) for term in known[read]]
        if node.target in VIEWS:
            return [tuple(part.reshape(graph.shape(node)) for part in term) for term in known[read]]
        target: Any = node.target
        return [tuple(target(part, *rest, **node.kwargs) for part in term) for term in known[read]]
    if node.target in JOINS:
        return _joined([known[part] for part in node.args[0]], node)  # type: ignore[union-attr,index]
    if node.target is aten.neg.default:
        return [(numbers, -factors) for numbers, factors in known[node.args[0]]]  # type: ignore[index]
    if (scaled := multiple(node, graph)) is not None:
        constant = torch.from_numpy(np.array(scaled[1]))
        return [(numbers, _product(factors, constant)) for numbers, factors in known[scaled[0]]]
    added = summands(node, graph)
    assert added is not None
    return [(numbers, sign * factors) for sign, value in added for numbers, factors in known[value]]


def _product(factors: Tensor, constant: Tensor) -> Tensor:
    """Products of factors; NaN, for unknown, where one is so small that its rounding need not be relative."""
    product = factors * constant
    return torch.where((product.abs() < SMALLEST) & (factors != 0) & (constant != 0), torch.nan, product)


def _joined(parts: list[Terms], node: Node) -> Terms:
    """Terms side by side; a part with fewer terms than another gets terms of factor 0."""
    target: Any = node.target
    found: Terms = []
    for place in range(max(len(part) for part in parts)):
        terms = [part[place] if place < len(part) else (part[0][0], torch.zeros_like(part[0][1])) for part in parts]
        both = [target([term[side] for term in terms], *node.args[1:], **node.kwargs) for side in (0, 1)]
        found.append((both[0], both[1]))
    return found


def _measured(terms: Terms | None, shape: tuple[int, ...]) -> dict[str, float]:
    """Norms of the matrix M that the terms make, and along which axes it combines entries (``mixedA``, 1 or 0).

    |M|^2 = |MM'| is at most the largest row sum of |MM'|. Entries of M are held to ``PRODUCTS``, relative, and an entry of
    MM' is a sum of at most ``MAX_TERMS``^2 products: together charged as a share of |M||M|', as is the rounding of the row
    sums. Where cos and sin are those of one angle, the entries off the diagonal cancel exactly.
    """
    if terms is None:
        return {}
    count = int(np.prod(shape))
    own = np.unravel_index(np.arange(count), shape)
    numbers, factors = ([flat(term[side]) for term in terms] for side in (0, 1))
    columns, entries = np.concatenate(numbers), np.concatenate(factors)
    # MM' has an entry for each pair of rows that read one column
    pairs = float(np.square(np.bincount(columns).astype(np.float64)).sum())
    if pairs > MAX_TERMS * MAX_ENTRIES or not np.isfinite(entries).all():
        return {}
    found = {}
    source = np.unravel_index(columns, shape)
    for axis in range(len(shape)):
        found[f"mixed{axis}"] = float(bool(((source[axis] != np.tile(own[axis], len(terms))) & (entries != 0)).any()))
    rows = np.tile(np.arange(count), len(terms))
    signed, absolute = (
        scipy.sparse.csr_array((e, (rows, columns)), (count, count)) for e in (entries, np.abs(entries))
    )
    squares, charged = abs(signed @ signed.T), absolute @ absolute.T
    sums = squares.sum(axis=1) + (4 * PRODUCTS + 4 * MAX_TERMS**2 * U) * charged.sum(axis=1)
    longest = int(np.diff(charged.indptr).max()) + MAX_TERMS
    slack = (1 + 4 * longest * U) * (1 + 4 * PRODUCTS)
    # the last addends are what underflow can lose
    square, row = float(sums.max()) * slack + 1e-290, float(absolute.sum(axis=1).max()) * slack + 1e-290
    if not math.isfinite(square + row):
        return {}
    return {**found, "stretch": up(up(float(np.sqrt(up(square))))), "row": up(up(row))}


def flat(part: Tensor) -> NDArray[Any]:
    return part.reshape(-1).numpy()
