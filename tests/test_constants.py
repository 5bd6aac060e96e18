"""The largest slopes and smallest values of GELU, SiLU and Mish, proved by interval arithmetic (Arb): branch and bound over the whole real line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from flint import arb, ctx

from certkit.bounds.rules.curves import ERF_SLOPE, LOG_2, MISH_LOWEST, MISH_SLOPE, SILU_LOWEST, SILU_SLOPE
from certkit.bounds.rules.pointwise import GELU_LOWEST, GELU_SLOPE


@pytest.fixture(autouse=True)
def _precise() -> Iterator[None]:
    before, ctx.prec = ctx.prec, 128
    yield
    ctx.prec = before


def erf_slope(x: arb) -> arb:
    """d/dx x Phi(x) = Phi(x) + x phi(x)."""
    density = (-x * x / 2).exp() / (2 * arb.pi()).sqrt()
    return (1 + (x / arb(2).sqrt()).erf()) / 2 + x * density


def erf_curvature(x: arb) -> arb:
    """d/dx of that: phi(x) (2 - x^2)."""
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt() * (2 - x * x)


def tanh_slope(x: arb) -> arb:
    """d/dx x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    rate, cubic = (2 / arb.pi()).sqrt(), arb(44715) / 10**6
    t = (rate * (x + cubic * x**3)).tanh()
    return (1 + t) / 2 + x / 2 * (1 - t * t) * rate * (1 + 3 * cubic * x * x)


def tanh_curvature(x: arb) -> arb:
    """d/dx of that: (1 - t^2) u' + x/2 (1 - t^2) (u'' - 2 t u'^2)."""
    rate, cubic = (2 / arb.pi()).sqrt(), arb(44715) / 10**6
    t = (rate * (x + cubic * x**3)).tanh()
    first, second = rate * (1 + 3 * cubic * x * x), rate * 6 * cubic * x
    return (1 - t * t) * first + x / 2 * (1 - t * t) * (second - 2 * t * first * first)


def logistic(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def silu_slope(x: arb) -> arb:
    """d/dx x s = s + x s (1 - s)."""
    s = logistic(x)
    return s + x * s * (1 - s)


def silu_curvature(x: arb) -> arb:
    """d/dx of that: s (1 - s) (2 + x (1 - 2 s))."""
    s = logistic(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def mish_slope(x: arb) -> arb:
    """d/dx x t with t = tanh(log(1 + e^x)): t + x (1 - t^2) s."""
    s, t = logistic(x), x.exp().log1p().tanh()
    return t + x * (1 - t * t) * s


def mish_curvature(x: arb) -> arb:
    """d/dx of that: (1 - t^2) s (2 + x (1 - s - 2 t s))."""
    s, t = logistic(x), x.exp().log1p().tanh()
    return (1 - t * t) * s * (2 + x * (1 - s - 2 * t * s))


SLOPES: dict[str, tuple[Callable[[arb], arb], Callable[[arb], arb]]] = {
    "none": (erf_slope, erf_curvature),
    "tanh": (tanh_slope, tanh_curvature),
    "silu": (silu_slope, silu_curvature),
    "mish": (mish_slope, mish_curvature),
}
VALUES: dict[str, Callable[[arb], arb]] = {
    "none": lambda x: x * (1 + (x / arb(2).sqrt()).erf()) / 2,
    "tanh": lambda x: x * (1 + ((2 / arb.pi()).sqrt() * (x + arb(44715) / 10**6 * x**3)).tanh()) / 2,
    "silu": lambda x: x * logistic(x),
    "mish": lambda x: x * x.exp().log1p().tanh(),
}
LARGEST = {
    **{kind: slope.value for kind, slope in GELU_SLOPE.items()},
    "silu": SILU_SLOPE.value,
    "mish": MISH_SLOPE.value,
}
LOWEST = {**GELU_LOWEST, "silu": SILU_LOWEST, "mish": MISH_LOWEST}
END = {"none": 8, "tanh": 8, "silu": 30, "mish": 30}  # where the tails begin


def ball(low: arb, high: arb) -> arb:
    return low.union(high)


def below(slope: Callable[[arb], arb], curvature: Callable[[arb], arb], low: arb, high: arb, limit: arb) -> bool:
    """Whether |slope| < limit on [low, high]: by its ball, by the mean value form, else by halves."""
    stack = [(low, high, 0)]
    while stack:
        a, b, depth = stack.pop()
        x, middle = ball(a, b), (a + b) / 2
        centred = slope(middle) + curvature(x) * (x - middle)
        if any(abs(value) < limit for value in (slope(x), centred)):
            continue
        if depth == 60:
            return False
        stack += [(a, middle, depth + 1), (middle, b, depth + 1)]
    return True


def tail(kind: str, x: arb) -> arb:
    """For |y| >= x >= 8 the slope is within this of 0 or 1, and for y <= -x the value is within this of 0.

    erf: 1 - Phi(y) <= phi(y) / y, beside y phi(y). tanh: 1 - tanh u <= 2 e^(-2u) and 1 - tanh^2 u <= 4 e^(-2u), where u >= y
    and 2u >= 0.07 y^3, and u' <= 1 + y^2. SiLU: s (1 - s) <= e^-|y|, and s <= e^y. Mish: 1 - t^2 <= 4 e^(-2y) above 0, and
    t <= log(1 + e^y) <= e^y. Each falls from 8 on.
    """
    if kind in ("silu", "mish"):
        return (1 + 4 * x) * (-x).exp()
    if kind == "none":
        return (-x * x / 2).exp() * (1 / x + x)
    return (-2 * x).exp() + 2 * x * (1 + x * x) * (-arb("0.07") * x**3).exp()


@pytest.mark.parametrize("kind", SLOPES)
def test_the_largest_slope_is_below_its_constant(kind: str) -> None:
    limit, end = arb(str(LARGEST[kind])), arb(END[kind])
    slope, curvature = SLOPES[kind]
    assert below(slope, curvature, -end, end, limit)
    assert 1 + tail(kind, end) < limit


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("none", arb(2).sqrt()),
        ("tanh", arb("1.41850400879")),
        ("silu", arb("2.3993572805")),
        ("mish", arb("1.4905711795")),
    ],
)
def test_the_constant_is_the_largest_slope_rounded_up_in_its_last_digit(kind: str, at: arb) -> None:
    last = Decimal("1E-7")
    assert SLOPES[kind][0](at) > arb(str(LARGEST[kind] - last))


