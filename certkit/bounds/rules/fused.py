"""Rules for several operators at once. Each reads, last, the bound of the same value by one rule per operator.

A fused rule is never looser than the operators: each number is the better of the two. Only size and gain are improved;
errors are those of the operators that execute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import ZERO, Interval, Up, least
from certkit.bounds.rules.registry import Facts, rule
from certkit.errors import RecordError

# All slopes that a function has, rounded outward. The largest of gelu and silu are proved in tests/test_constants.py; their
# smallest are 1 less, as f(x) - f(-x) = x.
SLOPES = {
    "relu": Interval.of(0, 1),
    "gelu": Interval.of("-0.1289042", "1.1289042"),
    "gelu-tanh": Interval.of("-0.1289931", "1.1289931"),
    "silu": Interval.of("-0.0998394", "1.0998394"),
    "tanh": Interval.of(0, 1),
    "sigmoid": Interval.of(0, "0.25"),
    "softplus": Interval.of(0, 1),
}
AT_ZERO = {"relu", "gelu", "gelu-tanh", "silu", "tanh"}  # those that are 0 at 0


def _with_operators(inputs: Sequence[Bound], facts: Facts) -> tuple[Sequence[Bound], Bound]:
    """The values that a fused rule reads, and the bound that the operators give, of the stated shape."""
    if len(inputs) < 2:
        raise RecordError(f"a fused rule reads values and, last, the operators' bound, got {len(inputs)} inputs")
    *read, plain = inputs
    if plain.shape != facts.shape():
        raise RecordError(f"the operators give {plain.shape}, but {facts.shape()} is stated")
    return read, plain


def _alone(more: Sequence[Bound]) -> None:
    if more:
        raise RecordError(f"the rule reads one value beside the operators' bound, got {len(more) + 1}")


def _better(plain: Bound, found: dict[Axes, Reach]) -> Bound:
    """The operators' bound, improved in size and gain where the fused rule knows more."""
    norms: dict[Axes, Reach] = {}
    for axes in {*plain.norms, *found}:
        known = plain.within(axes)
        fused = found.get(axes, known)
        norms[axes] = Reach(least(known.size, fused.size), least(known.gain, fused.gain), known.error)
    return bound(plain.shape, norms, plain.range)


def _axes(value: Any, shape: tuple[int, ...]) -> Axes:
    """Axes of a shape, as an attribute lists them."""
    if not isinstance(value, list) or not all(isinstance(a, int) and 0 < a < len(shape) for a in value):
        raise RecordError(f"{value!r} does not list axes of {shape}")
    if len(set(value)) < len(value):
        raise RecordError(f"{value!r} names an axis twice")
    return frozenset(value)


