"""Evidence that depends on where values lie, measured at each centre and carried to every point of its ball.

The rules read the same names as in the box's ledger, where the numbers hold for all inputs; here they hold for the ball's.
Each is the better of the two, since a ball is a part of the box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from certkit.bounds.bound import Bound
from certkit.bounds.ledger import Step
from certkit.bounds.number import Up, gamma, least
from certkit.bounds.rules import Facts, derive
from certkit.bounds.rules.attention import largest_score, weights_error
from certkit.bounds.rules.normalisation import means_error
from certkit.engine.local.centre import GROUPED, Shares
from certkit.engine.local.numbers import Floats, Ups, as_up

ENTRY = frozenset[int]()


@dataclass(frozen=True, slots=True)
class Place:
    """What is known at one step: its inputs on the ball, how far each is from its centre there, and what was measured.

    ``moved`` holds bounds whose ``size`` is sup N(x - x0) over the ball, exact values both. ``centre_error`` is how far the
    measured float64 value that a normalisation divides by the length of may be from the exact one.
    """

    step: Step
    inputs: Sequence[Bound]
    moved: Sequence[Bound]
    facts: Facts
    shares: Shares | None
    length: Floats | None
    centre_error: Up


def grown(share: Ups, change: Up | Ups) -> Ups:
    """What a softmax weight p can become when no score changes by more than D: g(p) = p E / (1 - p + p E), E = e^(2D).

    p = 1 / (1 + sum of e^(s_k - s_j)), and each difference changes by at most 2D. g increases in p and in E, so upper bounds
    of both may be put in. It also bounds what a row leaves beside one entry: that is 1 minus a weight, with -2D.
    """
    growth = (Ups.of(change) * 2).exp().value
    p = np.minimum(share.value, 1.0)
    over = (Ups(p) * Ups(growth)).value
    under = np.nextafter(np.nextafter(1.0 - p, 0.0) + np.nextafter(p * growth, 0.0), 0.0)
    return Ups(over / under) * 1 & Ups(np.ones_like(p))


def softmax_evidence(place: Place, change: Up | Ups, error: Up | Ups) -> dict[str, Up]:
    """Column sum, rest and top anywhere on the ball, for scores that change by at most ``change`` from the centre's.

    A computed weight is off by at most ``error``, and what it leaves of its row, 1 - p, by as much. A column of n weights
    with sum c becomes at most n g(c/n), as g is concave (Jensen).
    """
    shares = place.shares
    if shares is None:
        return {}
    mean = (shares.column_sum + error * shares.rows) / shares.rows
    found = {
        "column_sum": grown(mean, change) * shares.rows,
        "rest": grown(shares.rest + error, change),
        "top": grown(shares.top + error, change),
    }
    return {
        name: as_up(number & place.facts.measured(name))
        for name, number in found.items()
        if name in place.facts.evidence
    }


def attention(place: Place) -> dict[str, Up]:
    """A score scale q.k changes by at most scale (|q - q0| |k| + |q| |k - k0|), per token and head; or by twice the largest."""
    q, k, _ = place.inputs
    token = frozenset({len(q.shape) - 1})
    scale = place.facts.measured("scale")
    (rq, rk), (dq, dk) = ([x.within(token).size for x in pair[:2]] for pair in (place.inputs, place.moved))
    score = largest_score(q, k, scale)
    change = least(scale * (dq * rk + rq * dk), score * 2)
    error = Ups.of(weights_error(q, k, place.facts))
    found = {"score": score, **softmax_evidence(place, change, error)}
    if place.shares is not None and place.shares.spreads:
        for name, at, spread in zip(("key_deviation", "value_deviation"), (1, 2), place.shares.spreads, strict=True):
            found[name] = as_up(deviation(*spread, place.inputs[at], place.moved[at], error, Ups.of(change)))
    return found


def deviation(square: Ups, longest: Ups, x: Bound, moved: Bound, error: Ups, change: Ups) -> Ups:
    """The standard deviation, in any direction, of vectors x_j under a row of softmax weights, anywhere on the ball.

    A variance is at most the sum of p_j |x_j - m|^2 for any m, and so at most the sum of variances of entries. At the
    centre that is ``square`` for computed weights and vectors; for exact weights, off by ``error`` in l1, and m the computed
    mean, |x_j - m|^2 <= 4 R^2 counts so much more. On the ball no weight is more than E = e^(2D) of that at the centre, and a
    change of the vectors by no more than d changes a standard deviation by no more than d.
    """
    token = frozenset({len(x.shape) - 1})
    here = (square + error * longest * longest * 5).sqrt() * change.exp()
    return here + x.within(token).error + moved.within(token).size


def softmax(place: Place) -> dict[str, Up]:
    """Scores change by as much as the input does, in linf; the weights' error is what the rule says of any evidence."""
    (x,), (moved,) = place.inputs, place.moved
    score = x.within(ENTRY).size
    known = Facts(
        place.facts.attributes, {**place.facts.evidence, "score": score}, place.facts.roundoff, place.facts.smallest
    )
    error = derive("softmax", [x], known).within(ENTRY).error
    return {"score": score, **softmax_evidence(place, moved.within(ENTRY).size, error)}


