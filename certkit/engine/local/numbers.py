"""Numbers that are rounded outward, one per sample: ``Up`` and ``Interval`` again, over float64 arrays.

The rules know numbers by ``+``, ``*``, ``/`` and ``sqrt`` alone, so that the text that proves the bound of a box also proves
those of many balls. Each entry is computed from the same entry of the operands only: no sample sees its neighbours. What is
unknown is infinite, never NaN: a sample whose interval a function cannot read gets the whole line, and the others go on.

Sums, products, quotients and roots are correctly rounded, so one step outward makes them bounds. ASSUMPTION, as in every
certificate: exp, log and tanh are accurate to ELEMENTARY_ULPS units in the last place; they are widened by eight times that.
Overflow and 0 times infinity are answered here, so callers silence numpy's warnings of them (``np.errstate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.number import Interval, Up
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS

Floats = NDArray[np.float64]

STEP = 1.0 + 2.0**-52
SMALLEST = 5e-324
MARGIN = 8 * ELEMENTARY_ULPS * 2.0**-52  # relative
LOST = 1e-320  # what an elementary function may lose to underflow
LARGEST = float(np.finfo(np.float64).max)


def _above(x: Floats) -> Floats:
    """No less than the next float64 after each x >= 0; NaN, from 0 times infinity, becomes infinity.

    x 2^-52 is at least a unit in the last place of a normal x, and rounding is monotone; below that SMALLEST is the unit.
    """
    return np.asarray(np.fmin(x * STEP + SMALLEST, np.inf))


def _wider(low: Floats, high: Floats) -> Intervals:
    """Each end one float64 outward."""
    return Intervals(np.nextafter(low, -np.inf), np.nextafter(high, np.inf))


def _approximate(low: Floats, high: Floats) -> Intervals:
    """Ends by elementary functions, widened by their error. An overflow is no lower bound, nor its opposite an upper one."""
    low, high = np.minimum(low, LARGEST), np.maximum(high, -LARGEST)
    return _wider(low - np.abs(low) * MARGIN - LOST, high + np.abs(high) * MARGIN + LOST)


@lru_cache(maxsize=4096)
def _ends(low: Decimal, high: Decimal) -> tuple[float, float]:
    """The float64 numbers next to an interval's ends, outward."""
    down, up = float(low), float(high)
    if np.isinf(down) or Decimal(down) > low:
        down = float(np.nextafter(down, -np.inf))
    if not np.isinf(up) and Decimal(up) < high:
        up = float(np.nextafter(up, np.inf))
    return down, up if up > -np.inf else -LARGEST


@dataclass(frozen=True, slots=True, eq=False)
class Ups:
    """Upper bounds of non-negative reals, entry by entry; infinity says that nothing is known. Never equal to another."""

    value: Floats

    @classmethod
    def of(cls, number: Up | Ups | float) -> Ups:
        """The number itself, or one for all samples."""
        return number if isinstance(number, Ups) else cls(_float(number))

    def __add__(self, other: Up | Ups | float) -> Ups:
        return Ups(_above(self.value + _float(other)))

    def __mul__(self, other: Up | Ups | float) -> Ups:
        return Ups(_above(self.value * _float(other)))

    def __truediv__(self, other: int) -> Ups:
        """Divide by an exact positive integer, as ``Up`` does."""
        if not isinstance(other, int) or isinstance(other, bool) or not 0 < other < 2**53:
            raise ValueError(f"an upper bound is divided by exact positive integers only, got {other!r}")
        return Ups(_above(self.value / other))

    def __and__(self, other: Up | Ups) -> Ups:
        return Ups(np.minimum(self.value, _float(other)))

    def __or__(self, other: Up | Ups) -> Ups:
        return Ups(np.maximum(self.value, _float(other)))

    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__

    def __gt__(self, other: Up | Ups) -> bool:
        """Whether any sample's number is larger: what a rule refuses for one sample, it refuses."""
        floor = other.value if isinstance(other, Ups) else np.nextafter(_float(other), 0.0)
        return bool((self.value > floor).any())

    def __lt__(self, other: Up | Ups) -> bool:
        """Whether any sample's number is smaller."""
        return bool((self.value < _float(other)).any())

    def sqrt(self) -> Ups:
        """Upper bounds of the square roots."""
        return Ups(_above(np.sqrt(self.value)))

    def exp(self) -> Ups:
        """Upper bounds of e^x."""
        return Ups(_approximate(np.zeros_like(self.value), np.exp(self.value)).high)

    def interval(self, low: int, high: int) -> Intervals:
        """[low, high] times these numbers, for low <= high among -1, 0 and 1."""
        ends = {-1: -self.value, 0: np.zeros_like(self.value), 1: self.value}
        return Intervals(ends[low], ends[high])


def _float(number: Up | Ups | float) -> Floats:
    """As float64, no smaller."""
    return number.value if isinstance(number, Ups) else np.asarray(_up(Up.of(number)))


