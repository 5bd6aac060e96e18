"""How much weight a softmax can put where, over all scores of a given size: the evidence of the attention rule."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.spectral import Array, up
from certkit.errors import Refusal

HOPELESS = 10_000.0  # beyond this score one weight can be anything between 0 and 1, and e^(2s) need not be computed

_EXACT = Context(prec=2200)  # the difference of two float64 numbers has fewer digits
_UP = Context(prec=20, rounding=ROUND_CEILING)
_DOWN = Context(prec=20, rounding=ROUND_FLOOR)
_ONE = Decimal(1)


def softmax_mass(mask: Array, allowed: NDArray[np.bool_], score: float) -> tuple[float, float]:
    """Of softmax(mask + S) by rows, over all |S| <= score: the largest column sum, and what is left beside a row's top.

    Both are upper bounds over all leading axes. ``mask`` is (..., rows, keys); keys that are not ``allowed`` get weight 0.
    A weight p of softmax(mask) is at most g(p) = p E / (1 - p + p E), E = e^(2 score), when its own score is +score and
    every other -score; g is increasing. Exponentials are decimal's, correctly rounded. Raises Refusal for a row without
    any key.
    """
    if not bool(allowed.any(axis=-1).all()):
        raise Refusal("attention with a query that may look at no key has no defined output")
    rows, keys = mask.shape[-2:]
    if score >= HOPELESS:
        return float(rows), 1.0
    growth = _UP.next_plus(_UP.exp(_EXACT.multiply(Decimal(2), Decimal(score))))
    column_sum = rest = Decimal(0)
    grown: dict[tuple[bytes, bytes], list[Decimal]] = {}  # equal rows, as in a causal or absent mask, are computed once
    for index in np.ndindex(*mask.shape[:-2]):
        columns = [Decimal(0)] * keys
        for entries, keep in zip(mask[index], allowed[index], strict=True):
            key = (entries.tobytes(), keep.tobytes())
            if key not in grown:
                grown[key] = [_grown(share, growth) for share in _shares(entries, keep)]
            weights = grown[key]
            columns = [_UP.add(column, weight) for column, weight in zip(columns, weights, strict=True)]
            rest = max(rest, _sum(sorted(weights)[:-1]))
        column_sum = max(column_sum, *columns)
    return min(up(float(column_sum)), float(rows)), min(up(float(rest)), 1.0)


def _sum(values: list[Decimal]) -> Decimal:
    total = Decimal(0)
    for value in values:
        total = _UP.add(total, value)
    return total


def _shares(entries: Array, keep: NDArray[np.bool_]) -> list[Decimal]:
    """Upper bounds of softmax over the allowed entries, 0 elsewhere."""
    top = Decimal(float(entries[keep].max()))
    powers = [
        _DOWN.exp(_EXACT.subtract(Decimal(entry), top)) if kept else Decimal(0)
        for entry, kept in zip(entries.tolist(), keep.tolist(), strict=True)
    ]
    total = Decimal(0)
    for power in powers:
        total = _DOWN.add(total, _DOWN.next_minus(power) if power else power)
    return [_UP.divide(_UP.next_plus(power), total) if power else power for power in powers]


def _grown(share: Decimal, growth: Decimal) -> Decimal:
    """g(p), rounded up: increasing in p and in E, so that upper bounds of both may be put in."""
    p = min(share, _ONE)
    denominator = _DOWN.add(_ONE, _DOWN.multiply(p, _DOWN.subtract(growth, _ONE)))
    return min(_UP.divide(_UP.multiply(p, growth), denominator), _ONE)
