"""Rules for products and quotients of two values that both depend on the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as pairs

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import Interval, Up, gamma, least
from certkit.bounds.rules.linear import rounded
from certkit.bounds.rules.pointwise import reach_of
from certkit.bounds.rules.registry import Facts, only, rule
from certkit.errors import RecordError

HALF_ROOT = Up.of("0.7071067811865475245")  # 1/sqrt(2), rounded up


def _same_shape(inputs: Sequence[Bound], facts: Facts) -> tuple[Bound, Bound]:
    a, b = only(inputs, 2)
    if a.shape != b.shape or a.shape != facts.shape():
        raise RecordError(f"a product or quotient needs operands of one shape, got {a.shape} and {b.shape}")
    return a, b


def _known(*values: Bound) -> set[Axes]:
    found = {values[0].axes, frozenset[int]()}
    return found.union(*(value.norms for value in values))


@rule("broadcast")
def broadcast(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Repeating entries n times costs sqrt(n) in l2 over the repeated axes and nothing in the largest; exact.

    ``axes`` names, for each axis of the output, the axis of the input that it repeats or copies, or 0 for a new axis.
    """
    (x,) = only(inputs, 1)
    shape, origin = facts.shape(), facts.integers("axes")
    named = [axis for axis in origin if axis]
    if len(origin) != len(shape) or origin[0] or named != list(range(1, len(x.shape))) or shape[0] != x.shape[0]:
        raise RecordError(f"axes {origin} do not say how {x.shape} is repeated to {shape}")
    repeated = {new for new, old in enumerate(origin) if new and (not old or x.shape[old] == 1)}
    if any(shape[new] != x.shape[old] for new, old in enumerate(origin) if new not in repeated):
        raise RecordError(f"{x.shape} cannot be repeated to {shape}")
    whole = Bound(shape, {frozenset(): x.within(frozenset())})  # to count entries of the output
    everything, last = whole.axes, frozenset({len(shape) - 1})
    wanted = {frozenset(new for new, old in enumerate(origin) if new and old in axes) for axes in x.norms}
    norms: dict[Axes, Reach] = {}
    for axes in {*wanted, everything, last, frozenset[int](), everything - repeated}:
        reach = x.within(frozenset(origin[new] for new in axes - repeated))
        norms[axes] = reach.scaled(Up.of(whole.count(axes & repeated)).sqrt())
    return bound(shape, norms, x.range)


