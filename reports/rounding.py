"""Numbers as people read them, rounded so that the page never claims more than the record.

A radius is shown rounded down, a gain rounded up. ``{:.3g}`` would round to nearest: a gain of 1.2349 would read
1.23, which was never proved. Everything here works on exact decimals, so that no second rounding hides in a format.
"""

from __future__ import annotations

from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from fractions import Fraction
from typing import Literal

Direction = Literal["up", "down"]
Number = float | int | str

_ROUNDING = {"up": ROUND_CEILING, "down": ROUND_FLOOR}
_PLAIN = range(-4, 6)  # powers of ten that are easier to read written out
_MOST_DECIMALS = 9


def exact(value: Number) -> Decimal:
    """The value itself as a decimal. Raises ValueError for a text that is no finite number."""
    try:
        decimal = Decimal(value)
    except (InvalidOperation, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    if not decimal.is_finite():
        raise ValueError(f"{value!r} is not finite")
    return decimal


def significant(value: Number, direction: Direction, digits: int = 3) -> str:
    """The value in ``digits`` significant digits: never below it when ``up``, never above it when ``down``."""
    number = exact(value)
    if not number:
        return "0"
    context = Context(prec=digits, rounding=_ROUNDING[direction], Emin=MIN_EMIN, Emax=MAX_EMAX)
    rounded = context.plus(number)
    power = rounded.adjusted()
    padded = rounded.quantize(
        Decimal((0, (1,), power - digits + 1)), context=Context(prec=digits, Emin=MIN_EMIN, Emax=MAX_EMAX)
    )
    if power in _PLAIN:
        return f"{padded:f}"
    sign, figures, _ = padded.as_tuple()
    mantissa = "".join(map(str, figures))
    return f"{'-' if sign else ''}{mantissa[0]}.{mantissa[1:]}e{power}"


def fixed(value: Number, direction: Direction, decimals: int) -> str:
    """The value with that many decimals, rounded the same way; for columns, where the points must stand in line."""
    scaled = Fraction(exact(value)) * 10**decimals
    whole = -(-scaled.numerator // scaled.denominator) if direction == "up" else scaled.numerator // scaled.denominator
    figures = str(abs(whole)).rjust(decimals + 1, "0")
    text = f"{figures[:-decimals]}.{figures[-decimals:]}" if decimals else figures
    return f"-{text}" if whole < 0 else text


def decimals_for(largest: float, digits: int = 4) -> int | None:
    """How many decimals show ``digits`` significant ones of the largest value; None when a column would grow too wide."""
    if largest == 0:
        return digits - 1
    decimals = max(0, digits - 1 - exact(largest).adjusted())
    return decimals if decimals <= _MOST_DECIMALS and exact(largest).adjusted() in _PLAIN else None


def percent(share: float | Fraction, direction: Direction) -> str:
    """A share as per cent with one decimal, rounded the way that is asked for."""
    thousandths = Fraction(share) * 1000
    whole = -(-thousandths.numerator // thousandths.denominator) if direction == "up" else int(thousandths // 1)
    return f"{whole // 10}.{whole % 10}"
