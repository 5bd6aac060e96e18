"""How much weight a softmax can put where, over all scores of a given size: the evidence of the attention rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.spectral import Array, up
from certkit.errors import Refusal

HOPELESS = 10_000.0  # beyond this score one weight can be anything between 0 and 1, and e^(2s) need not be computed
LOUD = 45.0  # where 2 s is this much above the mask's spread and log(keys), g(p) is 1 up to a float's last digit

_EXACT = Context(prec=2200)  # the difference of two float64 numbers has fewer digits
_UP = Context(prec=20, rounding=ROUND_CEILING)
_DOWN = Context(prec=20, rounding=ROUND_FLOOR)
_ONE = Decimal(1)


def softmax_mass(mask: Array, allowed: NDArray[np.bool_], score: float) -> tuple[float, float]:
    """Of softmax(mask + S) by rows, over all |S| <= score: the largest column sum, and what is left beside a row's top.

    Both are upper bounds over all leading axes. ``mask`` is (..., rows, keys); keys that are not ``allowed`` get weight 0.
    A weight p of softmax(mask) is at most g(p) = p E / (1 - p + p E), E = e^(2 score), when its own score is +score and
    every other -score; g is increasing. It is at most 1 whatever the scores, which is all that is said of large ones.
    Exponentials are decimal's, correctly rounded. Raises Refusal for a row without any key.
    """
    if not bool(allowed.any(axis=-1).all()):
        raise Refusal("attention with a query that may look at no key has no defined output")
    keys = mask.shape[-1]
    readers, others = float(allowed.sum(axis=-2).max()), float(min(allowed.sum(axis=-1).max() - 1, 1))
    if score >= HOPELESS or 2 * score > _spread(mask, allowed) + math.log(keys) + LOUD:
        return readers, others
    growth = _UP.next_plus(_UP.exp(_EXACT.multiply(Decimal(2), Decimal(score))))
    column_sum = rest = Decimal(0)
    grown: dict[tuple[bytes, bytes], _Row] = {}  # equal rows, as of an absent mask or of heads, are computed once
    powers: dict[tuple[float, float], Decimal] = {}
    for index in np.ndindex(*mask.shape[:-2]):
        columns = [Decimal(0)] * keys
        alike: dict[tuple[bytes, bytes], int] = {}
        for entries, keep in zip(mask[index], allowed[index], strict=True):
            key = (entries.tobytes(), keep.tobytes())
            alike[key] = alike.get(key, 0) + 1
            if key not in grown:
                grown[key] = _row(entries, keep, growth, powers)
                rest = max(rest, grown[key].rest)
        for key, count in alike.items():
            for column, weight in grown[key].weights:
                columns[column] = _UP.add(columns[column], _UP.multiply(weight, count))
        column_sum = max(column_sum, *columns)
    return min(up(float(column_sum)), readers), min(up(float(rest)), others)


def _spread(mask: Array, allowed: NDArray[np.bool_]) -> float:
    """The largest difference of two entries that one row leaves in."""
    high, low = np.where(allowed, mask, -np.inf).max(axis=-1), np.where(allowed, mask, np.inf).min(axis=-1)
    with np.errstate(over="ignore"):
        return float((high - low).max())


@dataclass(frozen=True, slots=True)
class _Row:
    """What the weights of a row can become, by the columns it looks at, and what can lie beside its largest."""

    weights: list[tuple[int, Decimal]]
    rest: Decimal


def _row(entries: Array, keep: NDArray[np.bool_], growth: Decimal, powers: dict[tuple[float, float], Decimal]) -> _Row:
    """One row, each number computed once for all keys that share it; ``powers`` holds e^(entry - top) of all rows so far."""
    values, place, counts = np.unique(entries[keep], return_inverse=True, return_counts=True)
    shares = _shares(values.tolist(), counts.tolist(), powers)
    weights = [_grown(share, growth) for share in shares]
    rest = Decimal(0)
    for weight, count in zip(weights, [*counts[:-1].tolist(), int(counts[-1]) - 1], strict=True):
        rest = _UP.add(rest, _UP.multiply(weight, count))
    return _Row(
        [(column, weights[k]) for column, k in zip(np.flatnonzero(keep).tolist(), place.tolist(), strict=True)], rest
    )


def _shares(values: list[float], counts: list[int], powers: dict[tuple[float, float], Decimal]) -> list[Decimal]:
    """Upper bounds of softmax for entries of those values, from the smallest on, each so many times."""
    top = values[-1]
    for value in values:
        if (value, top) not in powers:
            powers[value, top] = _DOWN.exp(_EXACT.subtract(Decimal(value), Decimal(top)))
    total = Decimal(0)
    for value, count in zip(values, counts, strict=True):
        power = powers[value, top]
        total = _DOWN.add(total, _DOWN.multiply(_DOWN.next_minus(power) if power else power, count))
    return [_UP.divide(_UP.next_plus(powers[value, top]), total) for value in values]


def _grown(share: Decimal, growth: Decimal) -> Decimal:
    """g(p), rounded up: increasing in p and in E, so that upper bounds of both may be put in."""
    p = min(share, _ONE)
    denominator = _DOWN.add(_ONE, _DOWN.multiply(p, _DOWN.subtract(growth, _ONE)))
    return min(_UP.divide(_UP.multiply(p, growth), denominator), _ONE)