@lru_cache(maxsize=4096)
def _up(number: Up) -> float:
    return number.to_float()


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """One interval per sample; an infinite end says that nothing is known there.

    ``positive``, ``nonzero`` and ``inside`` answer yes: they guard rules, the ledger of the box has passed them, and every
    ball's values are among the box's. Where rounding hides that from one sample, the function answers with the whole line.
    """

    low: Floats
    high: Floats

    def __add__(self, other: Interval | Intervals) -> Intervals:
        low, high = _pair(other)
        return _wider(self.low + low, self.high + high)

    def __mul__(self, other: Interval | Intervals) -> Intervals:
        low, high = _pair(other)
        products = [np.asarray(a * b) for a in (self.low, self.high) for b in (low, high)]
        known = [
            np.where(np.isnan(p), 0.0, p) for p in products
        ]  # an infinite end stands for finite numbers: 0 times them
        return _wider(np.minimum.reduce(known), np.maximum.reduce(known))

    def __or__(self, other: Interval | Intervals) -> Intervals:
        low, high = _pair(other)
        return Intervals(np.minimum(self.low, low), np.maximum(self.high, high))

    def __and__(self, other: Interval | Intervals) -> Intervals:
        low, high = _pair(other)
        return Intervals(np.maximum(self.low, low), np.minimum(self.high, high))

    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__

    def hull(self, other: Interval | Intervals) -> Intervals:
        """The smallest interval that holds both."""
        return self | other

    def meet(self, other: Interval | Intervals) -> Intervals:
        """What lies in both."""
        return self & other

    @property
    def largest(self) -> Ups:
        """The largest absolute value of an entry."""
        return Ups(np.maximum(np.abs(self.low), np.abs(self.high)))

    def widened(self, by: Up | Ups) -> Intervals:
        """All numbers no further than ``by`` from an entry."""
        return self + by.interval(-1, 1)

    @property
    def positive(self) -> bool:
        """See the class."""
        return True

    @property
    def nonzero(self) -> bool:
        """See the class."""
        return True

    def inside(self, other: Interval) -> bool:
        """See the class."""
        return True

    def below(self, other: Interval | Intervals) -> bool:
        """No is always safe: a rule asks this to leave a term out."""
        return False

    def closest(self) -> Intervals:
        """The smallest absolute value of an entry, as an interval of one point."""
        near = np.where((self.low <= 0) & (self.high >= 0), 0.0, np.minimum(np.abs(self.low), np.abs(self.high)))
        return Intervals(near, near)

    def clamp(self, low: Interval | Intervals | None = None, high: Interval | Intervals | None = None) -> Intervals:
        """min(max(x, low), high), where the bounds need only be known to lie in intervals."""
        ends = [self.low, self.high]
        for bound, choose in ((low, np.maximum), (high, np.minimum)):
            if bound is not None:
                ends = [choose(end, other) for end, other in zip(ends, _pair(bound), strict=True)]
        return Intervals(ends[0], ends[1])

    def exp(self) -> Intervals:
        """e^x."""
        found = _approximate(np.exp(self.low), np.exp(self.high))
        return Intervals(np.maximum(found.low, 0.0), found.high)

    def log(self) -> Intervals:
        """The natural logarithm; the whole line where an entry is not above 0."""
        return _approximate(np.log(self.low), np.log(self.high))._where(self.low > 0)

    def sqrt(self) -> Intervals:
        """The square root; the whole line where an entry is below 0."""
        found = _wider(np.sqrt(self.low), np.sqrt(self.high))
        return Intervals(np.maximum(found.low, 0.0), found.high)._where(self.low >= 0)

    def reciprocal(self) -> Intervals:
        """1 / x; the whole line where 0 lies inside."""
        return _wider(1.0 / self.high, 1.0 / self.low)._where((self.low > 0) | (self.high < 0))

    def logistic(self) -> Intervals:
        """1 / (1 + e^-x)."""
        power = Intervals(-self.high, -self.low).exp()
        return Intervals(np.asarray(1.0), np.asarray(1.0)).__add__(power).reciprocal().clamp(_point(0.0), _point(1.0))

    def tanh(self) -> Intervals:
        """tanh x."""
        return _approximate(np.tanh(self.low), np.tanh(self.high)).clamp(_point(-1.0), _point(1.0))

    def softplus(self) -> Intervals:
        """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), whose relative error is at most that of e^x and of the logarithm."""
        low, high = (np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))) for x in (self.low, self.high))
        found = _approximate(low, high)
        return Intervals(np.maximum(found.low, 0.0), found.high)

    def power(self, exponent: int) -> Intervals:
        """x^n for n >= 1: even powers grow with |x|, odd ones with x."""
        low, high = (self.closest().low, self.largest.value) if exponent % 2 == 0 else (self.low, self.high)
        down, up = Intervals(low, low), Intervals(high, high)
        for _ in range(exponent - 1):
            down, up = down * Intervals(low, low), up * Intervals(high, high)
        return Intervals(np.maximum(down.low, 0.0) if exponent % 2 == 0 else down.low, up.high)

    def _where(self, known: NDArray[np.bool_]) -> Intervals:
        return Intervals(np.where(known, self.low, -np.inf), np.where(known, self.high, np.inf))


def _point(value: float) -> Intervals:
    return Intervals(np.asarray(value), np.asarray(value))


def _pair(other: Interval | Intervals) -> tuple[Floats, Floats]:
    if isinstance(other, Intervals):
        return other.low, other.high
    low, high = _ends(other.low, other.high)
    return np.asarray(low), np.asarray(high)


def as_up(number: Ups) -> Up:
    """For the type checker: the rules take these numbers where they name ``Up``."""
    return cast(Up, number)


def as_interval(interval: Intervals) -> Interval:
    """For the type checker, as ``as_up``."""
    return cast(Interval, interval)
