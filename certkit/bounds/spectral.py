"""Norms of weights as proved upper bounds: what the rules call evidence.

Everything here is float64 arithmetic followed by an error term, so each returned float is not below the true number.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from certkit.errors import Refusal

Array = NDArray[np.float64]
U = 2.0**-53
TRIES = 60


def _gamma(terms: int) -> float:
    """n·u / (1 − n·u), rounded up. Higham, ASNA 2nd ed., Lemma 3.1."""
    nu = terms * U
    return math.nextafter(nu / (1 - nu), math.inf) * (1 + 4 * U)


def up(value: float) -> float:
    """The next float64 above: after one correctly rounded operation this is an upper bound."""
    return math.nextafter(value, math.inf)


def _scaled(matrix: Array) -> tuple[Array, float]:
    """The matrix divided exactly by a power of two near its largest entry, and that power; (matrix, 0) if all zero."""
    largest = float(np.max(np.abs(matrix), initial=0.0))
    if not math.isfinite(largest):
        raise Refusal("a weight holds NaN or infinity; a network with such a weight has no bound")
    if largest == 0.0:
        return matrix, 0.0
    power = math.ldexp(1.0, min(math.frexp(largest)[1], 1023))
    return matrix / power, power


def _sums(values: Array, axis: int | None) -> Array:
    """Upper bounds of sums of non-negative numbers, whatever the order of summation."""
    count = values.size if axis is None else values.shape[axis]
    return np.asarray(np.nextafter(np.sum(values, axis=axis) * (1 + _gamma(count + 2)), np.inf))


def frobenius(matrix: Array) -> float:
    """sqrt of the sum of squares, as an upper bound: the l2 norm of all entries."""
    return float(euclidean(matrix.reshape(1, -1), axis=1)[0]) if matrix.size else 0.0


def euclidean(matrix: Array, axis: int) -> Array:
    """The l2 norm along one axis, as upper bounds. Squares that underflow are covered by the last term."""
    scaled, power = _scaled(matrix)
    if power == 0.0:
        return np.zeros(np.delete(matrix.shape, axis))
    roots = np.nextafter(np.sqrt(_sums(scaled * scaled * (1 + 2 * U), axis)), np.inf)
    return np.asarray(np.nextafter((roots + 1e-150 * matrix.shape[axis]) * power, np.inf))


def absolute_sums(matrix: Array, axis: int) -> Array:
    """The l1 norm along one axis, as upper bounds."""
    return _sums(np.abs(matrix), axis)


def largest(values: Array) -> float:
    """The largest absolute value, exactly; 0 for no values."""
    return float(np.max(np.abs(values), initial=0.0))


def spectral_norm(matrix: Array) -> float:
    """The largest singular value as a proved upper bound, tight to about 1e-13 (1e-10 at width 1000).

    With P = fl(A'A) and M = fl(s²I − P): if LAPACK's Cholesky of M runs through, then
        |A|² <= s² + g/(1−g) tr(M) + gamma_m |A|_F² + 2u (s² + max P_ii),   g = gamma_{n+3},
    as R'R = M + dM with |dM| <= g |R'||R| and |R|_F² <= tr(M)/(1−g) (Higham, ASNA 2nd ed., Theorems 10.3 and 10.5, with
    n + 1; two more for libraries that multiply by a rounded reciprocal of the pivot; the idea is Rump's, BIT 46:433,
    2006). The guess s comes from LAPACK's eigenvalues and need not be right: where Cholesky stops, s grows. Raises
    Refusal for a weight that is not finite.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a spectral norm is taken of a matrix, got shape {matrix.shape}")
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    scaled, power = _scaled(np.ascontiguousarray(tall))
    if power == 0.0:
        return 0.0
    rows, columns = scaled.shape
    whole = frobenius(scaled)
    if columns == 1:
        return up(whole * power)
    gram = scaled.T @ scaled
    gram = np.tril(gram) + np.tril(gram, -1).T
    diagonal = float(np.max(np.diag(gram)))
    try:
        guess = float(scipy.linalg.eigvalsh(gram, subset_by_index=[columns - 1, columns - 1], check_finite=False)[0])
    except scipy.linalg.LinAlgError:
        guess = diagonal
    g = _gamma(columns + 3)
    slack = 1e-14
    for _ in range(TRIES):
        square = max(diagonal, guess) * (1 + slack)  # in this order a guess of NaN is dropped
        shifted = square * np.eye(columns) - gram
        _, info = scipy.linalg.lapack.dpotrf(shifted, lower=1, overwrite_a=0, clean=0)
        if info == 0:
            trace = up(math.fsum(np.diag(shifted)))
            terms = [
                square,
                up(up(g / (1 - g) * (1 + 4 * U)) * trace),
                up(up(_gamma(rows) * whole) * whole),
                up(4 * U * (square + diagonal)),
                1e-280,  # what underflow inside the products can lose
            ]
            return min(up(up(math.sqrt(up(math.fsum(terms)))) * power), up(whole * power))
        slack *= 4
        if slack > 1:
            break
    return up(whole * power)


def absolute_norm(matrix: Array) -> float:
    """An upper bound of the spectral norm of |A|: the smaller of the Frobenius norm and sqrt(|A|_1 |A|_inf)."""
    columns = float(np.max(absolute_sums(matrix, 0), initial=0.0))
    rows = float(np.max(absolute_sums(matrix, 1), initial=0.0))
    return min(frobenius(matrix), up(math.sqrt(up(columns * rows))))


def row_differences(matrix: Array) -> tuple[Array, Array]:
    """|W_i − W_j| for all pairs of rows, in l2 and in l1, as upper bounds; the rounding of the difference is added."""
    l2 = np.empty((len(matrix), len(matrix)))
    l1 = np.empty_like(l2)
    for i, row in enumerate(matrix):  # all pairs at once would take classes² times the width in memory
        difference = np.nextafter(np.abs(matrix - row) * (1 + 2 * U), np.inf)
        l2[i], l1[i] = euclidean(difference, axis=1), absolute_sums(difference, axis=1)
    np.fill_diagonal(l2, 0.0)
    np.fill_diagonal(l1, 0.0)
    return l2, l1
