"""Norms of weights as proved upper bounds: what the rules call evidence.

Everything here is float64 arithmetic followed by an error term, so each returned float is not below the true number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

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


def power_above(matrix: Array) -> float:
    """A power of two near the largest entry, by which dividing is exact; 0 if all are zero, Refusal if not all finite."""
    largest = max(float(np.max(matrix, initial=0.0)), -float(np.min(matrix, initial=0.0)))
    if not math.isfinite(largest) or bool(np.isnan(largest)):
        raise Refusal("a weight holds NaN or infinity; a network with such a weight has no bound")
    return 0.0 if largest == 0.0 else math.ldexp(1.0, min(math.frexp(largest)[1], 1023))


def _scaled(matrix: Array) -> tuple[Array, float]:
    """The matrix divided exactly by a power of two near its largest entry, and that power; (matrix, 0) if all zero."""
    power = power_above(matrix)
    return (matrix / power, power) if power else (matrix, 0.0)


def _sums(values: Array, axis: int | None) -> Array:
    """Upper bounds of sums of non-negative numbers, whatever the order of summation."""
    values = np.asarray(values, dtype=np.float64)
    count = values.size if axis is None else values.shape[axis]
    return np.asarray(np.nextafter(np.sum(values, axis=axis) * (1 + _gamma(count + 2)), np.inf))


def frobenius(matrix: Array) -> float:
    """sqrt of the sum of squares, as an upper bound: the l2 norm of all entries."""
    return float(euclidean(matrix.reshape(1, -1), axis=1)[0]) if matrix.size else 0.0


def euclidean(matrix: Array, axis: int) -> Array:
    """The l2 norm along one axis, as upper bounds. Squares that underflow are covered by the last term."""
    scaled, power = _scaled(np.asarray(matrix, dtype=np.float64))
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


_KNOWN: dict[bytes, float] = {}  # proved norms by content, of this process
KEPT = 4096
ROWS = 512  # rows per product: the rounding of a sum grows with the longest product, not with the matrix


def remembered(name: str, matrix: Array, words: str, prove: Callable[[], float]) -> float:
    """The proved number under this name for an array of this content: proved once per process, a float each is kept."""
    content = hashlib.sha256(f"{name} {matrix.shape} {words} ".encode())
    content.update(np.ascontiguousarray(matrix).data if matrix.size else b"")
    key = content.digest()
    found = _KNOWN.get(key)
    if found is None:
        found = prove()
        while len(_KNOWN) >= KEPT:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        _KNOWN[key] = found
    return found


def spectral_norm(matrix: Array) -> float:
    """The largest singular value as a proved upper bound, tight to about 1e-13 (3e-11 at 4096 x 1024).

    With P = fl(A'A) and M = fl(s²I − P): if LAPACK's Cholesky of M runs through, ``proved_square`` bounds |A|². The guess
    s comes from Lanczos steps or LAPACK's eigenvalues and need not be right: where Cholesky stops, s grows. Proved once per
    content and process. Raises Refusal for a weight that is not finite.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a spectral norm is taken of a matrix, got shape {matrix.shape}")
    matrix = np.asarray(matrix, dtype=np.float64)  # products of float32 would round by more than is charged for
    return remembered("spectral", matrix, "", lambda: _spectral_norm(matrix))


def proved_square(square: float, columns: int, terms: int, trace: float, whole: float, diagonal: float) -> float:
    """An upper bound of |A|² when Cholesky of M = fl(s²I − P), P = fl(A'A), has run through, s² = ``square``:

        |A|² <= s² + g/(1−g) tr(M) + gamma_terms |A|_F² + 2u (s² + max P_ii),   g = gamma_{columns+3},

    as R'R = M + dM with |dM| <= g |R'||R| and |R|_F² <= tr(M)/(1−g) (Higham, ASNA 2nd ed., Theorems 10.3 and 10.5, with
    n + 1; two more for libraries that multiply by a rounded reciprocal of the pivot; the idea is Rump's, BIT 46:433,
    2006), and |P − A'A| <= gamma_terms |A|'|A| entry by entry for sums of ``terms`` products in any order. The entries of
    A are at most 1 in absolute value; the last addend is what underflow inside the products can lose.
    """
    g = _gamma(columns + 3)
    return up(
        math.fsum(
            [
                square,
                up(up(g / (1 - g) * (1 + 4 * U)) * trace),
                up(up(_gamma(terms) * whole) * whole),
                up(4 * U * (square + diagonal)),
                1e-280,
            ]
        )
    )


def first_slack(square: float, columns: int, terms: int, trace: float, whole: float) -> float:
    """How far above the guess the first attempt goes, relative: a hundredth of what the proof adds for rounding."""
    rounding = _gamma(columns + 3) * max(trace, 0.0) + _gamma(terms) * whole * whole
    return max(1e-14, 0.01 * rounding / square) if square > 0 else 1e-14


def _gram(tall: Array, power: float) -> tuple[Array, int]:
    """fl(A'A) of A = tall/power, and how many terms its sums count as.

    Summed over blocks of rows: an entry is a sum of sums, of at most ROWS products and then of one number per block.
    What Cholesky reads of it, and so what is proved of, is one triangle.
    """
    rows, columns = tall.shape
    gram = np.zeros((columns, columns))
    starts = range(0, rows, ROWS)
    for start in starts:
        block = tall[start : start + ROWS] / power
        gram += block.T @ block
    return gram, min(ROWS, rows) + len(starts)


def _largest_eigenvalue(gram: Array) -> float:
    """About the largest eigenvalue of a symmetric matrix; nothing is proved of it."""
    columns = len(gram)
    if columns > LANCZOS_FROM and (found := _lanczos(gram)) is not None:
        return found
    try:
        return float(scipy.linalg.eigvalsh(gram, subset_by_index=[columns - 1, columns - 1], check_finite=False)[0])
    except scipy.linalg.LinAlgError:
        return 0.0


LANCZOS_FROM, LANCZOS_STEPS = 192, 120


def _lanczos(gram: Array) -> float | None:
    """The largest eigenvalue to about 1e-11 by Lanczos steps with full reorthogonalisation; None where that is slow."""
    basis = np.zeros((LANCZOS_STEPS, len(gram)))
    vector = np.random.default_rng(0).standard_normal(len(gram))
    basis[0] = vector / np.linalg.norm(vector)
    along, across = np.zeros(LANCZOS_STEPS), np.zeros(LANCZOS_STEPS)
    for k in range(LANCZOS_STEPS - 1):
        moved = gram @ basis[k]
        along[k] = basis[k] @ moved
        for _ in range(2):
            moved -= basis[: k + 1].T @ (basis[: k + 1] @ moved)
        across[k] = np.linalg.norm(moved)
        if not across[k] > 1e-14 * abs(along[0]):
            return float(scipy.linalg.eigh_tridiagonal(along[: k + 1], across[:k], eigvals_only=True)[-1])
        if k % 8 == 7:
            values, vectors = scipy.linalg.eigh_tridiagonal(along[: k + 1], across[:k])
            residual = across[k] * abs(vectors[-1, -1])
            if min(residual, residual**2 / max(values[-1] - values[-2], 1e-300)) <= 1e-11 * values[-1]:
                return float(values[-1])
        basis[k + 1] = moved / across[k]
    return None


def _spectral_norm(matrix: Array) -> float:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    power = power_above(matrix)
    if power == 0.0:
        return 0.0
    columns = tall.shape[1]
    if columns == 1:
        return frobenius(tall)
    gram, terms = _gram(tall, power)
    diagonal = float(np.max(np.diag(gram)))
    # |A|_F² is the sum of the exact diagonal, off by at most gamma_terms of itself; squares may underflow.
    whole = up(math.sqrt(up(up(math.fsum(np.diag(gram))) * (1 + 2 * _gamma(terms)) + 1e-280)))
    beyond = up(whole * power)  # infinite where float64 ends
    guess = max(diagonal, _largest_eigenvalue(gram))  # in this order a guess of NaN is dropped
    slack = first_slack(guess, columns, terms, columns * guess - float(np.trace(gram)), whole)
    exact = columns <= LANCZOS_FROM
    for _ in range(TRIES):
        square = guess * (1 + slack)
        shifted = -gram
        shifted[np.diag_indices(columns)] += square
        trace = up(math.fsum(np.diag(shifted)))
        _, info = scipy.linalg.lapack.dpotrf(shifted.T, lower=1, overwrite_a=1, clean=0)
        if info == 0:
            bound = proved_square(square, columns, terms, trace, whole, diagonal)
            return min(up(up(math.sqrt(bound)) * power), beyond)
        if not exact:
            exact, guess = True, max(guess, float(scipy.linalg.eigvalsh(gram, check_finite=False)[-1]))
        slack *= 4
        if slack > 1:
            break
    return beyond


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