@rule("linear-parts")
def linear_parts(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Outputs of x W' + b that are cut into parts, such as heads, move by the largest singular value of one part's rows.

    Each entry of the value is an output of W for one place (the axes of x but the last); ``places`` pairs an axis of x
    with the output axes that number its entries, ``parts`` are sets of output axes that number rows of W. Over axes A of x
    with the last, and one part: |part| <= sigma_part |x|_A, the largest over all parts; places are a direct sum, and
    leaving some out never enlarges a norm. The bias of a part is added to the size at each place. So H heads of a D x D
    projection do not pay for the D x D matrix, which may be sqrt(H) larger than its blocks.
    """
    (x, *more), plain = _with_operators(inputs, facts)
    _alone(more)
    shape, last = plain.shape, len(x.shape) - 1
    places: dict[int, Axes] = {}
    for old, new in facts.attributes["places"]:
        (axis,) = _axes([old], x.shape)
        places[axis] = _axes(new, shape)
        if axis == last or plain.count(places[axis]) > x.shape[axis]:
            raise RecordError(f"axis {axis} of {x.shape} does not number the places along axes {new} of {shape}")
    features = frozenset().union(*(_axes(part, shape) for part in facts.attributes["parts"]))
    named = [axis for axes in (features, *places.values()) for axis in axes]
    if len(set(named)) < len(named) or any(shape[axis] > 1 for axis in plain.axes - {*named}):
        raise RecordError(f"the axes of {shape} are not each a place or a feature")
    found: dict[Axes, Reach] = {}
    for number, part in enumerate(facts.attributes["parts"]):
        sigma, bias = facts.measured(f"sigma{number}"), facts.measured(f"bias{number}")
        for axes in {*x.norms, x.axes, frozenset({last})}:
            if last not in axes:
                continue
            spread = frozenset().union(*(places.get(axis, frozenset()) for axis in axes))
            reach = x.within(axes)
            size = sigma * reach.size + bias * Up.of(plain.count(spread)).sqrt()
            known = Reach(size, sigma * reach.gain, ZERO)
            out = spread | frozenset(part)
            found[out] = known.best(found[out]) if out in found else known
    return _better(plain, found)


@rule("combination")
def combination(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A sum of a few entries of one value times constants, such as a rotation of pairs, is one matrix: its norm counts.

    y = M x with constant M, and entries are combined along the axes ``mixed`` alone: in a norm over axes that hold these,
    the other axes are a direct sum, so |y| <= |M| |x| with ``stretch`` the spectral norm. In linf it is the largest sum of
    absolute values in a row, ``row``. For rotary positions (Su et al. 2021, arXiv 2104.09864) ``stretch`` is the largest
    sqrt(cos^2 + sin^2), where one rule per operator adds cos and sin. Evidence: |M|^2 is at most the largest row sum of |MM'|.
    """
    (x, *more), plain = _with_operators(inputs, facts)
    _alone(more)
    if x.shape != plain.shape:
        raise RecordError(f"a combination of entries keeps the shape {x.shape}, but {plain.shape} is stated")
    mixed = _axes(facts.attributes["mixed"], x.shape)
    stretch, row = facts.measured("stretch"), facts.measured("row")
    found = {axes | mixed: x.within(axes | mixed).scaled(stretch) for axes in {*x.norms, x.axes, frozenset[int]()}}
    entries = x.within(frozenset()).scaled(row)
    found[frozenset()] = entries.best(found[frozenset()]) if frozenset() in found else entries
    return _better(plain, found)


@rule("expansion")
def expansion(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A sum of linear maps of several values, and of what activations add to straight lines, moves by the sum of what each map stretches.

    y = c + sum_k M_k v_k + sum_j B_j (f_j(z_j) - m_j z_j), all maps of the last axis: every activation f on the way is
    written as m z plus a remainder of slope at most r = max(b - m, m - a), [a, b] the slopes of f, and m z is taken on
    through the linear maps before it. So the products of matrices count, not the products of their norms:
    |W2 f(W1 x)| moves by at most m |W2 W1| + r |W2| |W1|, and x + W2 f(W1 x) by |1 + m W2 W1| + r |W2| |W1|.
    ``terms`` lists, for each way to expand y, which input, which activation ("" for none) and m; evidence ``sigmaI.K`` is the
    spectral norm of the map of term K of expansion I, ``rowI.K`` its largest absolute row sum, which counts in norms without
    the last axis. ``bare`` says that c = 0 and every f is 0 at 0: then sizes follow like gains.
    Combettes and Pesquet 2020, SIAM J. Math. Data Sci. 2(2):529, arXiv 1903.01014, for the split of an activation.
    """
    values, plain = _with_operators(inputs, facts)
    last = len(plain.shape) - 1
    found: dict[Axes, Reach] = {}
    for way, terms in enumerate(facts.attributes["terms"]):
        if not terms:
            raise RecordError("an expansion has at least one term")
        for axes in {*plain.norms, plain.axes, frozenset({last}), frozenset[int]()}:
            size, gain = ZERO, ZERO
            for number, (place, function, middle) in enumerate(terms):
                value = _same_places(values, place, plain)
                if function and function not in SLOPES:
                    raise RecordError(f"{function!r} is no function whose slopes are known: {', '.join(SLOPES)}")
                kind = "sigma" if last in axes else "row"
                factor = facts.measured(f"{kind}{way}.{number}")
                if function:
                    factor = factor * (SLOPES[function] + Interval.of(-middle, -middle)).largest
                reach = value.within(axes)
                size, gain = size + factor * reach.size, gain + factor * reach.gain
            if not (facts.attributes["bare"] and all(f in AT_ZERO for _, f, _ in terms if f)):
                size = plain.within(axes).size
            known = Reach(size, gain, ZERO)
            found[axes] = known.best(found[axes]) if axes in found else known
    return _better(plain, found)


def _same_places(values: Sequence[Bound], place: Any, plain: Bound) -> Bound:
    """One of the values, which must have the shape of the result but for the last axis."""
    if not isinstance(place, int) or not 0 <= place < len(values):
        raise RecordError(f"an expansion of {len(values)} values has no input {place!r}")
    if values[place].shape[:-1] != plain.shape[:-1]:
        raise RecordError(f"a map of the last axis cannot make {plain.shape} of {values[place].shape}")
    return values[place]
