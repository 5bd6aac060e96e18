"""Small networks that several tests bound, and the instruments that measure what a network really does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from certkit.bounds.bound import Axes
from certkit.bounds.ledger import Ledger, Step
from certkit.engine.execute import aten, run
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export

BOX = (-1.0, 1.0)
NOISE = 1e-9  # what the float64 measurements of a test may be off, relative


class Net(nn.Module):
    """A forward written in one line, with its weights by name: ``Net(lambda net, x: x * net.w, w=tensor)``."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **weights: Tensor) -> None:
        super().__init__()
        self._forward = forward
        for name, weight in weights.items():
            self.register_buffer(name, weight)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def small(forward: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (2,)) -> tuple[nn.Module, tuple[int, ...]]:
    """A module of one line without weights, and the shape of its input."""
    return Net(lambda net, x: forward(x)), shape


def attends(**options: Any) -> Callable[[Tensor], Tensor]:
    """Attention of the input with itself, laid flat."""
    return lambda x: F.scaled_dot_product_attention(x, x, x, **options).flatten(1)


class MultiHead(nn.Module):
    """Self-attention with identity weights: queries, keys and values are the heads of the input itself."""

    def __init__(self, heads: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, scale=self.scale).transpose(1, 2).flatten(2).flatten(1)


@dataclass(frozen=True)
class Proof:
    """A program with its ledger. ``fixed`` are attention weights that were replaced by constants, by node."""

    program: Program
    ledger: Ledger
    fixed: Mapping[str, Tensor]

    @property
    def nodes(self) -> list[tuple[Node, Step]]:
        """The graph's input and operators with their steps; tuples, constants and what a reader takes in have none."""
        steps = {step.node: step for step in self.ledger.steps}
        found = [self.program.input, *self.program.nodes]
        return [(n, steps[n.name]) for n in found if n.name in steps and isinstance(n.meta.get("val"), Tensor)]

    def last(self, rule: str) -> tuple[Node, Step]:
        """The last operator that a rule covers."""
        return next((node, step) for node, step in reversed(self.nodes) if step.rule == rule)

    def value(self, node: Node, x: Tensor) -> Tensor:
        """What the operator gives in float64 for one sample, batch axis in front."""
        attend = (lambda node, weights: self.fixed[node.name].expand_as(weights)) if self.fixed else None
        return x if node is self.program.input else run(replace(self.program, output=node), x, attend)

    def values(self, node: Node, xs: Tensor) -> Tensor:
        """The same for many samples (N, ...): (N, 1, ...)."""
        with torch.no_grad():
            return torch.func.vmap(lambda x: self.value(node, x.unsqueeze(0)))(xs)

    def jacobians(self, node: Node, xs: Tensor) -> Tensor:
        """Derivatives (N, entries of the value, entries of the input)."""
        both = torch.func.vmap(torch.func.jacrev(lambda x: self.value(node, x.unsqueeze(0)).flatten()))
        return both(xs).flatten(2)


def prove(
    module: nn.Module | Program,
    shape: tuple[int, ...],
    *,
    box: tuple[float, float] = BOX,
    norm: str = "l2",
    arithmetic: str = "float64",
    fixed: Tensor | None = None,
) -> Proof:
    """Bound a module that gives (batch, numbers); ``fixed`` replaces the weights of every attention."""
    program = module if isinstance(module, Program) else export(module, shape)
    attentions = [n.name for n in program.nodes if n.target is aten.scaled_dot_product_attention.default]
    weights = {} if fixed is None else dict.fromkeys(attentions, fixed.double())
    ledger = Interpreter(program)(norm, box, arithmetic=arithmetic, fixed=weights)
    ledger.check()
    return Proof(program, ledger, weights)


def size(values: Tensor, axes: Axes) -> Tensor:
    """N_A of values (N, 1, ...), for each of the N: the largest, over the other axes, Euclidean norm over A."""
    own = [axis + 1 for axis in sorted(axes)]
    norms = values.square().sum(own, keepdim=True).sqrt() if own else values.abs()
    return norms.flatten(1).amax(1)


