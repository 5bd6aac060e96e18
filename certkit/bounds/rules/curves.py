"""Rules for functions of one entry that bend: what they do is decided by where the entries lie.

A function with a slope of at most s on an interval moves no two entries of it apart by more than s times their distance
(mean value theorem), and so no two values in any norm over their axes. The interval is the value's ``range``, or what its
size in linf leaves of it; the slope that carries an error is that on the interval widened by the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from certkit.bounds.bound import Axes, Bound, Reach, bound, per_norm
from certkit.bounds.number import ONE, ZERO, Interval, Up, least, most
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS, reach_of
from certkit.bounds.rules.registry import Facts, alone, rule
from certkit.errors import RecordError

# Largest slopes and smallest values, rounded outward in the last digit shown; proved in tests/test_constants.py.
SILU_SLOPE, SILU_LOWEST = Up.of("1.0998394"), "-0.2784646"
MISH_SLOPE, MISH_LOWEST = Up.of("1.0884982"), "-0.3088435"
ERF_SLOPE = Up.of("1.1283792")  # 2 / sqrt(pi)
LOG_2 = Up.of("0.6931472")

ELEMENTARY = 2 * ELEMENTARY_ULPS  # a unit in the last place is at most two roundings
MAX_EXPONENT = 64
FLUSHED = 2**64  # what underflows on the way, or is flushed to 0, is below the smallest number times this
ROUNDINGS = {  # how far the execution of each function may be off, in roundings of its value
    "tanh": ELEMENTARY,
    "sigmoid": ELEMENTARY + 4,  # 1 / (1 + exp(-x))
    "silu": ELEMENTARY + 6,  # x / (1 + exp(-x))
    "softplus": 2 * ELEMENTARY + 4,  # log1p(exp(beta x)) / beta, and four roundings of x
    "mish": 3 * ELEMENTARY + 6,  # x tanh(log1p(exp(x))): no step enlarges the relative error of the one before
    "elu": ELEMENTARY + 8,  # or exp(x) - 1, ten roundings of the scale
    "leaky-relu": 3,
    "hardsigmoid": 6,  # (x + 3) / 6 or a product with 1/6
    "hardswish": 8,
    "exp": ELEMENTARY,
    "log": ELEMENTARY,
    "power": ELEMENTARY,
    "sqrt": 2,
    "rsqrt": 4,
    "reciprocal": 2,
    "erf": ELEMENTARY,
    "sin": ELEMENTARY,
    "cos": ELEMENTARY,
}


def point(value: float | str) -> Interval:
    """The interval of one number, rounded outward."""
    return Interval.of(value, value)


NOUGHT, SINGLE, TWO, MINUS = point(0), point(1), point(2), point(-1)


class Curve(NamedTuple):
    """A function f of one entry, on the interval where the entries lie.

    slope      |f(a) - f(b)| <= slope |a - b| on the interval
    executed   the same on the interval widened by the error
    image      holds every f(x)
    foot, size |f(x)| <= foot + size |x|, if that is known
    roundings  how far the execution may be off, in roundings of f(x)
    off        and this much beside
    """

    slope: Up
    executed: Up
    image: Interval
    roundings: int
    foot: Up | None = None
    size: Up = ONE
    off: Up = ZERO


def reaches(x: Bound) -> tuple[Interval, Interval]:
    """Where the entries of a value lie, and where those that are computed do."""
    reach = reach_of(x)
    return reach, reach.widened(x.within(frozenset()).error)


def bent(x: Bound, facts: Facts, f: Curve) -> Bound:
    """The bound of a function of each entry."""
    lost = facts.smallest * FLUSHED + f.off

    def moved(axes: Axes, reach: Reach) -> Reach:
        entries = Up.of(x.count(axes)).sqrt()
        size = f.image.largest * entries
        if f.foot is not None:
            size = least(size, f.foot * entries + f.size * reach.size)
        error = f.executed * reach.error
        return Reach(size, f.slope * reach.gain, error + facts.roundoff * f.roundings * (size + error) + lost * entries)

    return bound(x.shape, per_norm(x, moved), f.image)


def _bell(x: Interval) -> Interval:
    """The slope of the logistic function, e^-|x| / (1 + e^-|x|)^2, where it is largest: closest to 0."""
    power = (x.closest() * MINUS).exp()
    return power * (SINGLE + power).power(2).reciprocal()


@rule("tanh")
def tanh(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """tanh has the slope 1 - tanh(x)^2, at most 1 and largest at the entry closest to 0; |tanh(x)| <= |x| and < 1.

    1 - tanh(x)^2 is four times the slope of the logistic function at 2x.
    """
    x = alone(inputs, facts)
    reach, wide = reaches(x)

    def slope(at: Interval) -> Up:
        return least((_bell(at * TWO) * point(4)).largest, ONE)

    return bent(x, facts, Curve(slope(reach), slope(wide), reach.tanh(), ROUNDINGS["tanh"], ZERO))


@rule("sigmoid")
def sigmoid(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The logistic function has the slope s (1 - s), at most 1/4 and largest at the entry closest to 0; its value is in (0, 1).

    |s(x)| <= 1/2 + |x|/4, as s(0) = 1/2.
    """
    x = alone(inputs, facts)
    reach, wide = reaches(x)
    quarter = ONE / 4

    def slope(at: Interval) -> Up:
        return least(_bell(at).largest, quarter)

    f = Curve(slope(reach), slope(wide), reach.logistic(), ROUNDINGS["sigmoid"], ONE / 2, quarter)
    return bent(x, facts, f)


