"""Numbers that are rounded outward: the arithmetic of every rule, on the standard library alone.

A rule writes the textbook inequality with ``+``, ``*``, ``/`` and ``sqrt``; the number type sees to it that rounding can
only weaken it. The type is decimal: directed rounding, exponents far beyond 1e308 (a deep network at 10^400 stays
finite), the same digits on every machine, and a text that people can read and that reads back exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DivisionByZero, InvalidOperation
from decimal import Overflow as DecimalOverflow
from functools import reduce
from operator import and_, or_

DIGITS = 19  # two more than a float64 needs, so that the rules add less rounding than the measured evidence
_TRAPS = [InvalidOperation, DivisionByZero, DecimalOverflow]
_UP = Context(prec=DIGITS, rounding=ROUND_CEILING, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
_DOWN = Context(prec=DIGITS, rounding=ROUND_FLOOR, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
_EXACT = Context(prec=1100, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)  # a float64 has at most 767 decimal digits


def _decimal(value: float | Decimal | str) -> Decimal:
    """The exact decimal value; NaN and infinity are refused with ValueError."""
    try:
        exact = Decimal(value)  # the constructor never rounds, whatever the context
    except (InvalidOperation, TypeError):
        raise ValueError(f"{value!r} is not a number") from None
    if not exact.is_finite():
        raise ValueError(f"{value!r} is not finite")
    return exact


@dataclass(frozen=True, slots=True, order=True)
class Up:
    """An upper bound of a non-negative real. Every operation gives an upper bound of the true result."""

    value: Decimal

    def __post_init__(self) -> None:
        if not self.value.is_finite() or self.value < 0:
            raise ValueError(f"an upper bound of a norm is finite and not negative, got {self.value}")

    @classmethod
    def of(cls, value: float | Decimal | str | Up) -> Up:
        """The smallest bound of ``DIGITS`` digits that is not below the value."""
        return value if isinstance(value, Up) else cls(_UP.plus(_decimal(value)))

    # A foreign operand is left to its own type: the same rules run on numbers that are one bound per sample.

    def __add__(self, other: Up | float) -> Up:
        return Up(_UP.add(self.value, Up.of(other).value)) if isinstance(other, (Up, int, float)) else NotImplemented

    def __mul__(self, other: Up | float) -> Up:
        return (
            Up(_UP.multiply(self.value, Up.of(other).value)) if isinstance(other, (Up, int, float)) else NotImplemented
        )

    def __and__(self, other: Up) -> Up:
        """The smaller of two: ``least``."""
        return min(self, other) if isinstance(other, Up) else NotImplemented

    def __or__(self, other: Up) -> Up:
        """The larger of two: ``most``."""
        return max(self, other) if isinstance(other, Up) else NotImplemented

    def __truediv__(self, other: int) -> Up:
        """Divide by an exact positive integer. There is no division by an ``Up``: an upper bound in a denominator lies."""
        if not isinstance(other, int) or isinstance(other, bool) or other <= 0:
            raise ValueError(f"an upper bound is divided by exact positive integers only, got {other!r}")
        return Up(_UP.divide(self.value, Decimal(other)))

    __radd__ = __add__
    __rmul__ = __mul__

    def sqrt(self) -> Up:
        """An upper bound of the square root: decimal rounds roots to nearest, so one digit is added."""
        root = _UP.sqrt(self.value)
        return Up(root if _EXACT.multiply(root, root) >= self.value else _UP.next_plus(root))

    def interval(self, low: int, high: int) -> Interval:
        """[low, high] times this number, for low <= high among -1, 0 and 1."""
        ends = {-1: self.value.copy_negate() if self.value else self.value, 0: Decimal(0), 1: self.value}
        return Interval(ends[low], ends[high])

    def to_float(self) -> float:
        """The smallest float64 not below this bound; infinity when it is beyond 1.8e308."""
        nearest = float(self.value)
        return nearest if _decimal_or_inf(nearest) >= self.value else math.nextafter(nearest, math.inf)

    def __str__(self) -> str:
        return str(self.value) if self.value else "0"  # decimal keeps 0E-18


def _decimal_or_inf(value: float) -> Decimal:
    return Decimal("Infinity") if math.isinf(value) else _decimal(value)


@dataclass(frozen=True, slots=True)
class Interval:
    """All entries of a value lie in [low, high]; arithmetic widens outward."""

    low: Decimal
    high: Decimal

    def __post_init__(self) -> None:
        if not (self.low.is_finite() and self.high.is_finite() and self.low <= self.high):
            raise ValueError(f"an interval has finite ends in order, got [{self.low}, {self.high}]")

    @classmethod
    def of(cls, low: float | str, high: float | str) -> Interval:
        """The interval, its ends rounded outward to ``DIGITS`` digits."""
        return cls(_DOWN.plus(_decimal(low)), _UP.plus(_decimal(high)))

    def __add__(self, other: Interval) -> Interval:
        if not isinstance(other, Interval):
            return NotImplemented
        return Interval(_DOWN.add(self.low, other.low), _UP.add(self.high, other.high))

    def __mul__(self, other: Interval) -> Interval:
        """The hull of the four products of the ends."""
        if not isinstance(other, Interval):
            return NotImplemented
        pairs = [(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(_DOWN.multiply(a, b) for a, b in pairs), max(_UP.multiply(a, b) for a, b in pairs))

    def __or__(self, other: Interval) -> Interval:
        if not isinstance(other, Interval):
            return NotImplemented
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def __and__(self, other: Interval) -> Interval:
        if not isinstance(other, Interval):
            return NotImplemented
        return Interval(max(self.low, other.low), min(self.high, other.high))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return self | other

    def meet(self, other: Interval) -> Interval:
        """What lies in both. Raises ValueError when nothing does."""
        return self & other

    @property
    def largest(self) -> Up:
        """The largest absolute value of an entry."""
        return Up(max(_UP.abs(self.low), _UP.abs(self.high)))

    @classmethod
    def at(cls, number: Up) -> Interval:
        """The interval of one number."""
        return number.interval(1, 1)

    @classmethod
    def around(cls, size: Up) -> Interval:
        """Every entry of absolute value up to ``size``."""
        return size.interval(-1, 1)

    @classmethod
    def upto(cls, size: Up) -> Interval:
        """Every entry from 0 to ``size``."""
        return size.interval(0, 1)

    def widened(self, by: Up) -> Interval:
        """All numbers no further than ``by`` from an entry."""
        return self + Interval.around(by)

    def __str__(self) -> str:
        """For messages: three digits of each end."""
        low, high = (_UP.plus(end).normalize() for end in (self.low, self.high))  # which also makes 0 of -0
        return f"[{low:.3g}, {high:.3g}]"

    def holds(self, other: Interval) -> bool:
        """Whether every entry of the other lies in this one."""
        return other.inside(self)

    def inside(self, other: Interval) -> bool:
        """Whether every entry lies in the other."""
        return other.low <= self.low and self.high <= other.high

    def below(self, other: Interval) -> bool:
        """Whether no entry exceeds any of the other."""
        return self.high <= other.low

    @property
    def positive(self) -> bool:
        """Whether every entry is above 0."""
        return self.low > 0

    @property
    def nonzero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def closest(self) -> Interval:
        """The smallest absolute value of an entry, as an interval of one point."""
        near = Decimal(0) if self.low <= 0 <= self.high else min(self.low.copy_abs(), self.high.copy_abs())
        return Interval(near, near)

    # Images of increasing functions: each end is the function of that end, rounded outward. Decimal rounds exp and ln to
    # nearest, so one digit is added.

    def clamp(self, low: Interval | None = None, high: Interval | None = None) -> Interval:
        """min(max(x, low), high), where the bounds need only be known to lie in intervals."""
        ends = [self.low, self.high]
        if low is not None:
            ends = [max(ends[0], low.low), max(ends[1], low.high)]
        if high is not None:
            ends = [min(ends[0], high.low), min(ends[1], high.high)]
        return Interval(*ends)

    def exp(self) -> Interval:
        """e^x. Raises ValueError beyond 10^(10^18)."""
        try:
            return Interval(max(_DOWN.next_minus(_DOWN.exp(self.low)), Decimal(0)), _UP.next_plus(_UP.exp(self.high)))
        except DecimalOverflow:
            raise ValueError(f"e^{self.high} is beyond every number that can be written down") from None

    def log(self) -> Interval:
        """The natural logarithm. Raises ValueError unless every entry is above 0."""
        if not self.positive:
            raise ValueError(f"the logarithm of a value in [{self.low}, {self.high}], which reaches 0, has no bound")
        return Interval(_DOWN.next_minus(_DOWN.ln(self.low)), _UP.next_plus(_UP.ln(self.high)))

    def sqrt(self) -> Interval:
        """The square root. Raises ValueError for an entry below 0."""
        if self.low < 0:
            raise ValueError(f"the square root of a value in [{self.low}, {self.high}] is not real")
        root = _DOWN.sqrt(self.low)
        exact = _EXACT.multiply(root, root) <= self.low
        return Interval(root if exact else _DOWN.next_minus(root), Up(self.high).sqrt().value)

    def logistic(self) -> Interval:
        """1 / (1 + e^-x)."""
        return Interval(_logistic(self.low).low, _logistic(self.high).high)

    def tanh(self) -> Interval:
        """tanh x = 2 logistic(2x) - 1, which lies between 0 and x."""
        two, minus = Interval(Decimal(2), Decimal(2)), Interval(Decimal(-1), Decimal(-1))
        return ((self * two).logistic() * two + minus).meet(self.hull(Interval(Decimal(0), Decimal(0))))

    def softplus(self) -> Interval:
        """log(1 + e^x)."""
        return Interval(_softplus(self.low).low, _softplus(self.high).high)

    def reciprocal(self) -> Interval:
        """1 / x. Raises ValueError when 0 lies inside."""
        if not self.nonzero:
            raise ValueError(f"the reciprocal of a value in [{self.low}, {self.high}], which holds 0, has no bound")
        return Interval(_DOWN.divide(Decimal(1), self.high), _UP.divide(Decimal(1), self.low))

    def power(self, exponent: int) -> Interval:
        """x^n for n >= 1: even powers grow with |x|, odd ones with x."""
        low, high = self.low, self.high
        if exponent % 2 == 0:
            low, high = self.closest().low, self.largest.value
        down, up = (Interval(end, end) for end in (low, high))
        for _ in range(exponent - 1):
            down, up = down * Interval(low, low), up * Interval(high, high)
        return Interval(down.low, up.high)


_FAR = Decimal(10**6)  # e^-x beyond it is 0 for every purpose, and e^x need not be computed


def _logistic(x: Decimal) -> Interval:
    """1 / (1 + e^-x) at one point, an increasing function between 0 and 1."""
    if abs(x) > _FAR:
        far = Interval(-_FAR, -_FAR).exp().largest
        return Interval.upto(far) if x < 0 else Interval(_DOWN.subtract(Decimal(1), far.value), Decimal(1))
    one = Interval(Decimal(1), Decimal(1))
    return (one + Interval(x.copy_negate(), x.copy_negate()).exp()).reciprocal()


def _softplus(x: Decimal) -> Interval:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) at one point; the logarithm lies between 0 and e^-|x|."""
    zero, one, size = Decimal(0), Interval(Decimal(1), Decimal(1)), x.copy_abs()
    power = Interval(size.copy_negate(), size.copy_negate()).exp()
    above = (one + power).log().meet(Interval.upto(power.largest))
    return above + Interval(max(x, zero), max(x, zero))


