"""Cases of functions applied entry by entry."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.rules import curves
from certkit.engine.program import Program, export
from tests.attained import Attained, flat
from tests.modules import Case, of, prove

WIDE = (-8.0, 8.0)


def of_map(
    f: Callable[[Tensor], Tensor], name: str = "of a linear map", box: tuple[float, float] = (-2.0, 2.0)
) -> Case:
    """The function of a linear map with bias of the input."""
    return Case(name, (3,), of(lambda net, x: f(F.linear(x, net.w, net.b)), w=(3, 3), b=(3,)), box=box)


def away(f: Callable[[Tensor], Tensor], name: str = "away from 0", low: float = 0.75) -> Case:
    """The function of a value that stays above ``low``, near which it is steep."""
    return Case(name, (3,), of(lambda net, x: f(F.relu(F.linear(x, net.w)) + low), w=(3, 3)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_by_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def mish_by_softplus(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def smooth_size(x: Tensor) -> Tensor:
    """Finite only as one function: an operator at a time, x * x may be negative."""
    return torch.sqrt(x * x + 0.01)


def steady(x: Tensor) -> Tensor:
    """x, with a gain a little above 1: torch's float64 derivative of hardsigmoid holds 1/6 as a float32, 3e-8 too much.

    The larger of x and x hides that the terms are of one value, whose sum would be known to be x.
    """
    return x * (1 + 1e-7) - torch.maximum(x, x) * 1e-7


def hardsigmoid(x: Tensor) -> Tensor:
    return F.hardsigmoid(steady(x))


CASES: dict[str, tuple[Case, ...]] = {
    "tanh": (of_map(torch.tanh), of_map(torch.tanh, "wide", WIDE), away(torch.tanh)),
    "sigmoid": (of_map(torch.sigmoid), of_map(torch.sigmoid, "wide", WIDE), away(torch.sigmoid)),
    "silu": (of_map(F.silu), of_map(F.silu, "wide", WIDE)),
    "softplus": (
        of_map(F.softplus),
        of_map(functools.partial(F.softplus, beta=2.5, threshold=6.0), "beyond its threshold", WIDE),
        of_map(F.logsigmoid, "turned round", WIDE),
        away(F.softplus),
    ),
    "mish": (of_map(F.mish), of_map(F.mish, "wide", WIDE)),
    "elu": (
        of_map(F.elu),
        of_map(functools.partial(F.elu, alpha=2.5), "steep below 0"),
        of_map(F.selu, "selu", WIDE),
        of_map(functools.partial(F.celu, alpha=0.4), "celu"),
    ),
    "leaky-relu": (
        of_map(F.leaky_relu),
        of_map(functools.partial(F.leaky_relu, negative_slope=-3.0), "turned up"),
    ),
    "clamp": (
        of_map(lambda x: x.clamp(-0.3, 0.9)),
        of_map(lambda x: x.clamp(0.5, 0.75), "without 0"),
        of_map(lambda x: x.clamp(min=0.1), "from below"),
        of_map(lambda x: x.clamp(min=50.0), "always at an end"),
        of_map(lambda x: torch.clamp_max(x, -0.2), "from above"),
        of_map(F.hardtanh, "hardtanh"),
        of_map(F.relu6, "relu6", WIDE),
    ),
    "hardsigmoid": (of_map(hardsigmoid), of_map(hardsigmoid, "wide", WIDE)),
    "hardswish": (of_map(F.hardswish), of_map(F.hardswish, "wide", WIDE)),
    "exp": (of_map(torch.exp, box=(-0.5, 0.5)),),
    "log": (away(torch.log), away(torch.log, "near 0", 0.01)),
    "power": (
        of_map(torch.square),
        of_map(lambda x: x**3, "cubed"),
        away(lambda x: x**-2, "a negative power"),
        of_map(lambda x: torch.pow(x, 4.0), "the fourth"),
    ),
    "sqrt": (away(torch.sqrt), away(lambda x: x**0.5, "near 0", 0.01)),
    "rsqrt": (away(torch.rsqrt), away(lambda x: x**-0.5, "as a power", 0.1)),
    "reciprocal": (away(torch.reciprocal), away(lambda x: 1 / -x, "below 0", 0.1)),
    "erf": (of_map(torch.erf), of_map(torch.erf, "wide", WIDE), away(torch.erf)),
    "sin": (of_map(torch.sin), of_map(torch.sin, "wide", WIDE)),
    "cos": (of_map(torch.cos), Case("as it comes", (2,), of(lambda net, x: torch.cos(x)))),
    "curve": (
        of_map(quick_gelu),
        of_map(gelu_new),
        of_map(gelu_new, "wide", WIDE),
        of_map(gelu_by_erf),
        of_map(mish_by_softplus),
        of_map(smooth_size),
        of_map(lambda x: x / (1 + x.abs()), "softsign"),
        of_map(lambda x: x - torch.tanh(1.5 * x), "tanh taken off"),
        of_map(lambda x: torch.exp(-x * x) * (1 - x), "a bump"),
    ),
}


def one(
    rule: str, f: Callable[[Tensor], Tensor], x: float, box: tuple[float, float], *, tight: float = 1e-7, **options: Any
) -> Attained:
    """One entry, whose slope at ``x`` is the gain."""
    return Attained(rule, flat(f), [x], box=box, tight=tight, **options)


@dataclass(frozen=True, eq=False)
class BeyondItsThreshold:
    """Just above a threshold of 3 softplus is executed as x: by log(1 + e^-3) less, within the stated error."""

    @functools.cached_property
    def program(self) -> Program:
        return export(flat(functools.partial(F.softplus, threshold=3.0)), (1,))

    def check(self) -> None:
        proof = prove(self.program, (1,), box=(-5.0, 5.0))
        node, step = proof.last("softplus")
        x = 3.0 + 1e-9
        computed = float(proof.value(node, torch.tensor([[x]], dtype=torch.float64)))
        off = math.log1p(math.exp(x)) - computed
        assert off > 0.048
        assert off <= step.bound.within(frozenset()).error.to_float() <= 2.1 * off


SILU_STEEPEST, MISH_STEEPEST = 2.399357280515467667832739697, 1.490571179485428459294418908
HUGE = (-30.0, 30.0)

ATTAINED: dict[str, tuple[Attained | BeyondItsThreshold, ...]] = {
    # Steepest at 0, or at the entry closest to 0; at 30 the value is 1, to rounding.
    "tanh": (
        one("tanh", torch.tanh, 0.0, HUGE, largest=[30.0]),
        one("tanh", torch.tanh, 1.0, (1.0, 2.0), largest=[2.0]),
    ),
    "sigmoid": (
        one("sigmoid", torch.sigmoid, 0.0, HUGE, largest=[30.0]),
        one("sigmoid", torch.sigmoid, -1.0, (-2.0, -1.0), largest=[-1.0]),
        # n entries near 1/2: 1/2 sqrt(n).
        Attained("sigmoid", flat(torch.sigmoid), [0.0] * 4, box=(-1e-9, 1e-9), largest=[0.0] * 4, tight=1e-8),
    ),
    "silu": (one("silu", F.silu, SILU_STEEPEST, HUGE, largest=[30.0]),),
    "mish": (one("mish", F.mish, MISH_STEEPEST, HUGE, largest=[30.0]),),
    "softplus": (
        one("softplus", F.softplus, 2.0, (-2.0, 2.0), largest=[2.0]),
        BeyondItsThreshold(),
        one("softplus", functools.partial(F.softplus, beta=4.0), 1.0, (-1.0, 1.0), largest=[1.0]),
    ),
    "elu": (
        one("elu", F.elu, 0.5, (-1.0, 1.0), largest=[1.0]),
        one("elu", functools.partial(F.elu, alpha=0.5), 0.5, (-1.0, 1.0)),
        one("elu", functools.partial(F.elu, alpha=3.0), -1e-12, (-1.0, 0.25)),
        one("elu", F.selu, -1e-12, (-40.0, 1.0), largest=[-40.0]),
    ),
    "leaky-relu": (
        one("leaky-relu", F.leaky_relu, 0.5, (-1.0, 1.0), largest=[1.0]),
        one("leaky-relu", functools.partial(F.leaky_relu, negative_slope=-3.0), -0.5, (-1.0, 1.0), largest=[-1.0]),
    ),
    "clamp": (
        one("clamp", lambda x: x.clamp(-0.5, 0.75), 0.0, (-1.0, 1.0), largest=[1.0]),
        Attained("clamp", flat(lambda x: x.clamp(2.0, 4.0)), [3.0] * 4, box=(0.0, 5.0), largest=[5.0] * 4),
    ),
    "hardsigmoid": (one("hardsigmoid", hardsigmoid, 0.0, (-3.0, 3.0), largest=[3.0], tight=1e-6),),
    "hardswish": (
        one("hardswish", F.hardswish, 3.0 - 1e-9, HUGE, largest=[30.0]),
        one("hardswish", F.hardswish, 1.0, (-1.0, 1.0)),
    ),
    "exp": (one("exp", torch.exp, 2.0, (-1.0, 2.0), largest=[2.0]),),
    "log": (one("log", torch.log, 0.25, (0.25, 1.5), largest=[0.25]),),
    "power": (
        one("power", torch.square, -3.0, (-3.0, 1.0), largest=[-3.0]),
        one("power", lambda x: x**5, 2.0, (-1.0, 2.0), largest=[2.0]),
        one("power", lambda x: x**-2, 0.5, (0.5, 2.0), largest=[0.5]),
    ),
    "sqrt": (one("sqrt", torch.sqrt, 0.25, (0.25, 4.0), largest=[4.0]),),
    "rsqrt": (one("rsqrt", torch.rsqrt, 0.25, (0.25, 4.0), largest=[0.25]),),
    "reciprocal": (one("reciprocal", torch.reciprocal, -0.25, (-4.0, -0.25), largest=[-0.25]),),
    "erf": (
        one("erf", torch.erf, 0.0, HUGE, largest=[30.0]),
        one("erf", torch.erf, 1.0, (1.0, 2.0)),
    ),
    "sin": (one("sin", torch.sin, 0.0, HUGE, largest=[math.pi / 2]),),
    "cos": (
        one("cos", torch.cos, math.pi / 2, HUGE, largest=[0.0]),
        # |sin(x)| is nearly |x| near 0.
        one("cos", torch.cos, 0.001, (-0.001, 0.001), tight=1e-6),
    ),
    "curve": (
        # QuickGELU is SiLU in a different unit; gelu_new is GELU's tanh form.
        one("curve", quick_gelu, SILU_STEEPEST / 1.702, HUGE, largest=[30.0]),
        one("curve", gelu_new, 1.41850400879, HUGE, largest=[30.0]),
        one("curve", gelu_by_erf, 1.0, (-1.0, 1.0)),
        one("curve", mish_by_softplus, MISH_STEEPEST, HUGE),
        # Slope x / sqrt(x^2 + 0.01).
        one("curve", smooth_size, 1.0, (-1.0, 1.0), largest=[-1.0]),
        one("curve", lambda x: x / (1 + x.abs()), 0.0, HUGE, tight=1e-6),
        one("curve", lambda x: x * x * x, -2.0, (-2.0, 1.0), largest=[-2.0]),
    ),
}

MUTANTS: list[tuple[Any, str, str, str]] = [
    (curves, "sigmoid", "size = least(size, f.foot * entries + f.size * reach.size)", "size = f.size * reach.size"),
    (curves, "sigmoid", "f.image.largest * entries", "f.image.largest"),
    (curves, "sigmoid", "return least(_bell(at).largest, quarter)", "return _bell(at + SINGLE).largest"),
    (curves, "tanh", "_bell(at * TWO) * point(4)", "_bell(at * TWO) * TWO"),
    (
        curves,
        "softplus",
        "((at * beta).logistic().largest for",
        "((at * beta).logistic().largest * flatter.largest for",
    ),
    (curves, "softplus", "off = off + (point(-threshold).exp() * flatter).largest * 2", "pass"),
    (curves, "elu", "slope = most(scale, below)", "slope = scale"),
    (curves, "elu", "slope = most(scale, below)", "slope = below"),
    (
        curves,
        "elu",
        "Interval.at(below)).clamp(Interval.at(scale * alpha) * MINUS)",
        "Interval.at(below)).clamp(MINUS)",
    ),
    (curves, "leaky-relu", "slope = most(ONE, lower.largest)", "slope = lower.largest"),
    (curves, "leaky-relu", "slope = most(ONE, lower.largest)", "slope = ONE"),
    (curves, "clamp", "foot * entries + reach.size", "reach.size"),
    (curves, "clamp", "reach_of(x).clamp(low, high)", "reach_of(x)"),
    (curves, "hardswish", "* TWO + point(3)", "* TWO"),
    (curves, "log", "Curve(reach.reciprocal().largest, wide", "Curve(ONE, wide"),
    (curves, "power", "Curve(steep * n, executed * n", "Curve(steep, executed"),
    (curves, "sqrt", "((at.sqrt() * TWO).reciprocal().largest for", "((at.sqrt() * point(4)).reciprocal().largest for"),
    (curves, "rsqrt", "(at.sqrt().power(3) * TWO)", "(at.sqrt().power(2) * TWO)"),
    (curves, "reciprocal", "at.power(2).reciprocal().largest for", "at.reciprocal().largest for"),
    (curves, "cos", '* point("-0.5")', '* point("-0.4")'),
    (curves, "curve", "Curve(slope, slope, image, 0,", "Curve(slope * 0.5, slope, image, 0,"),
]