@rule("silu")
def silu(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """SiLU x s(x) has a slope of at most 1.0998394, at 2.3993572805, |silu(x)| <= |x| and silu(x) >= -0.2784646."""
    x = alone(inputs, facts)
    reach = reach_of(x)
    image = (reach * reach.logistic()).meet(reach.hull(NOUGHT)).clamp(point(SILU_LOWEST))
    return bent(x, facts, Curve(SILU_SLOPE, SILU_SLOPE, image, ROUNDINGS["silu"], ZERO))


@rule("mish")
def mish(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Mish x tanh(log(1 + e^x)) has a slope of at most 1.0884982, at 1.4905711795, |mish(x)| <= |x|, and is >= -0.3088435."""
    x = alone(inputs, facts)
    image = reach_of(x).hull(NOUGHT).clamp(point(MISH_LOWEST))
    return bent(x, facts, Curve(MISH_SLOPE, MISH_SLOPE, image, ROUNDINGS["mish"], ZERO))


@rule("softplus")
def softplus(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Softplus log(1 + e^(b x)) / b has the slope s(b x) < 1, largest at the largest entry, and is at most log(2)/b + |x|.

    Executed as x where b x exceeds a threshold t; there it differs from the exact function by log(1 + e^-(b x)) / b, at most
    e^-t / b, and twice that covers the rounding of b x, t being at most 1000. Else log1p(exp(.)): a rounding of b x is one
    of x in the value.
    """
    x = alone(inputs, facts)
    reach, wide = reaches(x)
    beta, threshold = point(facts.attributes["beta"]), facts.attributes["threshold"]
    if not beta.positive or (threshold is not None and not 0 <= threshold <= 1000):
        raise RecordError("softplus needs beta > 0 and a threshold between 0 and 1000")
    flatter = beta.reciprocal()
    foot = (point(str(LOG_2)) * flatter).largest
    off = facts.roundoff * 4 * wide.largest
    if threshold is not None and not (wide * beta).below(point(threshold) * point("0.99")):
        off = off + (point(-threshold).exp() * flatter).largest * 2
    image = (reach * beta).softplus() * flatter
    slope, executed = ((at * beta).logistic().largest for at in (reach, wide))
    return bent(x, facts, Curve(slope, executed, image, ROUNDINGS["softplus"], foot, off=off))


@rule("elu")
def elu(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """ELU s x above 0 and s a (e^(i x) - 1) below, all >= 0, has a slope of at most max(s, s a i) and lies above -s a.

    ELU, SELU and CELU are this with their own numbers. 1 - e^(i x) <= i |x|.
    """
    x = alone(inputs, facts)
    alpha, scale, rate = (facts.measured(name) for name in ("alpha", "scale", "rate"))
    below = scale * alpha * rate
    slope = most(scale, below)
    reach = reach_of(x)
    # Both parts reach 0 here, whatever the range: the straight line bounds the lower ends only.
    falls = (reach.clamp(high=NOUGHT) * Interval.at(below)).clamp(Interval.at(scale * alpha) * MINUS)
    image = falls.hull(Interval.of(0, 0)) + (reach.clamp(NOUGHT) * Interval.at(scale)).hull(Interval.of(0, 0))
    off = facts.roundoff * 10 * scale * alpha
    return bent(x, facts, Curve(slope, slope, image, ROUNDINGS["elu"], ZERO, slope, off))


@rule("leaky-relu")
def leaky_relu(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """x above 0 and c x below moves by at most max(1, |c|) times the distance, c in [low, high] for every entry; f(0) = 0."""
    x = alone(inputs, facts)
    lower = Interval.of(facts.attributes["low"], facts.attributes["high"])
    slope = most(ONE, lower.largest)
    reach = reach_of(x)
    image = reach.clamp(high=NOUGHT) * lower + reach.clamp(NOUGHT)
    return bent(x, facts, Curve(slope, slope, image, ROUNDINGS["leaky-relu"], ZERO, slope))


@rule("clamp")
def clamp(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Clamping to [low, high] moves no two entries apart; |clamp(x)| <= |clamp(0)| + |x|. Exact, but for the bounds.

    A bound that is a number of the code is rounded when the arithmetic is float32, by ``rounding`` if that is stated.
    """
    x = alone(inputs, facts)
    low, high = (None if end is None else point(end) for end in (facts.attributes["low"], facts.attributes["high"]))
    foot, off = NOUGHT.clamp(low, high).largest, facts.evidence.get("rounding", ZERO)

    def clamped(axes: Axes, reach: Reach) -> Reach:
        entries = Up.of(x.count(axes)).sqrt()
        return Reach(foot * entries + reach.size, reach.gain, reach.error + off * entries)

    return bound(x.shape, per_norm(x, clamped), reach_of(x).clamp(low, high))


@rule("hardsigmoid")
def hardsigmoid(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Hardsigmoid, (x + 3)/6 clamped to [0, 1], has the slope 1/6 or 0, and is at most 1/2 + |x|/6."""
    x = alone(inputs, facts)
    sixth = ONE / 6
    image = ((reach_of(x) + point(3)) * point(6).reciprocal()).clamp(NOUGHT, SINGLE)
    return bent(x, facts, Curve(sixth, sixth, image, ROUNDINGS["hardsigmoid"], ONE / 2, sixth))


@rule("hardswish")
def hardswish(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Hardswish, x times hardsigmoid(x), has the slope (2x + 3)/6 on [-3, 3], at most 3/2; |f(x)| <= |x|, f(x) >= -3/8.

    Outside, the slope 0 or 1 is no larger than that at the nearer end of [-3, 3], 1/2 or 3/2.
    """
    x = alone(inputs, facts)
    sixth = point(6).reciprocal()
    slope, executed = (((at.clamp(point(-3), point(3)) * TWO + point(3)) * sixth).largest for at in reaches(x))
    image = reach_of(x).hull(NOUGHT).clamp(point("-0.375"))
    return bent(x, facts, Curve(slope, executed, image, ROUNDINGS["hardswish"], ZERO))


@rule("exp")
def exp(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """e^x is its own slope, largest at the largest entry."""
    x = alone(inputs, facts)
    reach, wide = reaches(x)
    return bent(x, facts, Curve(reach.exp().largest, wide.exp().largest, reach.exp(), ROUNDINGS["exp"]))


def _away_from_zero(x: Bound, what: str, *, negative: bool = False) -> tuple[Interval, Interval]:
    """Where exact and computed entries lie, if all are above 0 (or, if that will do, all below)."""
    reach, wide = reaches(x)
    if not (wide.positive or (negative and wide.nonzero)):
        raise RecordError(
            f"{what} of a value that may reach 0 has no finite slope; its entries are known to lie in {wide}, "
            "so add a positive constant before it, or clamp"
        )
    return reach, wide


@rule("log")
def log(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """log has the slope 1/x, largest at the smallest entry, which must be above 0."""
    x = alone(inputs, facts)
    reach, wide = _away_from_zero(x, "log")
    return bent(x, facts, Curve(reach.reciprocal().largest, wide.reciprocal().largest, reach.log(), ROUNDINGS["log"]))


@rule("power")
def power(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """x^n for n >= 2 has the slope n |x|^(n-1), largest at the entry of largest absolute value; |x^n| <= max|x|^(n-1) |x|."""
    x = alone(inputs, facts)
    n = facts.integer("exponent")
    if not 2 <= n <= MAX_EXPONENT:
        raise RecordError(f"a power has an exponent from 2 to {MAX_EXPONENT}, got {n}")
    reach, wide = reaches(x)
    steep, executed = (Interval.at(at.largest).power(n - 1).largest for at in (reach, wide))
    return bent(x, facts, Curve(steep * n, executed * n, reach.power(n), ROUNDINGS["power"], ZERO, steep))


@rule("sqrt")
def sqrt(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """sqrt has the slope 1 / (2 sqrt(x)), largest at the smallest entry, which must be above 0."""
    x = alone(inputs, facts)
    reach, wide = _away_from_zero(x, "sqrt")
    slope, executed = ((at.sqrt() * TWO).reciprocal().largest for at in (reach, wide))
    return bent(x, facts, Curve(slope, executed, reach.sqrt(), ROUNDINGS["sqrt"]))


@rule("rsqrt")
def rsqrt(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """1 / sqrt(x) has the slope 1 / (2 sqrt(x)^3), largest at the smallest entry, which must be above 0."""
    x = alone(inputs, facts)
    reach, wide = _away_from_zero(x, "rsqrt")
    slope, executed = ((at.sqrt().power(3) * TWO).reciprocal().largest for at in (reach, wide))
    return bent(x, facts, Curve(slope, executed, reach.sqrt().reciprocal(), ROUNDINGS["rsqrt"]))


@rule("reciprocal")
def reciprocal(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """1 / x has the slope 1 / x^2, largest at the entry closest to 0, which no entry may reach."""
    x = alone(inputs, facts)
    reach, wide = _away_from_zero(x, "reciprocal", negative=True)
    slope, executed = (at.power(2).reciprocal().largest for at in (reach, wide))
    return bent(x, facts, Curve(slope, executed, reach.reciprocal(), ROUNDINGS["reciprocal"]))


@rule("erf")
def erf(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """erf has the slope 2/sqrt(pi) e^(-x^2), largest at the entry closest to 0; |erf(x)| <= 1.1283792 |x| and < 1."""
    x = alone(inputs, facts)
    reach, wide = reaches(x)
    slope, executed = ((at.closest().power(2) * MINUS).exp().largest * ERF_SLOPE for at in (reach, wide))
    unit = Interval.around(ONE)
    image = (reach.hull(NOUGHT) * Interval.at(ERF_SLOPE)).meet(unit)
    return bent(x, facts, Curve(slope, executed, image, ROUNDINGS["erf"], ZERO, ERF_SLOPE))


@rule("sin")
def sin(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """sin has the slope cos(x), at most 1; |sin(x)| <= |x| and <= 1."""
    x = alone(inputs, facts)
    image = Interval.around(least(reach_of(x).largest, ONE))
    return bent(x, facts, Curve(ONE, ONE, image, ROUNDINGS["sin"], ZERO))


@rule("cos")
def cos(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """cos has the slope -sin(x), at most 1 and at most |x|; it lies between 1 - x^2/2 and 1, and above -1."""
    x = alone(inputs, facts)
    reach, wide = reaches(x)
    slope, executed = (least(at.largest, ONE) for at in (reach, wide))
    falls = Interval.upto(reach.largest).power(2) * point("-0.5")
    image = (SINGLE + falls).meet(Interval.around(ONE))
    return bent(x, facts, Curve(slope, executed, image, ROUNDINGS["cos"]))


@rule("curve")
def curve(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Several operators that make one function of each entry move it by at most that function's slope, proved on its range.

    ``slope`` is the largest |f'| on ``domain``, by interval branch and bound over the ``expression``; ``foot`` is |f(0)| if
    the domain holds 0, so that |f(x)| <= foot + slope |x|; ``image`` holds f of the domain; ``off`` is how far its execution
    may be off, operator by operator, for an exact entry. A second input is the bound of the same value by one rule per
    operator: each number may take the better of the two.
    """
    if len(inputs) not in (1, 2):
        raise RecordError(f"a curve reads one value, and at most one bound of its own, got {len(inputs)} inputs")
    x = alone(inputs[:1], facts)
    domain, image = (Interval.of(*facts.attributes[name]) for name in ("domain", "image"))
    if not domain.holds(reaches(x)[1]):
        raise RecordError("curve: its slope was proved on a smaller range than this graph reaches")
    slope = facts.measured("slope")
    foot = facts.measured("foot") if domain.holds(NOUGHT) else None
    whole = bent(x, facts, Curve(slope, slope, image, 0, foot, slope, facts.measured("off")))
    if len(inputs) == 1:
        return whole
    parts = inputs[1]
    if parts.shape != x.shape:
        raise RecordError(f"a curve keeps the shape {x.shape}, but its operators give {parts.shape}")
    norms = {axes: whole.within(axes).best(parts.within(axes)) for axes in {*whole.norms, *parts.norms}}
    return bound(x.shape, norms, reach_of(whole).meet(reach_of(parts)))
