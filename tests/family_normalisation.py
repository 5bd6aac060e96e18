"""Cases of normalisation layers, softmax, variances, norms and extremes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.rules import normalisation
from tests.attained import Attained, flat
from tests.modules import MASK, SOFT, Case, of

EPS = 0.1  # with 1e-5 the float32 errors of the laws' limit would be exceeded, by layer norm's slope alone


def grouped(x: Tensor) -> Tensor:
    return F.group_norm(x, 2, torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, -1.0, 0.5]), EPS)


def written_layer_norm(net: Any, x: Tensor) -> Tensor:
    h = F.linear(x, net.w)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, correction=0) + EPS)


def written_twice(net: Any, x: Tensor) -> Tensor:
    deviation = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(deviation + EPS)


def channels(net: Any, x: Tensor) -> Tensor:
    # The laws draw every constant anew, variances too: eps keeps their sum positive.
    return F.batch_norm(x, net.m, net.v, net.g, net.b, eps=6.0)


CASES: dict[str, tuple[Case, ...]] = {
    "layer-norm": (
        Case("of tokens", (3, 4), of(lambda net, x: F.layer_norm(x, (4,), net.g, net.b, EPS), g=(4,), b=(4,))),
        Case("after a map", (2, 3), of(lambda net, x: F.layer_norm(F.linear(x, net.w), (5,), eps=EPS), w=(5, 3))),
        Case("of two axes", (2, 2, 3), of(lambda net, x: F.layer_norm(x, (2, 3), net.g, net.b, EPS), g=(2, 3), b=(2, 3))),
        Case("of one feature", (3, 1), of(lambda net, x: F.layer_norm(x, (1,), net.g, net.b, EPS), g=(1,), b=(1,))),
        Case("with a tiny eps", (1, 3), of(lambda net, x: F.layer_norm(x, (3,), eps=1e-3)), box=(0.0, 1.0)),
        Case("of groups", (4, 2, 2), of(lambda net, x: grouped(x))),
        Case("of instances", (2, 3, 2), of(lambda net, x: F.instance_norm(x, weight=net.g, bias=net.b, eps=EPS), g=(2,), b=(2,))),
        Case("written out", (2, 3), of(written_layer_norm, w=(4, 3))),
        Case("written twice", (2, 3), of(written_twice)),
    ),
    "rms-norm": (
        Case("of tokens", (3, 4), of(lambda net, x: F.rms_norm(x, (4,), net.g, EPS), g=(4,))),
        Case("written with rsqrt", (2, 3), of(lambda net, x: net.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)), g=(3,))),
        Case("written with a root", (2, 3), of(lambda net, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS))),
    ),
    "batch-norm": (
        Case("of channels", (3, 2, 2), of(channels, m=(3,), v=(3,), g=(3,), b=(3,))),
        Case("of features", (3,), of(channels, m=(3,), v=(3,), g=(3,), b=(3,))),
        Case("without factor and shift", (2, 2), of(lambda net, x: F.batch_norm(x, net.m, net.v, eps=6.0), m=(2,), v=(2,))),
    ),
    "softmax": (
        Case("of features", (3, 4), of(lambda net, x: torch.softmax(F.linear(x, net.w), -1), w=(4, 4))),
        Case("of tokens", (3, 4), of(lambda net, x: torch.softmax(3 * x, 1))),
        Case("under a boolean mask", (3, 3), of(lambda net, x: torch.softmax(x.masked_fill(~MASK, -math.inf), -1))),
        Case("under an additive mask", (3, 3), of(lambda net, x: torch.softmax(2 * x + SOFT, -1))),
        Case("under two masks", (3, 3), of(lambda net, x: torch.softmax((x + net.m).masked_fill(~MASK, -math.inf), -1), m=(3, 3))),
        Case("with a low number", (3, 3), of(lambda net, x: torch.softmax(torch.where(MASK, x, -1e9), -1))),
        Case("with a number", (3, 3), of(lambda net, x: torch.softmax(x.masked_fill(~MASK, 0.5), -1))),
        Case("of small scores", (4,), of(lambda net, x: torch.softmax(0.01 * x, -1))),
    ),
    "variance": (
        Case("of features", (3, 4), of(lambda net, x: x.var(-1))),
        Case("of tokens, kept", (3, 2), of(lambda net, x: F.linear(x, net.w).var(1, correction=0, keepdim=True), w=(2, 2))),
    ),
    "norm": (
        Case("of tokens", (3, 4), of(lambda net, x: torch.linalg.vector_norm(F.linear(x, net.w), dim=-1), w=(4, 4))),
        Case("of two axes, kept", (2, 3, 2), of(lambda net, x: x.norm(dim=(1, 3), keepdim=True))),
    ),
    "unit": (
        Case("normalize", (3, 4), of(lambda net, x: F.normalize(F.linear(x, net.w), dim=-1, eps=0.1), w=(4, 4))),
        Case("written", (3, 2), of(lambda net, x: x / x.norm(dim=1, keepdim=True).clamp_min(0.5))),
    ),
    "extreme": (
        Case("largest token", (3, 2), of(lambda net, x: F.linear(x, net.w).amax(1), w=(2, 2))),
        Case("smallest feature, kept", (3, 2), of(lambda net, x: F.linear(x, net.w).amin(-1, keepdim=True), w=(2, 2))),
        Case("with its place", (3, 2), of(lambda net, x: x.max(1).values)),
    ),
}  # fmt: skip

FAR = 1e6  # where eps is nothing beside the variance
SIGNS = [1.0, -1.0, 1.0, -1.0]

ATTAINED: dict[str, Any] = {
    "layer-norm": (
        # At a constant token the slope is max|g| / sqrt(eps); far out the length is sqrt(4) max|g| + |b|, as both line up.
        Attained(
            "layer-norm",
            flat(lambda x: F.layer_norm(x, (4,), torch.full((4,), -3.0), -torch.tensor(SIGNS), 1e-5)),
            [0.0] * 4,
            box=(-FAR, FAR),
            largest=[FAR * sign for sign in SIGNS],
            tight=1e-6,
        ),
        # One entry holds sqrt(3/4) of both.
        Attained(
            "layer-norm",
            flat(lambda x: F.layer_norm(x, (4,), bias=torch.ones(4), eps=1e-5)),
            [0.0] * 4,
            box=(-FAR, FAR),
            axes=frozenset(),
            largest=[FAR, -FAR, -FAR, -FAR],
        ),
        Attained(
            "layer-norm",
            flat(lambda x: F.layer_norm(x, (2,), eps=1e-3)),
            [[0.0] * 2] * 2,
            box=(-FAR, FAR),
            largest=[[FAR, -FAR]] * 2,
        ),
        # In a small box the length is that of the input over sqrt(eps).
        Attained(
            "layer-norm",
            flat(lambda x: F.layer_norm(x, (2,), eps=0.25)),
            [0.0] * 2,
            box=(-1e-6, 1e-6),
            largest=[1e-6, -1e-6],
        ),
    ),
    "rms-norm": (
        Attained(
            "rms-norm",
            flat(lambda x: F.rms_norm(x, (2,), torch.tensor([2.0, -2.0]), 1e-2)),
            [[0.0] * 2] * 2,
            box=(-FAR, FAR),
            largest=[[FAR, FAR]] * 2,
        ),
        Attained(
            "rms-norm",
            flat(lambda x: F.rms_norm(x, (2,), eps=1e-2)),
            [0.0] * 2,
            box=(-FAR, FAR),
            axes=frozenset(),
            largest=[FAR, 0.0],
        ),
    ),
    "batch-norm": (
        # 3 / sqrt(3.75 + 0.25) = 1.5 and a shift of 1 - 2 * 1.5 = -2 per channel, which lines up with x = -1.
        Attained(
            "batch-norm",
            flat(
                lambda x: F.batch_norm(
                    x, *(torch.full((2,), n) for n in (2.0, 3.75, 3.0, 1.0)), eps=0.25
                )
            ),
            [[0.0] * 3] * 2,
            largest=[[-1.0] * 3] * 2,
            tight=1e-6,
        ),
        Attained(
            "batch-norm",
            flat(
                lambda x: F.batch_norm(
                    x, *(torch.full((2,), n) for n in (2.0, 3.75, 3.0, 1.0)), eps=0.25
                )
            ),
            [[0.0] * 3] * 2,
            norm="linf",
            axes=frozenset(),
            largest=[[-1.0] * 3] * 2,
            tight=1e-6,
        ),
    ),
    "softmax": (
        # Two equal logits: 1/4 (1, -1)(1, -1)'. Far apart, one weight is 1.
        Attained("softmax", flat(lambda x: torch.softmax(x, -1)), [0.0, 0.0], box=(-30.0, 30.0), largest=[30.0, -30.0]),
        Attained("softmax", flat(lambda x: torch.softmax(x, -1)), [0.0, 0.0], norm="linf", axes=frozenset()),
        # Sixteen equal logits: (I - 11'/16) / 16, and weights of 1/16.
        Attained(
            "softmax",
            flat(lambda x: torch.softmax(x, 1)),
            [[0.0] * 2] * 16,
            box=(-1e-10, 1e-10),
            largest=[[0.0] * 2] * 16,
        ),
        # Weights (1 - r, r) with r = e^-15: 2 r (1 - r).
        Attained(
            "softmax", flat(lambda x: torch.softmax(x + torch.tensor([0.0, -15.0]), -1)), [0.0, 0.0], box=(-1e-11, 1e-11), tight=1e-6
        ),
        Attained(
            "softmax",
            flat(lambda x: torch.softmax(x + torch.tensor([0.0, -15.0]), -1)),
            [0.0, 0.0],
            norm="linf",
            axes=frozenset(),
            box=(-1e-11, 1e-11),
            tight=0.51,
        ),
    ),
    "variance": (
        Attained("variance", flat(lambda x: x.var(1, correction=0, keepdim=True)), [1.0, -1.0], largest=[1.0, -1.0]),
        Attained("variance", flat(lambda x: x.var(1)), [[1.0], [-1.0]], largest=[[1.0], [-1.0]]),
        Attained("variance", flat(lambda x: x.var(1)), [[1.0, -1.0], [-1.0, 1.0]], largest=[[1.0, -1.0], [-1.0, 1.0]]),
    ),
    "norm": (
        Attained("norm", flat(lambda x: x.norm(dim=1, keepdim=True)), [0.3, 0.4], largest=[1.0, 1.0]),
        Attained("norm", flat(lambda x: x.norm(dim=2)), [[0.3, 0.4]] * 3, largest=[[1.0, 1.0]] * 3),
    ),
    "unit": (
        Attained("unit", flat(lambda x: F.normalize(x, dim=2, eps=0.25)), [[0.0, 0.0]] * 3, largest=[[1.0, 1.0]] * 3),
        Attained("unit", flat(lambda x: F.normalize(x, dim=1, eps=0.5)), [0.1, 0.1], box=(-0.2, 0.2), largest=[0.2, 0.2]),
    ),
    "extreme": (
        Attained("extreme", flat(lambda x: x.amax(1)), [[0.5], [0.0]], largest=[[1.0], [0.0]]),
        Attained("extreme", flat(lambda x: x.amin(2)), [[0.0, 0.5]] * 2, norm="linf", largest=[[-1.0, 0.0]] * 2),
    ),
}  # fmt: skip

MUTANTS: list[tuple[Any, str, str, str]] = [
    (normalisation, "layer-norm", "gain=weight * slope * reach.gain", "gain=slope * reach.gain"),
    (normalisation, "layer-norm", "gain=weight * slope * reach.gain", "gain=weight * reach.gain"),
    (normalisation, "layer-norm", "size=weight * least(groups * root, slope * reach.size) + shift", "size=weight * least(groups * root, slope * reach.size)"),
    (normalisation, "layer-norm", "size=weight * least(groups * root, slope", "size=weight * least(root, slope"),
    (normalisation, "layer-norm", "(Up.of(n - 1) / n).sqrt(), rounding", "(Up.of(n - 1) / (n + 1)).sqrt(), rounding"),
    (normalisation, "layer-norm", 'shift = groups * facts.measured("bias_l2")', 'shift = groups * facts.measured("bias_linf")'),
    (normalisation, "rms-norm", "facts, ONE, gamma(n + 16, u)", "facts, HALF, gamma(n + 16, u)"),
    (normalisation, "batch-norm", 'kind = "l2" if 1 in axes else "linf"', 'kind = "linf"'),
    (normalisation, "batch-norm", "spread = x.within(axes), Up.of(x.count(axes - {1})).sqrt()", "spread = x.within(axes), ONE"),
    (normalisation, "batch-norm", "gain=largest * reach.gain", "gain=reach.gain"),
    (normalisation, "batch-norm", "x.range * factor + shift", "x.range * factor"),
    (normalisation, "softmax", 'facts.measured("rest") * 2)', 'facts.measured("rest"))'),
    (normalisation, "softmax", "least(HALF, top, ", "least(HALF, top * top, "),
    (normalisation, "softmax", "least(HALF, slope * 2) * entry.gain", "slope * HALF * entry.gain"),
    (normalisation, "softmax", "Reach(rows * top.sqrt(),", "Reach(top.sqrt(),"),
    (normalisation, "softmax", "Reach(rows * top.sqrt(),", "Reach(rows * top,"),
    (normalisation, "variance", "gain=joint.size * 2 * reach.gain / free", "gain=joint.size * reach.gain / free"),
    (normalisation, "variance", "gain=joint.size * 2 * reach.gain / free", "gain=joint.size * 2 * reach.gain / n"),
    (normalisation, "variance", "size=joint.size * reach.size / free", "size=joint.size * joint.size / free"),
    (normalisation, "norm", "reach = x.within(frozenset(remaining[axis] for axis in out) | gone)", "reach = x.within(gone)"),
    (normalisation, "unit", "size=least(groups, slope", "size=least(ONE, slope"),
    (normalisation, "unit", "gain=slope * reach.gain", "gain=reach.gain"),
    (normalisation, "extreme", "return x.within(axes | gone if axes else axes)", "return x.within(frozenset())"),
]  # fmt: skip