@pytest.mark.parametrize("kind", VALUES)
def test_no_value_is_below_the_lowest(kind: str) -> None:
    # Above 0 all are positive.
    end, lowest = arb(END[kind]), -arb(LOWEST[kind])
    assert below(VALUES[kind], SLOPES[kind][0], -end, arb(0), lowest)
    assert tail(kind, end) < lowest


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("none", arb("-0.7517915247")),
        ("tanh", arb("-0.7524614221")),
        ("silu", arb("-1.2784645428")),
        ("mish", arb("-1.1924312145")),
    ],
)
def test_the_lowest_value_is_rounded_down_in_its_last_digit(kind: str, at: arb) -> None:
    assert VALUES[kind](at) < arb(str(Decimal(LOWEST[kind]) + Decimal("1E-7")))


@pytest.mark.parametrize("kind", SLOPES)
def test_the_written_slopes_enclose_difference_quotients_of_the_values(kind: str) -> None:
    for number in range(-30, 31):
        x, step = arb(number) / 10, arb("1e-9")
        quotient = (VALUES[kind](x + step) - VALUES[kind](x - step)) / (2 * step)
        assert abs(quotient - SLOPES[kind][0](x)) < arb("1e-12")


def test_the_slope_of_erf_and_the_logarithm_of_2_are_rounded_up_in_their_last_digit() -> None:
    for constant, true in ((ERF_SLOPE, 2 / arb.pi().sqrt()), (LOG_2, arb(2).log())):
        assert arb(str(constant.value - Decimal("1E-7"))) < true < arb(str(constant.value))


@pytest.mark.parametrize("kind", GELU_SLOPE)
@pytest.mark.parametrize("claimed", ["1.1289", "1.12"])
def test_the_constants_that_others_use_are_below_the_truth(kind: str, claimed: str) -> None:
    # 1.1289 is in the code of arXiv 2507.13338, 1.12 in CertViT.
    assert SLOPES[kind][0](arb("1.4142")) > arb(claimed)
    slope, curvature = SLOPES[kind]
    assert not below(slope, curvature, arb("1.4"), arb("1.43"), arb(claimed))


@pytest.mark.parametrize("kind", SLOPES)
def test_the_written_derivatives_enclose_difference_quotients(kind: str) -> None:
    slope, curvature = SLOPES[kind]
    for number in range(-30, 31):
        x, step = arb(number) / 10, arb("1e-9")
        quotient = (slope(x + step) - slope(x - step)) / (2 * step)
        assert abs(quotient - curvature(x)) < arb("1e-12")
