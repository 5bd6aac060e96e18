"""Norms of weights: never below fifty digits' truth, and tight where it matters, on flat spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import scipy.linalg

from certkit.bounds import spectral
from certkit.bounds.spectral import (
    absolute_norm,
    absolute_sums,
    euclidean,
    frobenius,
    largest,
    row_differences,
    spectral_norm,
)
from certkit.errors import Refusal

Array = np.ndarray


def orthogonal(rng: np.random.Generator, n: int) -> Array:
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return q


FAMILIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "gaussian": lambda rng: rng.normal(size=(5, 4)),
    "wide": lambda rng: rng.normal(size=(2, 7)),
    "orthogonal": lambda rng: orthogonal(rng, 5),
    "orthogonal in float32": lambda rng: orthogonal(rng, 5).astype(np.float32).astype(float),
    "flat but one": lambda rng: orthogonal(rng, 5) @ np.diag([1.0 + 1e-14, 1, 1, 1, 1]) @ orthogonal(rng, 5),
    "rank one": lambda rng: np.outer(rng.normal(size=6), rng.normal(size=4)),
    "badly scaled rows": lambda rng: np.diag(10.0 ** rng.integers(-12, 13, 5)) @ rng.normal(size=(5, 5)),
    "badly scaled entries": lambda rng: rng.normal(size=(4, 4)) * 10.0 ** rng.integers(-150, 150, (4, 4)),
    "tiny": lambda rng: rng.normal(size=(4, 3)) * 1e-300,
    "subnormal": lambda rng: np.round(rng.normal(size=(3, 3)) * 100) * 5e-324,
    "huge": lambda rng: rng.uniform(-1, 1, size=(3, 4)) * 1e307,
    "integers": lambda rng: rng.integers(-3, 4, (4, 4)).astype(float),
    "ones": lambda rng: np.ones((4, 6)),
}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test proves its norms anew, as some of them change how."""
    monkeypatch.setattr(spectral, "_KNOWN", {})


def samples(family: str, count: int = 6) -> Iterator[Array]:
    for seed in range(count):
        yield FAMILIES[family](np.random.default_rng(seed))


def exactly(matrix: Array) -> mpmath.matrix:
    return mpmath.matrix([[mpmath.mpf(float(v)) for v in row] for row in matrix])


def true_norm(matrix: Array) -> mpmath.mpf:
    # Scaled first, so that the squares of 1e-300 keep their digits.
    top = float(np.abs(matrix).max()) or 1.0
    return mpmath.mpf(top) * mpmath.svd_r(exactly(matrix) / mpmath.mpf(top), compute_uv=False)[0]


@families
def test_the_spectral_norm_is_never_below_the_truth_and_within_a_billionth(family: str) -> None:
    with mpmath.workdps(50):
        for matrix in samples(family):
            truth = true_norm(matrix)
            for given in (matrix, matrix.T, np.asfortranarray(matrix), matrix[::-1]):
                found = mpmath.mpf(spectral_norm(given))
                assert truth <= found <= truth * (1 + mpmath.mpf(10) ** -9) + mpmath.mpf("1e-322")


@families
def test_the_other_norms_are_never_below_the_truth(family: str) -> None:
    with mpmath.workdps(50):
        near = 1 + mpmath.mpf(10) ** -12
        least = mpmath.mpf("1e-320")  # what a subnormal result may be off
        for matrix in samples(family):
            m = exactly(matrix)
            rows, columns = matrix.shape
            lengths = [mpmath.sqrt(mpmath.fsum(m[i, j] ** 2 for j in range(columns))) for i in range(rows)]
            for stated, true in zip(euclidean(matrix, axis=1), lengths, strict=True):
                # Rows far below the largest entry of their matrix may be stated a little longer.
                assert true <= mpmath.mpf(float(stated)) <= true * near + mpmath.mpf(largest(matrix)) * 1e-145 + least
            sums = [mpmath.fsum(abs(m[i, j]) for i in range(rows)) for j in range(columns)]
            for stated, true in zip(absolute_sums(matrix, axis=0), sums, strict=True):
                assert true <= mpmath.mpf(float(stated)) <= true * near + least
            whole = mpmath.sqrt(mpmath.fsum(length**2 for length in lengths))
            assert whole <= mpmath.mpf(frobenius(matrix)) <= whole * near + least
            assert true_norm(np.abs(matrix)) <= mpmath.mpf(absolute_norm(matrix))


@families
def test_row_differences_are_never_below_the_truth(family: str) -> None:
    with mpmath.workdps(50):
        for matrix in samples(family, count=2):
            l2, l1 = row_differences(matrix)
            m = exactly(matrix)
            for i in range(len(matrix)):
                for j in range(len(matrix)):
                    moves = [abs(m[i, k] - m[j, k]) for k in range(matrix.shape[1])]
                    assert mpmath.sqrt(mpmath.fsum(d**2 for d in moves)) <= mpmath.mpf(float(l2[i, j]))
                    assert mpmath.fsum(moves) <= mpmath.mpf(float(l1[i, j]))
                    assert i != j or l2[i, j] == l1[i, j] == 0


def test_row_differences_of_unit_vectors_are_sqrt_2_and_2() -> None:
    l2, l1 = row_differences(np.eye(2))
    assert math.sqrt(2) < l2[0, 1] < math.sqrt(2) * (1 + 1e-12)
    assert 2 <= l1[0, 1] < 2 * (1 + 1e-12)


