"""Rounding outward: against exact fractions, every operation errs on the safe side and hardly at all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certkit.bounds.number import DIGITS, ONE, SMALLEST, UNIT_ROUNDOFF, ZERO, Interval, Up, gamma

STEP = Fraction(1, 10 ** (DIGITS - 2))  # twice what one rounding may add, relative
floats = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
huge = st.builds(lambda m, e: Up(Decimal(m).scaleb(e)), st.integers(0, 10**DIGITS - 1), st.integers(-2000, 2000))


def exact(number: Up) -> Fraction:
    return Fraction(number.value)


OPERATIONS: dict[str, tuple[Callable[[Up, Up], Up], Callable[[Fraction, Fraction], Fraction]]] = {
    "+": (lambda a, b: a + b, lambda a, b: a + b),
    "*": (lambda a, b: a * b, lambda a, b: a * b),
}


@given(a=huge, b=huge)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_never_below_the_truth_and_within_one_digit_of_it(name: str, a: Up, b: Up) -> None:
    rounded, true = OPERATIONS[name]
    truth = true(exact(a), exact(b))
    assert truth <= exact(rounded(a, b)) <= truth * (1 + STEP)


@given(a=huge, n=st.integers(1, 10**30))
def test_a_quotient_by_an_integer_is_never_below_the_truth(a: Up, n: int) -> None:
    assert exact(a) / n <= exact(a / n) <= exact(a) / n * (1 + STEP)


@given(a=huge)
def test_a_root_is_never_below_the_truth(a: Up) -> None:
    root = exact(a.sqrt())
    assert exact(a) <= root**2 <= exact(a) * (1 + 3 * STEP)


@given(a=sizes)
def test_a_float_enters_as_the_next_decimal_above(a: float) -> None:
    assert Fraction(a) <= exact(Up.of(a)) <= Fraction(a) * (1 + STEP)


@given(a=huge)
def test_to_float_is_the_smallest_float_not_below(a: Up) -> None:
    found = a.to_float()
    assert found == math.inf or Fraction(found) >= exact(a)
    below = math.nextafter(found, 0.0)
    assert found == 0 or Fraction(below) < exact(a)


@given(a=sizes)
def test_a_float_survives_the_way_there_and_back_but_for_the_last_digit(a: float) -> None:
    assert a <= Up.of(a).to_float() <= math.nextafter(a, math.inf)


@given(digits=st.text("0123456789", min_size=1, max_size=3000))
def test_a_text_of_any_length_is_never_rounded_down(digits: str) -> None:
    assert exact(Up.of("1." + digits)) >= Fraction(int("1" + digits), 10 ** len(digits))


@given(a=huge)
def test_the_text_reads_back_exactly(a: Up) -> None:
    assert Up.of(str(a)) == a
    assert str(a * 0) == "0"


def test_exponents_go_far_beyond_float64() -> None:
    huge = Up.of("1E+400")
    assert str(huge * huge) == "1E+800"
    assert (huge * huge).to_float() == math.inf
    assert str((huge * huge).sqrt().sqrt()) == "1E+200"
    assert Up.of("1E-400").to_float() == 5e-324
    assert ZERO.to_float() == 0.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan is not finite"),
        (math.inf, "inf is not finite"),
        ("sNaN", "'sNaN' is not finite"),
        ("1,5", "'1,5' is not a number"),
        ("", "'' is not a number"),
        (-1.0, "an upper bound of a norm is finite and not negative, got -1"),
        (-5e-324, "an upper bound of a norm is finite and not negative, got -4.940656458412465441E-324"),
        (Decimal("-Infinity"), "Decimal('-Infinity') is not finite"),
    ],
)
def test_what_is_no_size_is_refused(value: float | str | Decimal, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Up.of(value)


@pytest.mark.parametrize("divisor", [0, -1, 2.0, True, Up.of(2)])
def test_only_exact_positive_integers_divide(divisor: object) -> None:
    with pytest.raises(ValueError, match="is divided by exact positive integers only"):
        _ = ONE / divisor  # type: ignore[operator]


pairs = st.tuples(floats, floats).map(sorted)


@given(a=pairs, b=pairs, s=st.fractions(0, 1), t=st.fractions(0, 1))
def test_an_interval_holds_the_sum_and_the_product_of_what_its_operands_hold(
    a: list[float], b: list[float], s: Fraction, t: Fraction
) -> None:
    left, right = Interval.of(*a), Interval.of(*b)
    x = Fraction(a[0]) + s * (Fraction(a[1]) - Fraction(a[0]))
    y = Fraction(b[0]) + t * (Fraction(b[1]) - Fraction(b[0]))
    for found, true in ((left + right, x + y), (left * right, x * y)):
        assert Fraction(found.low) <= true <= Fraction(found.high)
    hull = left.hull(right)
    assert all(Fraction(hull.low) <= z <= Fraction(hull.high) for z in (x, y))
    assert Fraction(left.largest.value) >= abs(x)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_an_interval_without_ends_in_order_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Interval.of(low, high)


@given(terms=st.integers(0, 10**6))
def test_gamma_is_not_below_its_formula(terms: int) -> None:
    for roundoff in UNIT_ROUNDOFF.values():
        u = exact(roundoff)
        assert exact(gamma(terms, roundoff)) >= terms * u / (1 - terms * u)


def test_a_sum_too_long_for_its_arithmetic_has_no_bound() -> None:
    with pytest.raises(ValueError, match="a sum of 8388608 terms has no error bound"):
        gamma(2**23, UNIT_ROUNDOFF["float32"])


def test_the_constants_of_the_arithmetics_are_not_below_the_truth() -> None:
    assert exact(UNIT_ROUNDOFF["float64"]) >= Fraction(2) ** -53
    assert exact(UNIT_ROUNDOFF["float32"]) >= Fraction(2) ** -24
    assert exact(SMALLEST["float64"]) >= Fraction(2) ** -1074
    assert exact(SMALLEST["float32"]) >= Fraction(2) ** -149
