"""Noise that is what it claims to be, and the two numbers that a smoothing certificate rests on, proved in ball arithmetic.

A generator of pseudo-random bits is taken for a source of fair coins; nothing else is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

BITS = 64
PRECISION = 256

Integers = NDArray[np.int64]
Thresholds = NDArray[np.uint64]


@contextmanager
def _precise() -> Iterator[None]:
    before = ctx.prec
    ctx.prec = PRECISION
    try:
        yield
    finally:
        ctx.prec = before


def _below(x: arb) -> arb:
    """The chance that a standard normal is at most x; erfc keeps its digits in the lower tail."""
    return (-x / arb(2).sqrt()).erfc() / 2


def thresholds(sigma: float, levels: int) -> Thresholds:
    """floor(2^64 P(round(levels sigma N) <= k)) for k = -m .. m - 1, N a standard normal; m beyond what 64 bits can see.

    ``drawn`` with them gives round(levels sigma N) but for a total variation of at most ``deviation``. The product of
    levels and sigma is exact. Raises ValueError beyond 10^5 steps of the grid.
    """
    if not 0 < sigma * levels < 1e5:
        raise ValueError(f"noise of sigma {sigma} is {sigma * levels:.3g} steps of the grid; expected 0 to 100,000")
    reach = math.ceil(10 * sigma * levels) + 1  # P(N > 10) < 2^-75
    found = []
    with _precise():
        for k in range(-reach, reach):
            exact = (_below((arb(k) + arb(1) / 2) / (arb(sigma) * levels)) * arb(2) ** BITS).floor().unique_fmpz()
            assert exact is not None  # the floor is undecided only if the value is within 2^-100 of an integer
            found.append(min(int(exact), 2**BITS - 1))
    return np.array(found, np.uint64)


def drawn(thresholds: Thresholds, generator: np.random.Generator, shape: tuple[int, ...]) -> Integers:
    """Integers of the distribution that the thresholds tabulate, one 64-bit word each: no float takes part."""
    words = generator.integers(0, 2**BITS, size=shape, dtype=np.uint64)
    return np.searchsorted(thresholds, words, side="right").astype(np.int64) - len(thresholds) // 2


def deviation(thresholds: Thresholds, draws: int) -> float:
    """An upper bound of the total variation between ``draws`` of ``drawn`` and as many exact values.

    Each tabulated P(<= k) is too low by less than 2^-64 (one capped at 2^64 - 1 by at most that), so that the ``cells``
    probabilities are wrong by at most 2^-64 each; half of their sum, and the tails beyond the table, are less than
    cells 2^-64. Distances of independent draws add at most.
    """
    cells = len(thresholds) + 1
    return math.nextafter(draws * cells * 2.0**-BITS, math.inf)


def share_low(count: int, draws: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson bound: a p with P(at least ``count`` of ``draws``) <= alpha at p, so that the true
    share is below it with probability at most alpha. 0 for a count of 0.

    P(Bin(n, p) >= k) is the regularised incomplete beta function I_p(k, n - k + 1), rising in p. The value of scipy is
    lowered until ball arithmetic proves that. Clopper and Pearson 1934.
    """
    from scipy.stats import beta

    if not 0 <= count <= draws:
        raise ValueError(f"a share needs 0 <= count <= draws, got {count} of {draws}")
    if count == 0:
        return 0.0
    guess = float(beta.ppf(alpha, count, draws - count + 1))
    with _precise():
        for shrink in (1e-15, 1e-13, 1e-11, 1e-9, 1e-6, 1e-3):
            p = guess * (1 - shrink)
            if arb(p).beta_lower(count, draws - count + 1, regularized=1) <= arb(alpha):
                return p
    return 0.0


def radius_low(sigma: float, share: float) -> float:
    """A radius r with Phi(r / sigma) <= share: what sigma Phi^-1(share) is, rounded down; 0 for a share of at most 1/2.

    Inside it the class keeps more than half of the smoothed probability. Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918.
    """
    from scipy.stats import norm

    if share <= 0.5:
        return 0.0
    guess = float(sigma * norm.ppf(share))
    with _precise():
        for shrink in (1e-15, 1e-13, 1e-11, 1e-9, 1e-6, 1e-3):
            radius = guess * (1 - shrink)
            if _below(arb(radius) / arb(sigma)) <= arb(share):
                return radius
    return 0.0
