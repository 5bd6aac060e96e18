"""Numbers that are one per sample: against exact fractions and many digits, every operation errs on the safe side."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certkit.bounds.number import Interval, Up, least, most
from certkit.engine.local.numbers import LARGEST, Intervals, Ups

sizes = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
floats = st.floats(allow_nan=False, allow_infinity=False)
ends = st.tuples(floats, floats).map(sorted)
INF = math.inf


def ups(*values: float) -> Ups:
    return Ups(np.array(values))


def intervals(*pairs: tuple[float, float]) -> Intervals:
    return Intervals(np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]))


def above(found: float, truth: Fraction) -> bool:
    return math.isinf(found) or (truth <= Fraction(found) <= truth * (1 + Fraction(1, 2**50)) + Fraction(5e-324) * 4)


@given(a=sizes, b=sizes.filter(lambda b: b == 0 or b > 1e-300), n=st.integers(1, 2**52))
def test_an_operation_is_never_below_the_truth_and_hardly_above(a: float, b: float, n: int) -> None:
    with np.errstate(all="ignore"):
        x, y = ups(a, 1.0), ups(b, 1.0)
        exact = Fraction(a), Fraction(b)
        for other in (y, Up.of(b)):
            assert above((x + other).value[0], exact[0] + exact[1])
            assert above((other + x).value[0], exact[0] + exact[1])
            assert above((other * x).value[0], exact[0] * exact[1])
        assert above((x / n).value[0], exact[0] / n)
        root = Fraction((x.sqrt()).value[0])
        assert root**2 >= exact[0]
        assert least(x, y).value[0] == min(a, b)
        assert most(x, y).value[0] == max(a, b)


@given(a=sizes)
def test_what_is_unknown_stays_unknown_and_is_never_nan(a: float) -> None:
    with np.errstate(all="ignore"):
        for x in (
            ups(INF) * a,
            ups(INF) * ups(a),
            ups(INF) * ups(0.0),
            ups(INF) + a,
            ups(INF).sqrt(),
            ups(INF) / 3,
            ups(INF).exp(),
        ):
            assert x.value[0] == INF
        line = intervals((-INF, INF))
        for interval in (
            line + Interval.of(a, a),
            line * Interval.of(1, 2),
            line.exp(),
            line.tanh(),
            line.softplus(),
            line.logistic(),
            line.power(2),
        ):
            assert not np.isnan([interval.low[0], interval.high[0]]).any()
        zero = line * Interval.of(0, 0)
        assert zero.low[0] <= 0 <= zero.high[0]


@given(a=ends, b=ends, by=sizes)
def test_an_interval_holds_the_exact_result(a: list[float], b: list[float], by: float) -> None:
    with np.errstate(all="ignore"):
        x, y = intervals((a[0], a[1])), intervals((b[0], b[1]))
        scalar = Interval(Decimal(b[0]), Decimal(b[1]))
        exact = [[Fraction(end) for end in pair] for pair in (a, b)]
        products = [p * q for p in exact[0] for q in exact[1]]
        for other in (y, scalar):
            for found in (x * other, other * x):
                assert below_or_inf(found.low[0], min(products))
                assert above_or_inf(found.high[0], max(products))
            for found in (x + other, other + x):
                assert below_or_inf(found.low[0], exact[0][0] + exact[1][0])
                assert above_or_inf(found.high[0], exact[0][1] + exact[1][1])
            assert (x.hull(other).low[0], x.hull(other).high[0]) == (min(a[0], b[0]), max(a[1], b[1]))
            assert (x.meet(other).low[0], x.meet(other).high[0]) == (max(a[0], b[0]), min(a[1], b[1]))
        assert below_or_inf(x.widened(ups(by)).low[0], exact[0][0] - Fraction(by))
        assert x.largest.value[0] == max(abs(a[0]), abs(a[1]))
        assert x.closest().low[0] == (0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1])))


def below_or_inf(found: float, truth: Fraction) -> bool:
    return found == -INF or Fraction(found) <= truth


def above_or_inf(found: float, truth: Fraction) -> bool:
    return found == INF or Fraction(found) >= truth


FUNCTIONS: dict[str, tuple[Callable[[Intervals], Intervals], Callable[[mpmath.mpf], mpmath.mpf], tuple[float, float]]] = {
    "exp": (Intervals.exp, mpmath.exp, (-800.0, 800.0)),
    "log": (Intervals.log, mpmath.log, (5e-324, 1e308)),
    "sqrt": (Intervals.sqrt, mpmath.sqrt, (0.0, 1e308)),
    "tanh": (Intervals.tanh, mpmath.tanh, (-1e3, 1e3)),
    "logistic": (Intervals.logistic, lambda x: 1 / (1 + mpmath.exp(-x)), (-700.0, 800.0)),
    "softplus": (Intervals.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), (-800.0, 800.0)),
    "cube": (lambda x: x.power(3), lambda x: x**3, (-1e100, 1e100)),
}  # fmt: skip


@given(data=st.data())
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_image_of_an_increasing_function_holds_it_and_is_narrow(name: str, data: st.DataObject) -> None:
    function, true, (lowest, highest) = FUNCTIONS[name]
    x = data.draw(st.floats(lowest, highest))
    with np.errstate(all="ignore"), mpmath.workdps(400):
        found, truth = function(intervals((x, x))), true(mpmath.mpf(x))
        assert found.low[0] <= truth <= found.high[0]
        slack = abs(truth) * mpmath.mpf(2) ** -40 + mpmath.mpf(10) ** -310
        assert truth - slack <= found.low[0] or truth > LARGEST
        assert found.high[0] <= truth + slack or truth > LARGEST


def test_a_sample_that_a_function_cannot_read_does_not_touch_the_others() -> None:
    with np.errstate(all="ignore"):
        mixed = intervals((-1.0, 2.0), (4.0, 4.0))
        for found, kept in ((mixed.log(), math.log(4)), (mixed.sqrt(), 2.0), (mixed.reciprocal(), 0.25)):
            assert (found.low[0], found.high[0]) == (-INF, INF)
            assert found.low[1] <= kept <= found.high[1]
            assert found.high[1] - found.low[1] < 1e-12


def test_even_powers_and_clamps() -> None:
    with np.errstate(all="ignore"):
        square = intervals((-3.0, 2.0)).power(2)
        assert square.low[0] == 0
        assert 9 <= square.high[0] <= 9 * (1 + 1e-15)
        clamped = intervals((-3.0, 2.0)).clamp(Interval.of(-1, -1), Interval.of(1, 1))
        assert (clamped.low[0], clamped.high[0]) == (-1, 1)


def test_a_guard_that_one_sample_fails_fails() -> None:
    score = Up.of(1)
    assert ups(0.5, 1.5) > score
    assert not ups(0.5, 1.0 - 1e-12) > score
    assert score > ups(2.0, 0.5)
    assert not ups(INF) > ups(INF)


@pytest.mark.parametrize("bad", [0, -1, True, 0.5, Up.of(2)])
def test_only_exact_positive_integers_divide(bad: object) -> None:
    with pytest.raises(ValueError, match="an upper bound is divided by exact positive integers only, got"):
        ups(1.0) / bad  # type: ignore[operator]