def slopes(jacobians: Tensor, shape: tuple[int, ...], axes: Axes, norm: str) -> Tensor:
    """For each derivative, how much some direction of length 1 in the threat's norm really moves N_A: attained values."""
    count, _, inputs = jacobians.shape
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    blocks = jacobians.reshape(count, *shape, inputs).permute(
        0, *(a + 1 for a in rest), *(a + 1 for a in sorted(axes)), -1
    )
    entries = math.prod(shape[axis] for axis in axes)
    blocks = blocks.reshape(count, -1, entries, inputs)
    if norm == "l2":
        return torch.linalg.matrix_norm(blocks, ord=2).amax(1)
    if inputs <= 8:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=inputs)), dtype=torch.float64).T
        return (blocks @ signs).norm(dim=2).amax((1, 2))
    moved = torch.sign(blocks[:, :, 0, :]).unsqueeze(-1)
    for _ in range(5):  # each step cannot lower |J u| over the cube
        moved = torch.sign(blocks.mT @ (blocks @ moved))
    return (blocks @ moved).norm(dim=2).amax((1, 2))


def points(shape: tuple[int, ...], box: tuple[float, float], count: int, seed: int) -> Tensor:
    """Inputs inside the box: spread out, corners, clusters of equal tokens at the two ends, and near the centre."""
    generator = torch.Generator().manual_seed(seed)
    low, high = box

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    quarter = count // 4
    spread = draw(quarter, *shape)
    corners = draw(quarter, *shape).round()
    tokens = (draw(quarter, *shape[:-1], *(1,) * (len(shape) > 0)).round()).expand(quarter, *shape)
    middle = 0.5 + 0.01 * (draw(count - 3 * quarter, *shape) - 0.5)
    return low + (high - low) * torch.cat([spread, corners, tokens.clone(), middle])


@dataclass(frozen=True)
class Case:
    """A module that exercises a rule: ``build`` makes it from random weights of a given scale."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[Callable[..., Tensor]], nn.Module]
    box: tuple[float, float] = BOX
    fixed: Callable[[], Tensor] | None = None


def weights(seed: int) -> Callable[..., Tensor]:
    """Random weights, their scale between 0.1 and 2 drawn once per seed."""
    generator = torch.Generator().manual_seed(seed)
    scale = float(0.1 + 1.9 * torch.rand((), generator=generator))
    return lambda *size: scale * torch.randn(*size, generator=generator)


def projected(**options: Any) -> Callable[[Callable[..., Tensor]], nn.Module]:
    """Attention over three linear maps of the input, without a head axis."""

    def build(w: Callable[..., Tensor]) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            q, k, v = (F.linear(x, m) for m in (net.q, net.k, net.v))
            return F.scaled_dot_product_attention(q, k, v, **options).flatten(1)

        return Net(forward, q=w(3, 2), k=w(3, 2), v=w(4, 2))

    return build


def heads(w: Callable[..., Tensor]) -> nn.Module:
    """Two heads with their projections, joined and mixed."""

    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, m).unflatten(2, (2, 2)).transpose(1, 2) for m in (net.q, net.k, net.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=net.mask)
        return F.linear(y.transpose(1, 2).flatten(2), net.out, net.bias).flatten(1)

    return Net(forward, q=w(4, 4), k=w(4, 4), v=w(4, 4), out=w(4, 4), bias=w(4), mask=w(2, 3, 3))


def crosses(w: Callable[..., Tensor]) -> nn.Module:
    """More keys than queries."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(F.linear(x[:, :2], net.q), x, F.linear(x, net.v)).flatten(1)

    return Net(forward, q=w(2, 2), v=w(3, 2))


def linear_of(*size: int, bias: bool = True) -> Callable[[Callable[..., Tensor]], nn.Module]:
    def build(w: Callable[..., Tensor]) -> nn.Module:
        held = {"w": w(*size), **({"b": w(size[0])} if bias else {})}
        return Net(lambda net, x: F.linear(x, net.w, net.b if bias else None).flatten(1), **held)

    return build


def of(
    forward: Callable[[Any, Tensor], Tensor], **sizes: tuple[int, ...]
) -> Callable[[Callable[..., Tensor]], nn.Module]:
    """A forward with random weights of the given sizes, its value laid flat."""
    return lambda w: Net(lambda net, x: forward(net, x).flatten(1), **{name: w(*size) for name, size in sizes.items()})


def maxmin(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim=dim)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=dim)


def larger_of_maps(net: Any, x: Tensor) -> Tensor:
    return torch.maximum(F.linear(x, net.a), F.linear(x, net.b))


