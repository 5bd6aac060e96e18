"""The linear map at the end of a language model, for vocabularies whose tables of pairs would not fit a machine.

Shape suffixes: V vocabulary, D width, P positions. Nothing here holds more than ``ENTRIES`` numbers of a (P, V) table at once,
a few times over: the logits of a text, or the distances of all rows of its matrix, never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from certkit.bounds.ledger import Matrix
from certkit.bounds.number import UNIT_ROUNDOFF, gamma
from certkit.bounds.spectral import euclidean, up
from certkit.engine.execute import aten
from certkit.engine.program import Program
from certkit.errors import Refusal

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
ENTRIES = 2**22  # of one piece: 32 MiB in float64
ROWS = 4096  # of the matrix, whose lengths are taken at once
TINY = 1e-300  # more than what squares and products can lose to underflow, for a row of up to 1e20 entries
SMALLEST = 5e-324


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits f (x W' + b) of the vector x (D,) that each token has at the end, and how fast their differences move.

    ``factors`` are those of f in the order in which the model multiplies by them, ``lengths`` upper bounds of |W_i|. With
    ``pairs``, f |W_i - W_j| for all pairs as a ledger states them, these are taken; a large vocabulary has none.
    """

    weight_VD: Floats
    bias_V: Floats | None
    factors: tuple[float, ...]
    lengths_V: Floats
    pairs_VV: Floats | None

    def logits(self, read_PD: Floats) -> Floats:
        """The logits (P, V) in float64: operations of the graph, whose rounding its ledger charges for in any order."""
        found: Floats = read_PD @ self.weight_VD.T
        if self.bias_V is not None:
            found += self.bias_V
        for factor in self.factors:
            found *= factor
        return found

    def slopes(self, ids_P: Ids) -> Floats:
        """f |W_i - W_j| as upper bounds (P, V), for each i of ``ids_P``; 0 where j is i.

        With N_i at least |W_i|^2 and G = fl(W_i . W_j), |W_i - W_j|^2 <= N_i + N_j - 2 G + 2 gamma_D |W_i| |W_j| for a sum in
        any order (Higham, ASNA 2nd ed., section 3.1), and 2 |W_i| |W_j| <= M = N_i + N_j: at most (1 + gamma_D) M - 2 G. All
        of its roundings, of numbers no larger than 3 M, lose less than 16 u M, which gamma_{D+16} - gamma_D makes up for.
        What this adds is 2 D u M at most: relative to |W_i - W_j| less than 1e-6, unless the rows lie nearer than a
        thousandth of their length at a width of a thousand. TINY covers underflow; what overflows is infinite.
        """
        if self.pairs_VV is not None:
            return np.asarray(self.pairs_VV[ids_P])
        grown = 1.0 + gamma(self.weight_VD.shape[1] + 16, UNIT_ROUNDOFF["float64"]).to_float()
        with np.errstate(over="ignore", invalid="ignore"):
            halves_V = np.nextafter(np.nextafter(self.lengths_V * self.lengths_V, np.inf) * grown, np.inf) / 2
            found: Floats = self.weight_VD[ids_P] @ self.weight_VD.T
            np.negative(found, out=found)  # twice this could be minus infinity beside finite squares
            found += halves_V[ids_P][:, None]
            found += halves_V
            np.maximum(found, 0.0, out=found)
            found *= 2.0
            found += TINY
            np.sqrt(found, out=found)
            found *= up(self._stretch() * (1 + 2.0**-50))  # the root, this product and its factor lose 4 u at most
            found += SMALLEST
            np.fmin(found, np.inf, out=found)  # infinity in place of NaN
        found[np.arange(len(ids_P)), ids_P] = 0.0
        return found

    def steepest(self, ids_P: Ids) -> Floats:
        """The largest of ``slopes`` (P,) for each i of ``ids_P``."""
        if not len(ids_P):
            return np.zeros(0)
        found, back = np.unique(ids_P, return_inverse=True)
        most = np.concatenate([self.slopes(found[part]).max(axis=1) for part in self.pieces(len(found))])
        return np.asarray(most[back.reshape(-1)])

    def pieces(self, count: int) -> Iterator[slice]:
        """``count`` positions in pieces whose logits are at most ENTRIES numbers, one position at least."""
        size = max(1, ENTRIES // len(self.weight_VD))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _stretch(self) -> float:
        product = 1.0
        for factor in self.factors:
            product = up(product * abs(factor))
        return product


def head_of(program: Program, pairs: Matrix | None) -> tuple[Head, str]:
    """The last linear map of a program that answers one position, and the name of the value that it reads.

    ``pairs`` are the ledger's, if it has them. Raises Refusal unless the logits are a linear map with a constant matrix, times
    constants, of one vector.
    """
    node, factors = program.output, list[float]()
    while node.target is aten.mul.Tensor and isinstance(node.args[1], (int, float)) and isinstance(node.args[0], Node):
        factors.insert(0, float(node.args[1]))
        node = node.args[0]
    read, weight = (*node.args, None, None)[:2]
    if node.target is not aten.linear.default or weight not in program.constants or len(program.shapes[node]) != 2:
        raise Refusal(
            "the logits of this model are not one linear map of each token; expected a language model such as gpt"
        )
    assert isinstance(read, Node)
    weight_VD = _array(program, weight)
    bias: Any = node.args[2] if len(node.args) > 2 else None
    return Head(
        weight_VD=weight_VD,
        bias_V=None if bias is None else _array(program, bias),
        factors=tuple(factors),
        lengths_V=np.concatenate(
            [euclidean(weight_VD[start : start + ROWS], axis=1) for start in range(0, len(weight_VD), ROWS)]
        ),
        pairs_VV=None if pairs is None else np.array([[number.to_float() for number in row] for row in pairs]),
    ), read.name


def _array(program: Program, node: Any) -> Floats:
    return np.asarray(program.constants[node].numpy(), dtype=np.float64)
