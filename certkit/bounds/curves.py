"""The largest slope of a function of one number on an interval, proved by interval branch and bound with Arb.

A function is a straight line of steps, each a function of earlier values: value 0 is x, step k gives value k + 1. So
x * sigmoid(1.702 x) is ``[("scale", 0, 1.702), ("sigmoid", 1), ("product", 0, 2)]``. On a box of x every value has a ball
that holds it, its first and its second derivative; at a kink the first is the hull of the slopes on both sides (Clarke) and
the second is unknown. The slope on a box lies in the ball of the first derivative, in its mean value form around the
middle, and, where the second derivative has one sign, between its two ends. The box with the largest bound is halved until
that bound is attained, to ten digits, or the budget is spent; the largest bound is then still a bound.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from flint import arb, ctx

from certkit.bounds.rules.curves import FLUSHED, ROUNDINGS

Expression = tuple[tuple[Any, ...], ...]

BUDGET = 2000  # boxes
BITS = 128
DIGITS = 8  # a proved number is rounded outward to this many, so that it does not tell how the search went
PIECES = 32  # of the domain, on which execution is followed

_NAN = arb("nan")
_ZERO, _ONE = arb(0), arb(1)
Values = tuple[arb, arb, arb]  # f, f', f'' at a ball


def _rising(f: Callable[[arb], arb], x: arb) -> arb:
    """An increasing function of a ball: the hull of its values at both ends."""
    return f(x.lower()).union(f(x.upper()))


def _power(x: arb, n: int) -> arb:
    if n == 0:
        return _ONE
    if n % 2:
        return _rising(lambda end: end**n, x)
    return (x.abs_lower() ** n).union(x.abs_upper() ** n)


def _logistic(x: arb) -> arb:
    return _rising(lambda end: 1 / (1 + (-end).exp()), x)


def _sigmoid(x: arb) -> Values:
    s = _logistic(x)
    bell = _bell(x.abs_lower()).union(_bell(x.abs_upper()))  # abs(x) would keep the radius, and reach below 0
    return s, bell, bell * (1 - 2 * s)


def _bell(x: arb) -> arb:
    """The slope of the logistic function at x >= 0, where it falls."""
    power = (-x).exp()
    return power / (1 + power) ** 2


def _tanh(x: arb) -> Values:
    t = _rising(arb.tanh, x)
    slope = 4 * _sigmoid(2 * x)[1]
    return t, slope, -2 * t * slope


def _exp(x: arb) -> Values:
    power = _rising(arb.exp, x)
    return power, power, power


def _log(x: arb) -> Values:
    inverse = 1 / x
    return _rising(arb.log, x), inverse, -_power(inverse, 2)


def _sqrt(x: arb) -> Values:
    root = _rising(arb.sqrt, x)
    return root, 1 / (2 * root), -1 / (4 * root * x)


def _rsqrt(x: arb) -> Values:
    root = 1 / _rising(arb.sqrt, x)
    return root, -root / (2 * x), 3 * root / (4 * x * x)


def _reciprocal(x: arb) -> Values:
    inverse = 1 / x
    return inverse, -_power(inverse, 2), 2 * _power(inverse, 3)


def _erf(x: arb) -> Values:
    slope = 2 / arb.pi().sqrt() * _rising(arb.exp, -_power(x, 2))
    return _rising(arb.erf, x), slope, -2 * x * slope


def _sin(x: arb) -> Values:
    return x.sin(), x.cos(), -x.sin()


def _cos(x: arb) -> Values:
    return x.cos(), -x.sin(), -x.cos()


def _softplus(x: arb) -> Values:
    s, bell, _ = _sigmoid(x)
    return _rising(lambda end: end.nonnegative_part() + (-abs(end)).exp().log1p(), x), s, bell


def _kinked(x: arb, left: arb, right: arb) -> Values:
    """A function through 0 with a slope on each side, and both at 0 itself."""
    if not x.is_zero() and (x >= 0 or x <= 0):
        slope = right if x >= 0 else left
        return slope * x, slope, _ZERO
    sides = (left * -((-x).nonnegative_part())).union(right * x.nonnegative_part())
    return sides, left.union(right), _NAN


def _clamp(x: arb, low: float | None, high: float | None) -> Values:
    value, slope, flat = x, _ONE, False
    for end, sign in ((low, 1), (high, -1)):
        if end is None:
            continue
        beyond = sign * (value - arb(end))
        value, side, _ = _kinked(beyond, _ZERO, _ONE)
        value, slope, flat = arb(end) + sign * value, slope * side, flat or not side.is_exact()
    return value, slope, _NAN if flat else _ZERO


def _silu(x: arb) -> Values:
    s, bell, bend = _sigmoid(x)
    return x * s, s + x * bell, 2 * bell + x * bend


FUNCTIONS: dict[str, Callable[..., Values]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "reciprocal": _reciprocal,
    "erf": _erf,
    "sin": _sin,
    "cos": _cos,
    "softplus": _softplus,
    "abs": lambda x: _kinked(x, -_ONE, _ONE),
    "relu": lambda x: _kinked(x, _ZERO, _ONE),
    "leaky-relu": lambda x, slope: _kinked(x, arb(slope), _ONE),
    "clamp": _clamp,
    "silu": _silu,
    "negate": lambda x: (-x, -_ONE, _ZERO),
    "scale": lambda x, by: (x * arb(by), arb(by), _ZERO),
    "divide": lambda x, by: (x / arb(by), 1 / arb(by), _ZERO),
    "shift": lambda x, by: (x + arb(by), _ONE, _ZERO),
    "power": lambda x, n: (_power(x, n), n * _power(x, n - 1), n * (n - 1) * _power(x, n - 2)),
}
PAIRS = ("sum", "difference", "product", "quotient")


def run(expression: Expression, x: arb) -> list[Values]:
    """Every value of the expression on a ball of x, with its first and second derivative by x."""
    held: list[Values] = [(x, _ONE, _ZERO)]
    for name, *rest in expression:
        if name in PAIRS:
            held.append(_pair(name, held[rest[0]], held[rest[1]], same=rest[0] == rest[1]))
            continue
        value, first, second = held[rest[0]]
        f, slope, bend = FUNCTIONS[name](value, *rest[1:])
        held.append((f, slope * first, bend * _power(first, 2) + slope * second))
    return held


def _pair(name: str, a: Values, b: Values, *, same: bool) -> Values:
    (u, du, ddu), (v, dv, ddv) = a, b
    if name == "sum":
        return u + v, du + dv, ddu + ddv
    if name == "difference":
        return u - v, du - dv, ddu - ddv
    if name == "quotient":
        inverse, slope, bend = _reciprocal(v)
        v, dv, ddv = inverse, slope * dv, bend * _power(dv, 2) + slope * ddv
    elif same:
        return _power(u, 2), 2 * u * du, 2 * (_power(du, 2) + u * ddu)
    return u * v, du * v + u * dv, ddu * v + 2 * du * dv + u * ddv


Measured = Callable[[arb], tuple[arb, arb]]  # a quantity on a ball of x, and its derivative


def largest(quantity: Measured, low: arb, high: arb, budget: int = BUDGET) -> arb | None:
    """An upper bound of the quantity on [low, high], as sharp as the budget allows; None when there is no finite one."""
    attained = arb.neg_inf()
    boxes: list[tuple[arb, int, arb, arb, bool]] = []  # minus the bound, so that the largest comes first

    def enter(a: arb, b: arb) -> None:
        nonlocal attained
        x, middle = a.union(b), ((a + b) / 2).mid()
        value, slope = quantity(x)
        at, _ = quantity(middle)
        if at.is_finite():
            attained = attained.max(at.lower())
        exact = slope >= 0 or slope <= 0
        if exact:
            bound = quantity(b if slope >= 0 else a)[0].upper()
        else:
            bounds = [found.upper() for found in (value, at + slope * (x - middle)) if found.is_finite()]
            bound = functools.reduce(lambda p, q: min(q, p), bounds) if bounds else arb.pos_inf()
        if not bound.is_finite():
            bound, exact = arb.pos_inf(), False
        boxes_left = len(seen)
        seen.append(None)
        heapq.heappush(boxes, (-bound, boxes_left, a, b, exact))

    seen: list[None] = []
    enter(low, high)
    while True:
        minus, _, a, b, exact = boxes[0]
        bound = -minus
        close = attained.is_finite() and bound <= attained + abs(attained) * arb(2) ** -34 + arb(2) ** -100
        middle = ((a + b) / 2).mid()
        if exact or close or len(seen) >= budget or not (a < middle < b):
            return bound if bound.is_finite() else None
        heapq.heappop(boxes)
        enter(a, middle)
        enter(middle, b)


@dataclass(frozen=True, slots=True)
class Proved:
    """What is proved of an expression f on a domain; texts are exact decimals, rounded outward to eight digits.

    ``slope`` bounds |f'|, ``foot`` is |f(0)| or None where the domain does not hold 0, ``image`` holds every f(x), and
    ``off`` bounds how far the execution, operator by operator, may be from f(x) for an exact x.
    """

    slope: str
    foot: str | None
    image: tuple[str, str]
    off: str


@functools.lru_cache(maxsize=4096)
def prove(expression: Expression, low: str, high: str, roundoff: str, smallest: str) -> Proved | None:
    """What holds for every x in [low, high]; None where no finite slope is found within the budget."""
    before, ctx.prec = ctx.prec, BITS
    try:
        a, b = arb(low).lower(), arb(high).upper()

        def slope(x: arb) -> tuple[arb, arb]:
            _, first, second = run(expression, x)[-1]
            return first, second

        def value(x: arb) -> tuple[arb, arb]:
            found, first, _ = run(expression, x)[-1]
            return found, first

        ends: list[arb] = []
        for quantity in (slope, _minus(slope), value, _minus(value)):
            end = largest(quantity, a, b)
            if end is None:
                return None
            ends.append(end)
        rise, fall, top, bottom = ends
        off = executed(expression, a, b, arb(roundoff), arb(smallest))
        if off is None or not all(abs(end) < arb(2) ** 20_000 for end in (*ends, off)):
            return None
        holds_zero = a <= 0 <= b
        foot = run(expression, _ZERO)[-1][0].abs_upper() if holds_zero else None
        return Proved(
            slope=_text(rise.max(fall).nonnegative_part(), ROUND_CEILING),
            foot=None if foot is None else _text(foot, ROUND_CEILING),
            image=(_text(-bottom, ROUND_FLOOR), _text(top, ROUND_CEILING)),
            off=_text(off, ROUND_CEILING),
        )
    finally:
        ctx.prec = before


def _minus(quantity: Measured) -> Measured:
    def turned(x: arb) -> tuple[arb, arb]:
        found, slope = quantity(x)
        return -found, -slope

    return turned


def executed(expression: Expression, low: arb, high: arb, roundoff: arb, smallest: arb) -> arb | None:
    """How far floating point may be from the exact value anywhere on the domain; None where a step loses its domain.

    On a piece of the domain: a step carries the error of its operands by its largest slope between what is exact and what
    is computed, and adds its roundings of the value.
    """
    edges = [(low + (high - low) * k / PIECES).mid() for k in range(PIECES)] + [high]
    edges[0] = low
    pieces = [(a, b, 0) for a, b in itertools.pairwise(edges)]
    worst = _ZERO
    while pieces:
        a, b, depth = pieces.pop()
        found = _strayed(expression, a.union(b), roundoff, smallest)
        if found.is_finite():
            worst = worst.max(found)
            continue
        middle = ((a + b) / 2).mid()
        if depth == 8 or not a < middle < b:
            return None
        pieces += [(a, middle, depth + 1), (middle, b, depth + 1)]
    return worst.upper()


def _strayed(expression: Expression, x: arb, roundoff: arb, smallest: arb) -> arb:
    held: list[tuple[arb, arb]] = [(x, _ZERO)]  # where exact and computed values lie, and how far apart they may be
    for name, *rest in expression:
        if name in PAIRS:
            (u, eu), (v, ev) = (held[k] for k in rest)
            f, du, dv = _partial(name, u, v, same=rest[0] == rest[1])
            moved, roundings = du.abs_upper() * eu + dv.abs_upper() * ev, 1
        else:
            u, eu = held[rest[0]]
            f, du, _ = FUNCTIONS[name](u, *rest[1:])
            moved, roundings = du.abs_upper() * eu, EXECUTED[name]
        off = moved + roundoff * roundings * (f.abs_upper() + moved) + smallest * FLUSHED
        if name == "shift":
            off += 2 * roundoff * abs(arb(rest[1]))
        elif name == "clamp":
            off += 2 * roundoff * sum(abs(arb(end)) for end in rest[1:] if end is not None)
        elif name == "softplus":
            off += 4 * roundoff * u.abs_upper()
            if not u < arb(SOFTPLUS_THRESHOLD) * arb("0.99"):
                off += 2 * (-arb(SOFTPLUS_THRESHOLD)).exp()
        held.append((f + arb(0, off.upper()), off.upper()))
    return held[-1][1]


def _partial(name: str, u: arb, v: arb, *, same: bool) -> tuple[arb, arb, arb]:
    if name == "sum":
        return u + v, _ONE, _ONE
    if name == "difference":
        return u - v, _ONE, _ONE
    if name == "product":
        return (_power(u, 2) if same else u * v), v, u
    return u / v, 1 / v, u / _power(v, 2)


SOFTPLUS_THRESHOLD = 20.0  # beyond it softplus is executed as x
EXECUTED = ROUNDINGS | {"abs": 0, "relu": 0, "clamp": 0, "negate": 0, "scale": 3, "divide": 3, "shift": 1}


def _text(number: arb, rounding: str) -> str:
    """An exact arb as a decimal, rounded outward; what is below 10^-1000 is 0 or 10^-1000."""
    mantissa, exponent = (int(part) for part in number.man_exp())
    context = Context(prec=DIGITS, rounding=rounding)
    if mantissa == 0:
        return "0"
    if exponent < -20_000:
        tiny = (mantissa > 0) == (rounding == ROUND_CEILING)
        return ("1E-1000" if mantissa > 0 else "-1E-1000") if tiny else "0"
    if exponent >= 0:
        return str(context.create_decimal(Decimal(mantissa << exponent)))
    return str(context.divide(Decimal(mantissa), Decimal(1 << -exponent)))