def paired(
    first: Callable[..., Tensor], second: Callable[..., Tensor], *, pieces: int = 2, dim: int = 1
) -> Callable[[Any, Tensor], Tensor]:
    """Two functions of the first two pieces along ``dim``, joined along axis 1."""

    def forward(net: Any, x: Tensor) -> Tensor:
        a, b, *_ = x.chunk(pieces, dim=dim)
        return torch.cat([first(a, b), second(a, b)], dim=1)

    return forward


def of_two_values(net: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)[0], (3 * x).chunk(2, 1)[1]
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def of_a_third(net: Any, x: Tensor) -> Tensor:
    a, b, c = x.chunk(3, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, c)], 1)


def of_overlapping(net: Any, x: Tensor) -> Tensor:
    return torch.cat([torch.maximum(x[:, :2], x[:, 1:]), torch.minimum(x[:, :2], x[:, 1:])], 1)


# Each looks like MaxMin, and none sorts the whole of one value: the sorting rule must leave them alone.
LOOKALIKES: tuple[tuple[str, tuple[int, ...], Callable[[Any, Tensor], Tensor]], ...] = (
    ("larger twice", (4,), paired(torch.maximum, torch.maximum)),
    ("larger, then one piece", (4,), paired(torch.maximum, lambda a, b: torch.minimum(a, a))),
    ("one piece with itself", (4,), paired(lambda a, b: torch.maximum(a, a), lambda a, b: torch.minimum(a, a))),
    ("smaller first", (4,), paired(torch.minimum, torch.maximum)),
    ("two pieces of three", (6,), paired(torch.maximum, torch.minimum, pieces=3)),
    ("joined across", (2, 4), paired(torch.maximum, torch.minimum, dim=2)),
    ("against a third", (6,), of_a_third),
    ("overlapping slices", (3,), of_overlapping),
    ("halves of two values", (4,), of_two_values),
)

MASK = torch.tensor([[True, False, False], [True, True, False], [False, True, True]])
SOFT = torch.tensor([[0.0, -math.inf, 1.0], [2.0, 0.0, torch.finfo(torch.float32).min], [0.0, -3.0, 0.0]])
FIXED = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])

