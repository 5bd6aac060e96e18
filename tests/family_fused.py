"""Cases of rules for several operators at once: parts of a linear map, rotations, and maps around activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.rules import fused
from certkit.models.attention import Rotary
from tests.attained import Attained, flat, matrix
from tests.modules import Case, of


def heads(net: Any, x: Tensor) -> Tensor:
    return F.linear(x, net.w, net.b).view(1, x.shape[1], 2, 3).transpose(1, 2) * 1.5


def joint_then_split(net: Any, x: Tensor) -> Tensor:
    """Queries, keys and values of one projection, as in GPT-2: split, then heads."""
    q, k, v = (part.view(1, 3, 2, 2).transpose(1, 2) for part in F.linear(x, net.w, net.b).split(4, dim=2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def joint_then_permuted(net: Any, x: Tensor) -> Tensor:
    """The same as in timm: one view, one permutation, then each third."""
    q, k, v = F.linear(x, net.w).reshape(1, 3, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v)


def rotated_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as Hugging Face writes them: halves by slices."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def rotated_pairs(net: Any, x: Tensor) -> Tensor:
    """Rotary positions as GPT-J writes them: every other entry."""
    even, odd = x[..., ::2], x[..., 1::2]
    return x * net.cos + torch.stack((-odd, even), dim=-1).flatten(-2) * net.sin


def pieces_in_both_orders(net: Any, x: Tensor) -> Tensor:
    """Nothing but the pieces is read, on the way to which the value is cut."""
    a, b = x.chunk(2, -1)
    return net.a * torch.cat((a, b), -1) - torch.cat((b, a), -1)


def turned(heads: int, tokens: int, width: int) -> Any:
    rotary = Rotary(tokens, width, base=3.0)
    return lambda net, x: rotary(x.view(1, heads, tokens, width))


def mlp(net: Any, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, net.a, net.p)), net.b, net.q)


CASES: dict[str, tuple[Case, ...]] = {
    "linear-parts": (
        Case("heads", (3, 4), of(heads, w=(6, 4), b=(6,))),
        Case("split, then heads", (3, 4), of(joint_then_split, w=(12, 4), b=(12,))),
        Case("in one view", (3, 4), of(joint_then_permuted, w=(12, 4))),
        Case("every other output", (2, 3), of(lambda net, x: F.linear(x, net.w)[..., 1::2] * 2, w=(5, 3))),
        Case("one output of one token", (3, 2), of(lambda net, x: 2 * F.linear(x, net.w, net.b)[:, 1:2, 2], w=(4, 2), b=(4,))),
        Case("of a matrix product", (3, 2), of(lambda net, x: (x @ net.w).unflatten(-1, (2, 2)) * 0.5, w=(2, 4))),
        Case("tokens apart too", (4, 2), of(lambda net, x: F.linear(x, net.w).view(1, 2, 2, 2, 3).abs(), w=(6, 2))),
    ),
    "combination": (
        Case("certkit's rotary positions", (2, 12), of(turned(2, 3, 4))),
        Case("halves by slices", (2, 4), of(lambda net, x: rotated_halves(x, net.c, net.s), c=(2, 4), s=(2, 4))),
        Case("every other entry", (2, 4), of(rotated_pairs, cos=(2, 4), sin=(1, 4))),
        Case("of the pieces of one split", (2, 4), of(pieces_in_both_orders, a=(4,))),
        Case("a neighbour less", (4, 2), of(lambda net, x: x - net.w * x.roll(1, 1), w=(2,))),
        Case("difference of halves", (2, 4), of(lambda net, x: 2 * x - torch.cat((x[..., 2:], x[..., :2] / 3), -1))),
    ),
    "expansion": (
        Case("gelu", (2, 3), of(mlp, a=(4, 3), b=(3, 4), p=(4,), q=(3,)), box=(-0.1, 0.1)),
        Case("without bias", (2, 3), of(lambda net, x: F.linear(F.relu(F.linear(x, net.a)), net.b), a=(4, 3), b=(2, 4))),
        Case("tanh-gelu, residual", (2, 3), of(
            lambda net, x: x + F.linear(F.gelu(F.linear(x, net.a), approximate="tanh"), net.b), a=(4, 3), b=(3, 4))),
        Case("convex residual, scaled", (2, 3), of(
            lambda net, x: 0.7 * x + net.s * F.linear(F.silu(F.linear(x, net.a)) / 1.1, net.b), a=(4, 3), b=(3, 4), s=(3,))),
        Case("three layers", (3,), of(
            lambda net, x: F.linear(F.relu(F.linear(F.relu(F.linear(x, net.a)), net.b)), net.c), a=(4, 3), b=(4, 4), c=(2, 4))),
        Case("sigmoid", (3,), of(lambda net, x: F.linear(torch.sigmoid(F.linear(x, net.a)), net.b), a=(4, 3), b=(2, 4))),
        Case("tanh and softplus", (3,), of(
            lambda net, x: F.linear(F.softplus(F.linear(torch.tanh(F.linear(x, net.a)), net.b)), net.c),
            a=(4, 3), b=(4, 4), c=(2, 4))),
        Case("two maps, no bias", (2, 3), of(lambda net, x: F.linear(-F.linear(x, net.a), net.b), a=(4, 3), b=(2, 4))),
        Case("difference of maps", (2, 3), of(lambda net, x: F.linear(x, net.a) - F.linear(x, net.b), a=(3, 3), b=(3, 3))),
        Case("a bias per token", (2, 3), of(
            lambda net, x: F.linear(F.relu(F.linear(x, net.a) + net.p), net.b) - 0.5 * x, a=(4, 3), b=(3, 4), p=(2, 4))),
    ),
}  # fmt: skip

TWO_UNITS = matrix((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0))
QUARTER = torch.tensor([0.6, 0.6]), torch.tensor([0.8, 0.8])  # cos and sin of one angle, to rounding


def split_in_two(w: Tensor, b: Tensor | None = None) -> Any:
    return flat(lambda x: F.linear(x, w, b).view(1, -1, 2, len(w) // 2).abs())


def both_signs(x: Tensor) -> Tensor:
    """relu(x) + relu(-x) = |x|."""
    return F.linear(F.relu(F.linear(x, matrix((1.0,), (-1.0,)))), matrix((1.0, 1.0)))


def raised(x: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, matrix((1.0,)))), matrix((1.0,)), torch.tensor([5.0]))


def steepest_gelu(x: Tensor) -> Tensor:
    """Slope 1.1289042 at sqrt(2), with maps around that change nothing."""
    return F.linear(F.gelu(F.linear(x, matrix((1.0,)))), matrix((1.0,)))


ATTAINED: dict[str, Any] = {
    "linear-parts": (
        # Each head is the identity of two entries; the whole matrix stretches by sqrt(2).
        Attained("linear-parts", split_in_two(TWO_UNITS), [[0.0, 0.0]], axes=frozenset({3}), largest=[[1.0, 1.0]]),
        Attained("linear-parts", split_in_two(TWO_UNITS), [[0.0, 0.0]] * 2, largest=[[1.0, 1.0]] * 2),
        Attained("linear-parts", split_in_two(TWO_UNITS), [[0.0, 0.0]] * 2, norm="linf", axes=frozenset({1, 3})),
        # The second head stretches by 3, and its bias is 4 long: 3 sqrt(2) + 4.
        Attained(
            "linear-parts",
            split_in_two(matrix((1.0,), (0.0,), (3.0,), (0.0,)), torch.tensor([0.0, 0.0, 4.0, 0.0])),
            [[0.0]] * 2,
            axes=frozenset({1, 3}),
            largest=[[1.0]] * 2,
        ),
    ),
    "combination": (
        # A rotation moves nothing apart; by operators it is 0.6 + 0.8.
        Attained("combination", flat(lambda x: rotated_halves(x, *QUARTER)), [0.0, 0.0], largest=[1.0, 1.0], tight=1e-7),
        Attained(
            "combination", flat(lambda x: rotated_halves(x, *QUARTER)), [0.0, 0.0], norm="linf", axes=frozenset(),
            largest=[1.0, -1.0], tight=1e-7,
        ),
        # Twice what is gained: each entry and its partner.
        Attained("combination", flat(lambda x: x + torch.cat((x[:, 1:], x[:, :1]), 1)), [0.0, 0.0], largest=[1.0, 1.0]),
        Attained("combination", flat(lambda x: x + x.transpose(1, 2)), [[0.0] * 2] * 2, largest=[[1.0] * 2] * 2),
    ),
    "expansion": (
        Attained("expansion", flat(both_signs), [0.5], largest=[1.0]),
        Attained("expansion", flat(both_signs), [[0.5]] * 3, largest=[[1.0]] * 3),
        Attained("expansion", flat(both_signs), [0.5], norm="linf", axes=frozenset(), largest=[1.0]),
        # x - relu(x) is x below 0.
        Attained("expansion", flat(lambda x: x - F.linear(F.relu(F.linear(x, matrix((1.0,)))), matrix((1.0,)))), [-0.5], largest=[-1.0]),
        # diag(3, 1/3) diag(1/3, 3) = 1, where the norms multiply to 9.
        Attained(
            "expansion",
            flat(lambda x: F.linear(F.linear(x, matrix((0.25, 0.0), (0.0, 4.0))), matrix((4.0, 0.0), (0.0, 0.25)))),
            [0.0, 0.0],
            largest=[1.0, 1.0],
        ),
        # A bias of 5 is part of the size.
        Attained("expansion", flat(raised), [0.5], largest=[1.0]),
        # Nothing is lost where nothing cancels.
        Attained("expansion", flat(steepest_gelu), [math.sqrt(2)], box=(-2.0, 2.0), tight=1e-6),
    ),
}  # fmt: skip

MUTANTS: list[tuple[Any, str, str, str]] = [
    (fused, "linear-parts", "Reach(size, sigma * reach.gain, ZERO)", "Reach(size, reach.gain, ZERO)"),
    (fused, "linear-parts", "sigma * reach.size + bias * Up.of(plain.count(spread)).sqrt()", "sigma * reach.size"),
    (fused, "linear-parts", " * Up.of(plain.count(spread)).sqrt()", ""),
    (fused, "linear-parts", "out = spread | frozenset(part)", "out = plain.axes"),
    (fused, "combination", ".scaled(stretch)", ""),
    (fused, "combination", ".scaled(row)", ""),
    (fused, "combination", "axes | mixed: x.within(axes | mixed)", "axes: x.within(axes)"),
    (fused, "expansion", "gain + factor * reach.gain", "factor * reach.gain"),
    (fused, "expansion", "size + factor * reach.size", "factor * reach.size"),
    (fused, "expansion", 'kind = "sigma" if last in axes else "row"', 'kind = "sigma"'),
    (fused, "expansion", "factor = factor * (SLOPES", "factor = factor * 0.5 * (SLOPES"),
    (fused, "expansion", 'facts.attributes["bare"] and ', ""),
]