def least(*numbers: Up) -> Up:
    """The smallest of several bounds of one thing: any of them may be taken."""
    return reduce(and_, numbers)


def most(*numbers: Up) -> Up:
    """The largest of several bounds."""
    return reduce(or_, numbers)


ZERO = Up(Decimal(0))
ONE = Up(Decimal(1))


def gamma(terms: int, roundoff: Up) -> Up:
    """n·u / (1 − n·u): how far a sum of n products may be off, relative to the sum of the absolute products.

    Holds for any order of summation, blocked, threaded, with or without fused multiply-add.
    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Lemma 3.1 and section 3.1.
    Raises ValueError when n·u is not below 1/2 (then nothing is known).
    """
    nu = _UP.multiply(Decimal(terms), roundoff.value)
    if nu >= Decimal("0.5"):
        raise ValueError(f"a sum of {terms} terms has no error bound at unit roundoff {roundoff}")
    return Up(_UP.divide(nu, _DOWN.subtract(Decimal(1), nu)))


UNIT_ROUNDOFF = {"float64": Up.of(2.0**-53), "float32": Up.of(2.0**-24)}
SMALLEST = {
    "float64": Up.of("1E-323"),
    "float32": Up.of("3E-45"),
}  # at least the smallest subnormal: what underflow loses