CASES: dict[str, tuple[Case, ...]] = {
    "input": (Case("as it comes", (2, 3), of(lambda net, x: x), box=(-0.5, 2.0)),),
    "constant": (
        Case("added", (2, 3), of(lambda net, x: x + net.c, c=(2, 3))),
        Case("broadcast", (2, 3), of(lambda net, x: (net.c - x) + 0.5, c=(3,))),
    ),
    "linear": (
        Case("of a vector", (5,), linear_of(3, 5)),
        Case("of tokens", (2, 4), linear_of(6, 4)),
        Case("of tokens in groups", (2, 2, 2), linear_of(3, 2)),
        Case("without bias", (2, 3), linear_of(1, 3, bias=False)),
        Case("twice", (4,), of(lambda net, x: F.linear(F.linear(x, net.a), net.b), a=(3, 4), b=(4, 3))),
    ),
    "scale": (
        Case("by a number", (2, 2), of(lambda net, x: -1.7 * x)),
        Case("by a vector", (2, 3), of(lambda net, x: x * net.w, w=(3,))),
        Case("from the left", (2, 3), of(lambda net, x: net.w * x, w=(2, 1))),
        Case("divided by a number", (3,), of(lambda net, x: x / -0.3)),
        Case("divided by a tensor", (3,), of(lambda net, x: x / (net.w.abs() + 0.1), w=(3,))),
        Case("after a shift", (3,), of(lambda net, x: (x + 3.0) * net.w, w=(3,))),
    ),
    "add": (
        Case("residual", (4,), of(lambda net, x: x + F.linear(x, net.w), w=(4, 4))),
        Case("difference", (2, 4), of(lambda net, x: F.linear(x, net.w) - x, w=(4, 4))),
        Case("of itself", (3,), of(lambda net, x: x + x)),
    ),
    "negate": (Case("sign", (2, 2), of(lambda net, x: -F.linear(x, net.w), w=(3, 2))),),
    "mean": (
        Case("of tokens", (3, 2), of(lambda net, x: F.linear(x, net.w).mean(1), w=(2, 2))),
        Case("of features, kept", (3, 2), of(lambda net, x: F.linear(x, net.w).mean(-1, keepdim=True), w=(2, 2))),
        Case("of two axes", (2, 3, 2), of(lambda net, x: F.linear(x, net.w).mean((1, -1)), w=(3, 2))),
        Case("of two axes, kept", (2, 2, 2), of(lambda net, x: x.mean((2, 3), keepdim=True))),
        Case("of the middle", (2, 3, 2), of(lambda net, x: x.mean(2))),
    ),
    "abs": (Case("of a linear map", (3,), of(lambda net, x: F.linear(x, net.w).abs(), w=(3, 3))),),
    "relu": (Case("of a linear map", (3,), of(lambda net, x: F.relu(F.linear(x, net.w)), w=(3, 3))),),
    "gelu": (
        Case("erf", (3,), of(lambda net, x: F.gelu(F.linear(x, net.w)), w=(3, 3)), box=(-2.0, 2.0)),
        Case(
            "tanh", (3,), of(lambda net, x: F.gelu(F.linear(x, net.w), approximate="tanh"), w=(3, 3)), box=(-2.0, 2.0)
        ),
    ),
    "larger-or-smaller": (
        Case("of two maps", (3,), of(larger_of_maps, a=(4, 3), b=(4, 3))),
        Case("against a constant", (2, 2), of(lambda net, x: torch.minimum(x, net.c), c=(2,))),
        *(Case(name, shape, of(forward)) for name, shape, forward in LOOKALIKES),
    ),
    "sorted-pairs": (
        Case("of features", (2, 4), of(lambda net, x: maxmin(F.linear(x, net.w)), w=(4, 4))),
        Case("of tokens", (4, 2), of(lambda net, x: maxmin(x, dim=1))),
    ),
    "relabel": (
        Case(
            "split and merged", (2, 6), of(lambda net, x: F.linear(x.view(-1, 3, 4).reshape(-1, 4, 3), net.w), w=(2, 3))
        ),
        Case("permuted", (2, 3, 2), of(lambda net, x: F.linear(x, net.w).permute(0, 3, 1, 2).flatten(2), w=(3, 2))),
        Case("unsqueezed", (2, 3), of(lambda net, x: F.linear(x.unsqueeze(2), net.w).squeeze(2), w=(3, 3))),
        Case("transposed", (2, 3), of(lambda net, x: F.linear(x.transpose(-1, -2).contiguous(), net.w), w=(3, 2))),
    ),
    "part": (
        Case("every other", (5, 2), of(lambda net, x: F.linear(x, net.w)[:, ::2], w=(2, 2))),
        Case("the last", (3, 2), of(lambda net, x: F.linear(x, net.w)[:, -1], w=(2, 2))),
        Case("unequal pieces", (6,), of(lambda net, x: x.split((1, 5), dim=1)[1] * 2 + x.split((5, 1), dim=1)[0])),
        Case("one feature", (3, 2), of(lambda net, x: F.linear(x, net.w).select(-1, -2), w=(3, 2))),
    ),
    "join": (
        Case("of a value and its map", (2, 3), of(lambda net, x: torch.cat([x, F.linear(x, net.w)], dim=-1), w=(3, 3))),
        Case("with a constant", (2, 3), of(lambda net, x: torch.cat([net.c, x, 2 * x], dim=1), c=(1, 1, 3))),
    ),
    "attention": (
        Case("plain", (3, 2), projected()),
        Case("causal", (3, 2), projected(is_causal=True)),
        Case("boolean mask", (3, 2), projected(attn_mask=MASK)),
        Case("additive mask", (3, 2), projected(attn_mask=SOFT)),
        Case("negative scale", (3, 2), projected(scale=-1.5)),
        Case("small scores", (3, 2), projected(scale=0.01)),
        Case("two heads", (3, 4), heads),
        Case("more keys than queries", (4, 2), crosses),
        Case("six heads, identity", (2, 12), lambda w: MultiHead(6), box=(-2.0, 2.0)),
    ),
    "fixed-attention": (
        Case("plain", (3, 2), projected(), fixed=lambda: FIXED),
        Case("two heads", (3, 4), heads, fixed=lambda: torch.stack([FIXED, torch.full((3, 3), 1 / 3)])),
    ),
}