def mixture(place: Place) -> dict[str, Up]:
    """As for attention, with the scores themselves at hand."""
    weights, scores = place.inputs[0], place.moved[2]
    return softmax_evidence(place, scores.within(ENTRY).size, weights.within(ENTRY).error)


def _shortest(place: Place, *, executed: bool) -> Floats:
    """A lower bound of the length that is divided by, anywhere on the ball; of the computed values with ``executed``.

    | |z| - |z0| | <= |z - z0|, and taking the mean off shortens every difference.
    """
    assert place.length is not None
    axes = frozenset(place.facts.integers("axes"))
    off = Ups.of(place.centre_error) + place.moved[0].within(axes).size
    if executed:
        off = off + place.inputs[0].within(axes).error
    return np.maximum(np.nextafter(place.length - off.value, -np.inf), 0.0)


def _inverse_root(place: Place, variance: Floats) -> Ups:
    """An upper bound of 1 / sqrt(v + eps) for a lower bound of v; 1 / sqrt(eps) is the box's evidence."""
    box = Ups.of(place.facts.measured("inverse_root")).value
    floor = np.nextafter(np.nextafter(1.0 / box, 0.0) ** 2, 0.0)
    return _inverse(
        np.nextafter(np.sqrt(np.nextafter(np.maximum(variance, 0.0) + np.maximum(floor, 0.0), 0.0)), 0.0)
    ) & Ups(box)


def _inverse(number: Floats) -> Ups:
    return Ups(1.0 / number) * 1


def inverse_deviation(place: Place) -> dict[str, Up]:
    """Layer norm and RMS norm divide by sqrt(v + eps), v = |z|^2 / d, at least that of the shortest z on the ball."""
    n = place.inputs[0].count(frozenset(place.facts.integers("axes")))
    shortest = _shortest(place, executed=False)
    return {"inverse_deviation": as_up(_inverse_root(place, _mean_square(shortest, n)))}


def inverse_floor(place: Place) -> dict[str, Up]:
    """A unit vector is x / max(|x|, eps)."""
    return {"inverse_floor": as_up(_inverse(_shortest(place, executed=False)) & place.facts.measured("inverse_floor"))}


def executed_root(place: Place) -> dict[str, Up]:
    """``inverse_root`` for computed values z and computed variances v^ on the ball.

    RMS norm: v^ >= v (1 - gamma_{n+2}) but for underflow. Layer norm: v^ >= (1 - g) w^2 - (2 k w + k^2)(1 + g) with
    w = sqrt(v), g = gamma_{2n+8}, see the rule; that increases with w from w = 2k on, and is taken as 0 before.
    """
    x, step = place.inputs[0], place.step
    axes = frozenset(place.facts.integers("axes"))
    n = x.count(axes)
    shortest = _shortest(place, executed=True)
    if step.rule == "unit":
        return {"inverse_root": as_up(_inverse(shortest) & place.facts.measured("inverse_root"))}
    square = _mean_square(shortest, n)
    relative = Ups.of(gamma(2 * n + 8, place.facts.roundoff)).value
    variance = square * (1.0 - relative) * (1.0 - 2.0**-50)
    if step.rule == "layer-norm":
        k = Ups.of(means_error(x, axes, place.facts))
        lost = (k * Ups(np.sqrt(square)) * (1 + 2.0**-50) * 2 + k * k) * (Ups(relative) + 1)
        grows = (square >= 4.0 * k.value**2 * (1 + 2.0**-40)) & (relative <= 0.25)
        variance = np.where(grows, variance - lost.value, 0.0)
    underflow = Ups.of(place.facts.smallest * (4 * n)).value
    return {"inverse_root": as_up(_inverse_root(place, (variance - underflow) * (1.0 - 2.0**-50)))}


def _mean_square(length: Floats, n: int) -> Floats:
    """length^2 / n, rounded down."""
    return np.nextafter(np.nextafter(length * length, 0.0) / n, 0.0)


Evidence = Callable[[Place], dict[str, Up]]
EXACT: Mapping[str, Evidence] = {
    "attention": attention,
    "softmax": softmax,
    "mixture": mixture,
    "layer-norm": inverse_deviation,
    "rms-norm": inverse_deviation,
    "unit": inverse_floor,
}
EXECUTED: Mapping[str, Evidence] = dict.fromkeys(GROUPED, executed_root)