@rule("product")
def product(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """ab - a'b' = (a - a') b + a' (b - b'): each factor moves by its own gain, stretched by the largest of the other.

    For entrywise products |xy|_A <= min(max|x| |y|_A, |x|_A max|y|), taken for each of the two terms. Execution: the
    errors in place of the moves, beside computed values that may be larger by them, and one rounding.
    """
    a, b = _same_shape(inputs, facts)
    a0, b0 = a.within(frozenset()), b.within(frozenset())

    def multiplied(axes: Axes) -> Reach:
        x, y = a.within(axes), b.within(axes)
        size = least(a0.size * y.size, x.size * b0.size)
        gain = least(x.gain * b0.size, a0.gain * y.size) + least(a0.size * y.gain, x.size * b0.gain)
        error = least(x.error * b0.size, a0.error * y.size) + least(
            (a0.size + a0.error) * y.error, (x.size + x.error) * b0.error
        )
        return rounded(Reach(size, gain, error), facts, facts.roundoff, a.count(axes))

    return bound(a.shape, {axes: multiplied(axes) for axes in _known(a, b)}, reach_of(a) * reach_of(b))


def divisor(x: Bound) -> Interval:
    """Where an entry that something is divided by lies, computed ones included."""
    return reach_of(x).widened(x.within(frozenset()).error)


@rule("quotient")
def quotient(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """a/b - a'/b' = ((a - a') - a'/b' (b - b')) / b: at most (|a - a'| + |a/b| |b - b'|) / min|b|.

    The divisor's range must keep away from 0, computed values included. Execution: the same with errors in place of moves,
    and one rounding.
    """
    a, b = _same_shape(inputs, facts)
    reached = divisor(b)
    if not reached.nonzero:
        raise RecordError(
            f"a division by a value in {reached}, which holds 0, has no bound; keep it away from 0, as by clamp_min"
        )
    inverse = reached.reciprocal()
    largest = inverse.largest
    a0, b0 = a.within(frozenset()), b.within(frozenset())

    def divided(axes: Axes) -> Reach:
        x, y = a.within(axes), b.within(axes)
        gain = x.gain + largest * least(a0.size * y.gain, x.size * b0.gain)
        error = x.error + largest * least(a0.size * y.error, x.size * b0.error)
        return rounded(Reach(x.size * largest, gain * largest, error * largest), facts, facts.roundoff, a.count(axes))

    return bound(a.shape, {axes: divided(axes) for axes in _known(a)}, reach_of(a) * inverse)


class _Matrices:
    """Norms of products of matrices A (..., n, k) and B (..., k, m), for the shape that the product has."""

    def __init__(self, a: Bound, b: Bound, shape: tuple[int, ...]) -> None:
        rank = len(shape)
        rows, last = rank - 2, rank - 1
        if (
            rank < 3
            or len(a.shape) != rank
            or len(b.shape) != rank
            or (*a.shape[:last], b.shape[last]) != shape
            or b.shape[:rows] != shape[:rows]
            or a.shape[last] != b.shape[rows]
        ):
            raise RecordError(f"the product of {a.shape} and {b.shape} has not shape {shape}")
        self.a, self.b, self.shape, self.rows, self.last = a, b, shape, rows, last
        self.terms = a.shape[last]
        self.batch = frozenset(range(1, rows))

    def outcomes(self) -> list[Axes]:
        """The norms that the product is bounded in: one entry, row, column or matrix, and all matrices of a sample."""
        kinds = [frozenset[int](), frozenset({self.rows}), frozenset({self.last}), frozenset({self.rows, self.last})]
        return [batch | kind for batch, kind in pairs({frozenset[int](), self.batch}, kinds)]

    def times(self, out: Axes, x: Callable[[Reach], Up], y: Callable[[Reach], Up]) -> Up:
        """|XY|_out <= |X||Y| for the numbers x, y of A and B: rows against columns, one matrix' norm against the other's.

        An entry is at most |row||column|, a row |row||Y|_F, a column |X|_F|column|, a matrix |X|_F|Y|_F. Over several
        matrices of a sample squares add, and one of the factors may be taken at its largest.
        """
        left = frozenset({self.last}) | (out & {self.rows})
        right = frozenset({self.rows}) | (out & {self.last})
        several = out & self.batch
        return least(
            x(self.a.within(left | several)) * y(self.b.within(right)),
            x(self.a.within(left)) * y(self.b.within(right | several)),
        )

    def error(self, out: Axes, facts: Facts) -> Up:
        """Errors in place of moves, and a dot product of k terms in any order (Higham, ASNA 2nd ed., section 3.1)."""
        entries = Bound(self.shape, {frozenset(): self.a.within(frozenset())}).count(out)
        return (
            self.times(out, _error, _held)
            + self.times(out, _size, _error)
            + gamma(self.terms, facts.roundoff) * self.times(out, _held, _held)
            + facts.smallest * (self.terms + 1) * Up.of(entries).sqrt()
        )


def _size(reach: Reach) -> Up:
    return reach.size


def _gain(reach: Reach) -> Up:
    return reach.gain


def _error(reach: Reach) -> Up:
    return reach.error


def _held(reach: Reach) -> Up:
    return reach.size + reach.error


@rule("matmul")
def matmul(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """AB - A'B' = (A - A') B + A' (B - B'): moves of one factor are stretched by rows, columns or the norm of the other.

    |XY| is at most |X||Y| with rows and columns for one entry, the Frobenius norm where a row or column is gathered
    (it bounds the spectral norm), the largest matrix of a sample where several are joined.
    """
    a, b = only(inputs, 2)
    both = _Matrices(a, b, facts.shape())
    norms = {
        out: Reach(
            size=both.times(out, _size, _size),
            gain=both.times(out, _gain, _size) + both.times(out, _size, _gain),
            error=both.error(out, facts),
        )
        for out in both.outcomes()
    }
    return bound(both.shape, norms)


@rule("mixture")
def mixture(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Softmax weights times values: no mixed value is larger than the largest, and scores move it by |dS| max|v|.

    For Y = P V with P = softmax(S + constant) by rows, inputs P, V and S: rows of P sum to 1, so a mix of rows v_j is never
    longer than the longest, moves of V pass unchanged per row, and by sqrt(c) in l2 over rows with column sums at most c.
    dP V = sum_j P_j (v_j - mean v) dS_j is a covariance under a row of P: in every direction at most R = max|v_j| times the
    deviation of dS (Popoviciu), which is at most max|dS| and |dS|/sqrt(2). S moves on a straight line, so the mean value
    inequality applies. Each number is the better of this and of the rule for any product of matrices.
    """
    p, v, s = only(inputs, 3)
    both = _Matrices(p, v, facts.shape())
    if s.shape != p.shape:
        raise RecordError(f"weights {p.shape} are not a softmax of scores {s.shape}")
    columns = least(facts.measured("column_sum"), Up.of(p.shape[both.rows])).sqrt()
    token = frozenset({both.last})
    longest = v.within(token).size

    def mixed(out: Axes) -> Reach:
        size, kept = both.times(out, _size, _size), both.times(out, _size, _gain)
        moved = both.times(out, _gain, _size)
        if out <= token:
            # a single entry of Y is a mix of single entries
            size, kept = least(size, v.within(out).size), least(kept, v.within(out).gain)
            steps = least(s.within(frozenset()).gain, HALF_ROOT * s.within(token).gain)
            moved = least(moved, v.within(out).size * steps)
        elif {both.rows, both.last} <= out:
            size, kept = least(size, columns * v.within(out).size), least(kept, columns * v.within(out).gain)
            moved = least(moved, longest * HALF_ROOT * s.within(out).gain)
        return Reach(size, kept + moved, both.error(out, facts))

    return bound(both.shape, {out: mixed(out) for out in both.outcomes()}, v.range)