def test_an_orthogonal_768x768_is_1_to_a_billionth() -> None:
    # Gram iteration is 3.3e-3 high here, power iteration low.
    q = orthogonal(np.random.default_rng(0), 768)
    slack = np.abs(q.T @ q - np.eye(768)).sum(1).max()  # |q'q - I| <= its l1 norm: how far q itself is from 1
    assert 1 - slack <= spectral_norm(q) <= 1 + 1e-9


def test_a_large_matrix_is_proved_to_a_billionth_from_a_few_lanczos_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(scipy.linalg, "eigvalsh", lambda *args, **kwargs: pytest.fail("the guess was not good enough"))
    flat = np.linalg.qr(rng.normal(size=(1300, 300)))[0]
    for matrix in (flat, flat.astype(np.float32).astype(float), rng.normal(size=(1300, 300)), np.ones((700, 250))):
        truth = float(np.linalg.svd(matrix, compute_uv=False)[0])
        for given in (matrix, matrix.T):
            assert truth * (1 - 1e-13) <= spectral_norm(given) <= truth * (1 + 1e-9)


@pytest.mark.parametrize("guess", [None, 0.0, 1e-3, math.nan])
def test_a_wrong_lanczos_guess_costs_time_and_never_soundness(
    guess: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "_lanczos", lambda gram: guess)
    matrix = np.random.default_rng(1).normal(size=(260, 200))
    truth = float(np.linalg.svd(matrix, compute_uv=False)[0])
    assert truth * (1 - 1e-13) <= spectral_norm(matrix) <= truth * (1 + 1e-9)


def test_a_product_in_blocks_of_rows_is_the_product_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(40, 5))
    monkeypatch.setattr(spectral, "ROWS", 7)
    gram, terms = spectral._gram(matrix, 4.0)
    np.testing.assert_allclose(gram, matrix.T @ matrix / 16, rtol=1e-13)
    assert terms == 7 + 6
    with mpmath.workdps(50):
        assert true_norm(matrix) <= mpmath.mpf(spectral_norm(matrix)) <= true_norm(matrix) * (1 + mpmath.mpf(10) ** -12)


def test_a_norm_is_proved_once_per_content(monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[int] = []
    original = spectral._spectral_norm
    monkeypatch.setattr(spectral, "_spectral_norm", lambda m: proved.append(1) or original(m))
    monkeypatch.setattr(spectral, "KEPT", 3)
    a = np.arange(6.0).reshape(2, 3)
    first = spectral_norm(a)
    assert [spectral_norm(given) for given in (a.copy(), np.asfortranarray(a))] == [first, first]
    assert len(proved) == 1
    # Another shape, another sign of zero, another number: none is taken for it.
    others = [a.reshape(3, 2), a - 0.0 * a, a + 1e-300, -a, a.T]
    assert [spectral_norm(m) for m in others] == [original(m) for m in others]
    assert len(spectral._KNOWN) == 3
    spectral_norm(np.zeros((2, 3)))
    a[0, 0] = 50.0
    assert spectral_norm(a) >= 50.0


@pytest.mark.parametrize(
    ("matrix", "norm"), [(4 * np.eye(4), 4.0), (np.array([[1e-5]]), 1e-5), (np.array([[3.0, 4.0]]), 5.0)]
)
def test_norms_known_by_hand(matrix: Array, norm: float) -> None:
    for given in (matrix, -matrix, matrix.T):
        assert norm <= spectral_norm(given) <= norm * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (1, 4), (4, 1), (0, 3), (3, 0)])
def test_zero_is_zero(shape: tuple[int, int]) -> None:
    zero = np.zeros(shape)
    assert spectral_norm(zero) == 0.0
    assert frobenius(zero) == largest(zero) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = np.array([[1.0, 0.0], [bad, 1.0]])
    for measure in (spectral_norm, frobenius, absolute_norm, row_differences):
        with pytest.raises(
            Refusal, match=r"^a weight holds NaN or infinity; a network with such a weight has no bound$"
        ):
            measure(matrix)


def test_a_norm_beyond_float64_is_infinite_and_not_wrong() -> None:
    assert spectral_norm(np.full((4, 4), 1e308)) == math.inf


@pytest.mark.parametrize("guess", [0.0, 1e-3, math.nan, 1e6])
def test_a_wrong_guess_costs_tightness_and_never_soundness(guess: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The guess is LAPACK's, the proof is Cholesky's: a lower bound such as power iteration's cannot slip through.
    monkeypatch.setattr(scipy.linalg, "eigvalsh", lambda *args, **kwargs: np.array([guess]))
    with mpmath.workdps(50):
        for family in FAMILIES:
            for matrix in samples(family, count=2):
                assert true_norm(matrix) <= mpmath.mpf(spectral_norm(matrix))


def test_a_cholesky_that_never_succeeds_leaves_the_frobenius_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scipy.linalg.lapack, "dpotrf", lambda m, **kwargs: (m, 1))
    assert 5.0 <= spectral_norm(np.diag([3.0, 4.0])) <= 5.0 * (1 + 1e-12)


def test_only_a_matrix_has_a_spectral_norm() -> None:
    with pytest.raises(ValueError, match=r"^a spectral norm is taken of a matrix, got shape \(3,\)$"):
        spectral_norm(np.zeros(3))


def test_the_rounding_of_one_over_the_root_of_a_width_is_covered() -> None:
    # Attention without a scale multiplies by 1/sqrt(d); two steps up are not below it for any width in use.
    for width in range(1, 5000):
        factor = spectral.up(spectral.up(1.0 / math.sqrt(width)))
        numerator, denominator = factor.as_integer_ratio()
        assert numerator**2 * width >= denominator**2
