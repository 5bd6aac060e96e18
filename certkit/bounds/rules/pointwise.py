"""Rules for functions applied entry by entry, and for those that only reorder entries."""

from __future__ import annotations

from collections.abc import Sequence

from certkit.bounds.bound import Axes, Bound, Reach, bound, per_norm
from certkit.bounds.number import Interval, Up, most
from certkit.bounds.rules.linear import rounded
from certkit.bounds.rules.registry import Facts, alone, only, rule
from certkit.errors import RecordError

# Largest slopes, rounded up in the last digit shown; proved with interval arithmetic in tests/test_constants.py.
GELU_SLOPE = {"none": Up.of("1.1289042"), "tanh": Up.of("1.1289931")}
GELU_LOWEST = {"none": "-0.1699713", "tanh": "-0.1700408"}  # its smallest values, rounded down
ELEMENTARY_ULPS = 4  # ASSUMPTION, stated in every certificate: exp, erf and tanh in float64 are this accurate


def reach_of(x: Bound) -> Interval:
    """Where the entries of a value lie: its range, and no further from 0 than its size in linf."""
    size = Interval.around(x.within(frozenset()).size)
    return size if x.range is None else x.range.meet(size)


@rule("abs")
def absolute(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """||a| - |b|| <= |a - b| for every entry; exact in floating point."""
    x = alone(inputs, facts)
    reach = reach_of(x)
    return bound(x.shape, x.norms, reach.closest().hull(Interval.at(reach.largest)))


@rule("relu")
def relu(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """|relu(a) - relu(b)| <= |a - b| and |relu(a)| <= |a| for every entry; exact in floating point."""
    x = alone(inputs, facts)
    return bound(x.shape, x.norms, reach_of(x).clamp(Interval.of(0, 0)))


@rule("gelu")
def gelu(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """GELU's slope is at most 1.1289042 (erf) or 1.1289931 (tanh), and |gelu(x)| <= |x|.

    The slope is largest at sqrt(2) for erf and at 1.41850400879 for tanh. Execution: x * (1 + erf(..)) / 2 is off by a few
    roundings and one elementary function, relative to |x|.
    """
    x = alone(inputs, facts)
    approximate = facts.attributes["approximate"]
    if approximate not in GELU_SLOPE:
        raise RecordError(f"gelu approximates by one of {', '.join(GELU_SLOPE)}, got {approximate!r}")
    slope = GELU_SLOPE[approximate]
    # The argument of erf or tanh carries up to 8 roundings, and x*slope of either function is below 2; with the final
    # sum and products this is within (4 + 4*ELEMENTARY_ULPS + 16) roundings of |x|.
    relative = facts.roundoff * (4 + 4 * ELEMENTARY_ULPS + 16)

    def curve(axes: Axes, reach: Reach) -> Reach:
        moved = Reach(reach.size, slope * reach.gain, slope * reach.error)
        return rounded(moved, facts, relative, x.count(axes))

    image = reach_of(x).hull(Interval.of(0, 0)).clamp(Interval.of(GELU_LOWEST[approximate], GELU_LOWEST[approximate]))
    return bound(x.shape, per_norm(x, curve), image)


@rule("larger-or-smaller")
def larger_or_smaller(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """max and min of two entries move by at most the larger of the two moves; exact in floating point.

    In l2 the moves of both operands are joined: sqrt(a^2 + b^2).
    """
    a, b = only(inputs, 2)
    if a.shape != b.shape or a.shape != facts.shape():
        raise RecordError(f"max and min need operands of one shape, got {a.shape} and {b.shape}")

    def joined(axes: Axes) -> Reach:
        x, y = a.within(axes), b.within(axes)
        if not axes:
            return Reach(most(x.size, y.size), most(x.gain, y.gain), most(x.error, y.error))
        return Reach(*((p * p + q * q).sqrt() for p, q in zip(_numbers(x), _numbers(y), strict=True)))

    both = a.range.hull(b.range) if a.range is not None and b.range is not None else None
    return bound(a.shape, {axes: joined(axes) for axes in {*a.norms, *b.norms, frozenset[int]()}}, both)


def _numbers(reach: Reach) -> tuple[Up, Up, Up]:
    return (reach.size, reach.gain, reach.error)


@rule("sorted-pairs")
def sorted_pairs(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """MaxMin sorts pairs of entries along one axis: it never moves two points apart, in l2 over that axis and in linf.

    (max(a,b) - max(c,d))^2 + (min(a,b) - min(c,d))^2 <= (a-c)^2 + (b-d)^2 (rearrangement), and the same with the largest
    instead of the sum. Sorting keeps every norm and is exact. Anil, Lucas and Grosse 2019, arXiv 1811.05381.
    """
    (x,) = only(inputs, 1)
    axis = facts.integer("axis")
    if axis not in x.axes or x.shape[axis] % 2 or facts.shape() != x.shape:
        raise RecordError(f"pairs cannot be sorted along axis {axis} of {x.shape}")
    kept = {axes: x.within(axes) for axes in {*x.norms, x.axes, frozenset({axis}), frozenset[int]()}}
    norms = {axes: reach for axes, reach in kept.items() if axis in axes or not axes}
    return bound(x.shape, norms, x.range)
