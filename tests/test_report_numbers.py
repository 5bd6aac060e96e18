"""Numbers on the page are rounded so that they never claim more than the record: laws, and how they read."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certkit.reports.rounding import fixed, percent, significant

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, st.integers(1, 17))
@example(0.1, 3)
@example(9.9999, 3)
@example(-9.9999, 3)
@example(999999.0, 2)
@example(5e-324, 4)
def test_significant_digits_round_the_way_they_say_and_by_less_than_one_digit(value: float, digits: int) -> None:
    exact = Fraction(value)
    up, down = Fraction(significant(value, "up", digits)), Fraction(significant(value, "down", digits))
    assert down <= exact <= up
    assert up - down <= abs(exact) * Fraction(10) ** (1 - digits)


@given(st.floats(-1e9, 1e9), st.integers(0, 9))
def test_fixed_decimals_round_the_way_they_say_and_by_less_than_one_unit(value: float, decimals: int) -> None:
    up, down = fixed(value, "up", decimals), fixed(value, "down", decimals)
    assert Fraction(down) <= Fraction(value) <= Fraction(up)
    assert Fraction(up) - Fraction(down) <= Fraction(1, 10**decimals)
    assert len(up.partition(".")[2]) == decimals


@pytest.mark.parametrize(
    ("value", "direction", "text"),
    [
        (2.3100918, "up", "2.32"), (2.3100918, "down", "2.31"), (0.25, "up", "0.250"), (9.999, "up", "10.0"),
        (1234567.0, "down", "1.23e6"), (0.000012345, "up", "1.24e-5"), (-0.01234, "up", "-0.0123"), (0.0, "up", "0"),
        ("1.5E+400", "up", "1.50e400"),
    ],
)  # fmt: skip
def test_a_number_reads_like_this(value: float | str, direction: Any, text: str) -> None:
    assert significant(value, direction) == text


def test_per_cent_has_one_decimal_and_is_exact_about_thirds() -> None:
    assert percent(Fraction(1, 3), "down") == "33.3"
    assert percent(Fraction(1, 3), "up") == "33.4"
    assert percent(Fraction(29, 100), "down") == percent(Fraction(29, 100), "up") == "29.0"
    assert percent(1.0, "up") == "100.0"
