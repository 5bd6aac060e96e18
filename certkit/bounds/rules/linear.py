"""Rules for values that come in, are constant, are multiplied, added or averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from certkit.bounds.bound import Axes, Bound, Reach, bound, per_norm
from certkit.bounds.number import ONE, ZERO, Interval, Up, gamma, least
from certkit.bounds.rules.registry import Facts, alone, only, rule
from certkit.errors import RecordError


def rounded(reach: Reach, facts: Facts, relative: Up, entries: int) -> Reach:
    """One correctly rounded elementwise step more: every entry may be off by ``relative`` of itself, or by underflow."""
    error = reach.error + relative * (reach.size + reach.error) + facts.smallest * Up.of(entries).sqrt()
    return Reach(reach.size, reach.gain, error)


THREATS = ("l2", "linf", "token")


def threat_axes(norm: str, rank: int) -> Axes:
    """The axes of the threat's norm: all, none, or the last alone, for ``token``. Raises RecordError for another norm."""
    if norm not in THREATS:
        raise RecordError(f"the threat's norm must be one of {', '.join(THREATS)}, got {norm!r}")
    if norm == "token" and rank < 3:
        raise RecordError("the threat's norm token needs an input of tokens, shape (1, ..., tokens, features)")
    return {"l2": frozenset(range(1, rank)), "linf": frozenset[int](), "token": frozenset({rank - 1})}[norm]


