"""Cases of products, quotients and sums of values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.rules import linear, products
from tests.attained import Attained, flat, matrix
from tests.modules import MASK, Case, of


def mixed(net: Any, x: Tensor) -> Tensor:
    """Scores that are no product of queries and keys: a map of each token."""
    return torch.softmax(F.linear(x, net.s), -1) @ F.linear(x, net.v)


def mixed_under_a_mask(net: Any, x: Tensor) -> Tensor:
    return torch.softmax((x @ net.s).masked_fill(~MASK, -math.inf), -1) @ x


def written_attention(net: Any, x: Tensor) -> Tensor:
    """Scores as differences of squares, as in attention by l2 distance: a product that attention's rule does not know."""
    q, k = F.linear(x, net.q), F.linear(x, net.k)
    scores = q @ k.mT - (k * k).sum(-1, keepdim=True).mT / 2
    return torch.softmax(scores, -1) @ x


def by_its_length(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 0.5)


CASES: dict[str, tuple[Case, ...]] = {
    "broadcast": (
        Case("of a mean", (3, 2), of(lambda net, x: F.linear(x, net.w) - x.mean(1, keepdim=True), w=(2, 2))),
        Case("expanded", (2, 1, 3), of(lambda net, x: F.linear(x, net.w).expand(-1, -1, 4, -1), w=(2, 3))),
    ),
    "product": (
        Case("of two maps", (3, 2), of(lambda net, x: F.linear(x, net.a) * F.linear(x, net.b), a=(3, 2), b=(3, 2))),
        Case("with its mean", (3, 2), of(lambda net, x: x * x.mean(1, keepdim=True))),
        Case("gated", (3,), of(lambda net, x: torch.sigmoid(F.linear(x, net.a)) * (x + 2), a=(3, 3))),
    ),
    "quotient": (
        Case("by a length", (3, 2), of(lambda net, x: by_its_length(x))),
        Case("of a map", (3,), of(lambda net, x: F.linear(x, net.a) / (F.linear(x, net.b) ** 2 + 0.5), a=(3, 3), b=(3, 3))),
        Case("of a constant", (2, 2), of(lambda net, x: net.c / (x.norm(dim=2, keepdim=True) + 1), c=(2, 1))),
        Case("by a negative", (3,), of(lambda net, x: x / (torch.tanh(F.linear(x, net.a)) - 1.5), a=(3, 3))),
    ),
    "matmul": (
        Case("of maps", (3, 2), of(lambda net, x: F.linear(x, net.a) @ F.linear(x, net.b).mT, a=(4, 2), b=(4, 2))),
        Case("in two heads", (2, 3, 2), of(lambda net, x: F.linear(x, net.a) @ x.mT, a=(2, 2))),
        Case("as bmm", (2, 3), of(lambda net, x: torch.bmm(x.mT, F.linear(x, net.a)), a=(4, 3))),
        Case("broadcast", (2, 2, 3), of(lambda net, x: x.mean(1, keepdim=True) @ F.linear(x, net.a).mT, a=(3, 3))),
    ),
    "mixture": (
        Case("of tokens", (3, 2), of(mixed, s=(3, 2), v=(4, 2))),
        Case("under a mask", (3, 2), of(mixed_under_a_mask, s=(2, 3))),
        Case("in two heads", (2, 3, 2), of(mixed, s=(3, 2), v=(2, 2))),
        Case("by distance", (3, 2), of(written_attention, q=(2, 2), k=(2, 2))),
    ),
    "sum": (
        Case("of tokens", (3, 2), of(lambda net, x: F.linear(x, net.w).sum(1), w=(2, 2))),
        Case("of two axes, kept", (2, 3, 2), of(lambda net, x: x.sum((1, 3), keepdim=True))),
    ),
}  # fmt: skip


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same numbers by two maps, so that they are two values."""
    return F.linear(x, matrix((1.0,))), F.linear(x, matrix((1.0,)))


def square(x: Tensor) -> Tensor:
    a, b = twice(x)
    return a * b


def outer(x: Tensor) -> Tensor:
    a, b = twice(x)
    return a @ b.mT


def over(x: Tensor) -> Tensor:
    a, b = twice(x)
    return a / (1.5 - b)


def first_value(x: Tensor) -> Tensor:
    only = torch.tensor([[0.0, -math.inf, -math.inf]] * 3)
    return torch.softmax(F.linear(x, torch.zeros(3, 1)) + only, -1) @ x


def two_values(x: Tensor) -> Tensor:
    """Scores (x, -x) of values (2, -2): 2 tanh x."""
    values = F.linear(x, torch.zeros(1, 1)) + torch.tensor([[2.0], [-2.0]])
    return torch.softmax(F.linear(x[:, :1], matrix((1.0,), (-1.0,))), -1) @ values


ATTAINED: dict[str, Any] = {
    "broadcast": (
        Attained("broadcast", flat(lambda x: x.expand(-1, 3, -1)), [[0.0, 0.0]], largest=[[1.0, 1.0]]),
        Attained(
            "broadcast", flat(lambda x: x.expand(-1, 3, -1)), [[0.0, 0.0]], axes=frozenset({1}), largest=[[1.0, 1.0]]
        ),
    ),
    "product": (
        # x^2: slope 2 at 1.
        Attained("product", flat(square), [1.0], largest=[1.0]),
        Attained("product", flat(square), [[1.0]] * 2, norm="linf", largest=[[1.0]] * 2),
    ),
    # x / (1.5 - x): slope 1.5 / (1.5 - x)^2.
    "quotient": (
        Attained("quotient", flat(over), [1.0], largest=[1.0]),
        Attained("quotient", flat(over), [[1.0]] * 2, largest=[[1.0]] * 2),
    ),
    "matmul": (
        # xx' moves along x by 2|x|.
        Attained("matmul", flat(outer), [[1.0]] * 2, largest=[[1.0]] * 2),
        Attained("matmul", flat(outer), [[1.0]] * 2, norm="linf", axes=frozenset(), largest=[[1.0]] * 2),
        # One head at 1 and one at 0: the largest matrix counts, not both.
        Attained("matmul", flat(outer), [[[1.0]] * 2] * 2, axes=frozenset({2, 3}), largest=[[[1.0]] * 2] * 2),
    ),
    "mixture": (
        # Every row is the first value.
        Attained("mixture", flat(first_value), [[0.0]] * 3, largest=[[1.0]] * 3),
        Attained("mixture", flat(first_value), [[[0.0]] * 3] * 2, largest=[[[1.0]] * 3] * 2),
        # 2 tanh x: slope 2 at 0, value 2 far out.
        Attained("mixture", flat(two_values), [[0.0], [0.0]], box=(-30.0, 30.0), largest=[[30.0], [0.0]]),
        Attained("mixture", flat(two_values), [[0.0], [0.0]], norm="linf", axes=frozenset(), box=(-30.0, 30.0)),
    ),
    "sum": (
        Attained("sum", flat(lambda x: x.sum(1)), [[0.0]] * 4, largest=[[1.0]] * 4),
        Attained("sum", flat(lambda x: x.sum(1)), [[0.0]] * 4, norm="linf", largest=[[1.0]] * 4),
        Attained("sum", flat(lambda x: x.sum(1)), [[0.0, 0.0]] * 4, largest=[[1.0, 1.0]] * 4),
    ),
}

MUTANTS: list[tuple[Any, str, str, str]] = [
    (products, "broadcast", "reach.scaled(Up.of(whole.count(axes & repeated)).sqrt())", "reach"),
    (products, "product", "least(x.gain * b0.size, a0.gain * y.size) + ", ""),
    (products, "product", " + least(a0.size * y.gain, x.size * b0.gain)", ""),
    (products, "product", "size = least(a0.size * y.size, x.size * b0.size)", "size = least(a0.size * b0.size, x.size * b0.size)"),
    (products, "quotient", "gain = x.gain + largest * least(a0.size * y.gain, x.size * b0.gain)", "gain = x.gain"),
    (products, "quotient", "gain * largest, error", "gain, error"),
    (products, "matmul", "gain=both.times(out, _gain, _size) + both", "gain=both"),
    (products, "matmul", " + both.times(out, _size, _gain),", ","),
    (products, "matmul", "left = frozenset({self.last}) | (out & {self.rows})", "left = frozenset({self.last})"),
    (products, "matmul", "right = frozenset({self.rows}) | (out & {self.last})", "right = frozenset({self.rows})"),
    (products, "matmul", "several = out & self.batch", "several = frozenset()"),
    (products, "mixture", "moved = least(moved, v.within(out).size * steps)", "moved = least(moved, v.within(out).size * steps * HALF_ROOT)"),
    (products, "mixture", "moved = least(moved, longest * HALF_ROOT * s.within(out).gain)", "moved = moved * 0"),
    (products, "mixture", "columns * v.within(out).size), least(kept, columns * v", "columns * v.within(out).size), least(kept, v"),
    (products, "mixture", "Reach(size, kept + moved, both", "Reach(size, moved, both"),
    (linear, "sum", "x.within(axes | gone).scaled(Up.of(entries).sqrt())", "x.within(axes).scaled(Up.of(entries).sqrt())"),
    (linear, "sum", ".best(largest.scaled(Up.of(entries)))", ".best(largest)"),
]  # fmt: skip