@rule("input")
def input_(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The input lies in its box, and moves by the threat itself: gain 1 in the threat's norm.

    The norm is l2, linf, or token: then every token, the entries along the last axis, moves by at most the radius. No token
    is longer than ``token_size``, if that is stated; the domain, box and balls, is convex. Inputs are float32 or float64
    numbers that float64 holds exactly, so the error is 0.
    """
    only(inputs, 0)
    shape = facts.shape()
    box = Interval.of(facts.attributes["low"], facts.attributes["high"])
    axes = threat_axes(facts.attributes["norm"], len(shape))
    whole = Bound(shape, {axes: Reach(box.largest * Up.of(math.prod(shape[a] for a in axes)).sqrt(), ONE, ZERO)}, box)
    if "token_size" not in facts.evidence:
        return bound(shape, whole.norms, box)
    token = frozenset({len(shape) - 1})
    known = whole.within(token)
    short = Reach(least(known.size, facts.measured("token_size")), known.gain, ZERO)
    joint = Bound(shape, {token: short}).within(axes)
    return bound(shape, {axes: whole.norms[axes].best(joint), token: short}, box)


@rule("constant")
def constant(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A value that does not depend on the input never moves: gain 0, size as measured, held exactly in float64.

    A number of the code such as 0.1 is rounded when the arithmetic is float32: each entry by ``rounding``, if that is stated.
    """
    only(inputs, 0)
    shape = facts.shape()
    everything = frozenset(range(1, len(shape)))
    off = facts.evidence.get("rounding", ZERO)
    norms = {
        everything: Reach(facts.measured("l2"), ZERO, off * Up.of(math.prod(shape)).sqrt()),
        frozenset[int](): Reach(facts.measured("linf"), ZERO, off),
    }
    if len(shape) > 1:
        norms[frozenset({len(shape) - 1})] = Reach(facts.measured("token"), ZERO, off * Up.of(shape[-1]).sqrt())
    return bound(shape, norms, Interval.of(facts.attributes["low"], facts.attributes["high"]))


@rule("linear")
def linear(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """x W' + b stretches the last axis by at most the largest singular value of W; b moves nothing.

    In a norm over axes A with the last axis L: |xW'|_A <= sigma |x|_A, the other axes being a direct sum. To drop L, each
    output entry is one row of W against x: at most the largest row norm in l2, or in l1 when A has not L either.
    Execution: a dot product of n terms and a bias is off by gamma_{n+1}(|x||W|' + |b|) in any order of summation
    (Higham, ASNA 2nd ed., section 3.1), and || |W| || is measured too.
    """
    (x,) = only(inputs, 1)
    shape = facts.shape()
    last = len(shape) - 1
    if last < 1 or shape[:last] != x.shape[:last] or len(shape) != len(x.shape):
        raise RecordError(f"a linear map of the last axis cannot make {shape} of {x.shape}")
    terms = gamma(x.shape[last] + 1, facts.roundoff)
    lost = facts.smallest * (x.shape[last] + 1)
    output = Bound(shape, {frozenset(): Reach(ZERO, ZERO, ZERO)})  # to count entries of the output

    def through(axes: Axes, out: Axes, stretch: Up, absolute: Up, bias: Up) -> Reach:
        reach = x.within(axes)
        spread = Up.of(output.count(out - {last})).sqrt()
        moved = absolute * (reach.size + reach.error) + bias * spread
        underflow = lost * Up.of(output.count(out)).sqrt()
        return Reach(
            size=stretch * reach.size + bias * spread,
            gain=stretch * reach.gain,
            error=stretch * reach.error + terms * moved + underflow,
        )

    found: dict[Axes, Reach] = {}
    for axes in {*x.norms, x.axes, frozenset({last}), frozenset[int]()}:
        if last in axes:
            routes = {
                axes: ("sigma", "absolute", "bias_l2"),
                axes - {last}: ("row_l2", "row_l2", "bias_linf"),
            }
        else:
            routes = {axes: ("row_l1", "row_l1", "bias_linf")}
        for out, (stretch, absolute, bias) in routes.items():
            reach = through(axes, out, facts.measured(stretch), facts.measured(absolute), facts.measured(bias))
            found[out] = reach.best(found[out]) if out in found else reach
    return bound(shape, found)


@rule("scale")
def scale(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Multiplying entrywise by a constant stretches by its largest absolute value."""
    (x,) = only(inputs, 1)
    shape = facts.shape()
    if shape != x.shape:
        raise RecordError(f"a constant factor must not enlarge its operand: {x.shape} became {shape}")
    largest = facts.measured("largest")
    # A division by a constant is executed as one or as a product with the rounded reciprocal: at most three roundings.
    relative = gamma(3, facts.roundoff)
    norms = per_norm(x, lambda axes, reach: rounded(reach.scaled(largest), facts, relative, x.count(axes)))
    if x.range is None:
        return bound(shape, norms)
    return bound(shape, norms, x.range * Interval.of(facts.attributes["low"], facts.attributes["high"]))


@rule("add")
def add(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A sum moves by at most the sum of what its terms move (triangle inequality), in every norm."""
    a, b = only(inputs, 2)
    if a.shape != b.shape or a.shape != facts.shape():
        raise RecordError(f"a sum needs operands of one shape, got {a.shape} and {b.shape}")

    def both(axes: Axes) -> Reach:
        x, y = a.within(axes), b.within(axes)
        total = Reach(x.size + y.size, x.gain + y.gain, x.error + y.error)
        return rounded(total, facts, facts.roundoff, a.count(axes))

    norms = {axes: both(axes) for axes in {*a.norms, *b.norms, a.axes, frozenset[int]()}}
    together = None if a.range is None and b.range is None else _entries(a) + _entries(b)
    return bound(a.shape, norms, together)


def _entries(x: Bound) -> Interval:
    """Where the entries of a value lie: its range, or what its size in linf leaves."""
    return Interval.around(x.within(frozenset()).size) if x.range is None else x.range


@rule("negate")
def negate(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A change of sign is an isometry in every norm and is exact."""
    x = alone(inputs, facts)
    minus = Interval(Decimal(-1), Decimal(-1))
    return bound(x.shape, x.norms, x.range * minus if x.range is not None else None)


@rule("mean")
def mean(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The mean over n entries shrinks the Euclidean norm over them by sqrt(n), and keeps the largest (Cauchy-Schwarz).

    ``axes`` are averaged away, or kept with length 1. A mean lies between the smallest and the largest entry.
    """
    (x,) = only(inputs, 1)
    shape, averaged, remaining = reduced(x, facts)
    entries = x.count(averaged)
    terms = gamma(entries + 1, facts.roundoff)

    def pulled_back(out: Axes) -> Reach:
        axes = frozenset(remaining[axis] for axis in out) - averaged
        joint = x.within(axes | averaged)
        shrunk = Reach(*(Up.of(entries).sqrt() * n / entries for n in (joint.size, joint.gain, joint.error)))
        exact = shrunk.best(x.within(axes))
        # |fl(mean) - mean| <= gamma_n * mean of |x|: in norm at most gamma_n times the largest over the averaged axes.
        largest = x.within(axes)
        lost = facts.smallest * (entries + 1) * Up.of(x.count(axes)).sqrt()
        return Reach(exact.size, exact.gain, exact.error + terms * (largest.size + largest.error) + lost)

    return bound(shape, {axes: pulled_back(axes) for axes in outcomes(x, shape, remaining)}, x.range)


@rule("sum")
def sum_(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The sum of n entries is at most sqrt(n) times their Euclidean norm, and n times the largest (Cauchy-Schwarz).

    ``axes`` are summed away, or kept with length 1. Execution: n terms in any order are off by gamma_n sum of |x|.
    """
    (x,) = only(inputs, 1)
    shape, gone, remaining = reduced(x, facts)
    entries = x.count(gone)
    terms = gamma(entries + 1, facts.roundoff) * entries

    def added(out: Axes) -> Reach:
        axes = frozenset(remaining[axis] for axis in out) - gone
        largest = x.within(axes)
        total = x.within(axes | gone).scaled(Up.of(entries).sqrt()).best(largest.scaled(Up.of(entries)))
        lost = facts.smallest * (entries + 1) * Up.of(x.count(axes)).sqrt()
        return Reach(total.size, total.gain, total.error + terms * (largest.size + largest.error) + lost)

    interval = x.range * Interval.of(entries, entries) if x.range is not None else None
    return bound(shape, {axes: added(axes) for axes in outcomes(x, shape, remaining)}, interval)


def reduced(x: Bound, facts: Facts) -> tuple[tuple[int, ...], Axes, list[int]]:
    """For a rule that reduces ``axes`` away, or to length 1: the new shape, those axes, and per output axis the input's."""
    shape, gone = facts.shape(), frozenset(facts.integers("axes"))
    keep = len(shape) == len(x.shape)
    if not gone or not gone <= x.axes:
        raise RecordError(f"the reduced axes {sorted(gone)} are not axes of {x.shape}")
    remaining = [axis for axis in range(len(x.shape)) if keep or axis not in gone]
    if shape != tuple(1 if axis in gone else x.shape[axis] for axis in remaining):
        raise RecordError(f"{x.shape} reduced over axes {sorted(gone)} has not shape {shape}")
    return shape, gone, remaining


def outcomes(x: Bound, shape: tuple[int, ...], remaining: list[int]) -> set[Axes]:
    """The norms in which a reduced value is bounded: l2, linf, the last axis, and what is left of those of the input."""
    everything = frozenset(range(1, len(shape)))
    known = {frozenset(new for new, old in enumerate(remaining) if old in axes) for axes in x.norms}
    return {everything, frozenset({len(shape) - 1}) & everything, frozenset[int](), *known}
