"""Functions that bend: what is refused, and the proof of a slope by branch and bound, step by step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import mpmath
import pytest
import torch
from flint import arb, ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.curves import FUNCTIONS, prove, run
from certkit.bounds.ledger import facts_for
from certkit.bounds.number import ONE, ZERO, Interval, Up
from certkit.bounds.rules import derive
from certkit.bounds.rules.curves import reaches
from certkit.bounds.rules.pointwise import reach_of
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import NoRule, RecordError, Refusal
from tests.family_curves import gelu_new, quick_gelu, smooth_size
from tests.laws import NORMS, climbed, contained, proof_of
from tests.modules import BOX, Case, Net, of, small
from tests.modules import prove as proved

ROUNDOFF, SMALLEST = "1.2E-16", "1E-323"


@pytest.fixture(autouse=True)
def _precise() -> Iterator[None]:
    before, ctx.prec = ctx.prec, 128
    yield
    ctx.prec = before


# --- Numbers ---------------------------------------------------------------------------------------------------------

ends = st.floats(-50, 50, allow_nan=False)
IMAGES: dict[str, tuple[Callable[[Interval], Interval], Callable[[Any], Any]]] = {
    "exp": (Interval.exp, mpmath.exp),
    "log": (Interval.log, mpmath.log),
    "sqrt": (Interval.sqrt, mpmath.sqrt),
    "logistic": (Interval.logistic, lambda x: 1 / (1 + mpmath.exp(-x))),
    "tanh": (Interval.tanh, mpmath.tanh),
    "softplus": (Interval.softplus, lambda x: mpmath.log1p(mpmath.exp(x))),
    "reciprocal": (Interval.reciprocal, lambda x: 1 / x),
    "square": (lambda x: x.power(2), lambda x: x**2),
    "cube": (lambda x: x.power(3), lambda x: x**3),
}


@given(a=ends, b=ends, share=st.floats(0, 1))
@pytest.mark.parametrize("name", IMAGES)
def test_the_image_of_an_interval_holds_the_image_of_its_points(name: str, a: float, b: float, share: float) -> None:
    image, f = IMAGES[name]
    low, high = min(a, b), max(a, b)
    if name in ("log", "reciprocal"):
        low, high = abs(low) + 1e-3, abs(low) + 1e-3 + abs(high)
    if name == "sqrt":
        low, high = min(abs(low), abs(high)), max(abs(low), abs(high))
    x = min(max(low + share * (high - low), low), high)
    found = image(Interval.of(low, high))
    with mpmath.workdps(60):
        for at in (low, x, high):
            true = f(mpmath.mpf(at))
            assert mpmath.mpf(str(found.low)) <= true <= mpmath.mpf(str(found.high))
        tight = mpmath.mpf(10) ** -16 * (1 + max(abs(f(mpmath.mpf(at))) for at in (low, high)))
        assert mpmath.mpf(str(found.high)) <= max(f(mpmath.mpf(at)) for at in (low, high)) + tight


def test_images_far_out_are_finite_and_on_the_safe_side() -> None:
    far = Interval.of("-1E+400", "1E+400")
    assert (far.logistic().low, far.logistic().high) == (0, 1)
    assert far.tanh() == Interval.of(-1, 1)
    assert far.softplus().high >= Decimal("1E+400")
    assert Interval.of("-1E+30", "-1E+30").exp().low == 0 < Interval.of("-1E+30", "-1E+30").exp().high
    assert Interval.of(0, 1000).exp().high > Decimal("1.9E+434")
    with pytest.raises(ValueError, match=r"^e\^1E\+30 is beyond every number that can be written down$"):
        Interval.of(0, "1E+30").exp()


def test_entries_reach_no_further_than_their_range_and_their_size() -> None:
    x = Bound((1, 2), {frozenset(): Reach(Up.of(2), ONE, Up.of("0.5"))}, Interval.of(-1, 5))
    assert reach_of(x) == Interval.of(-1, 2)
    assert reaches(x)[1] == Interval.of("-1.5", "2.5")
    assert reach_of(Bound((1, 2), x.norms)) == Interval.of(-2, 2)


# --- Refusals --------------------------------------------------------------------------------------------------------

HINT = ", so add a positive constant before it, or clamp"
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a root at 0": (
        lambda x: torch.sqrt(F.relu(x)),
        "the model: aten.sqrt.default has no bound here: sqrt of a value that may reach 0 has no finite slope; "
        "its entries are known to lie in [0, 1]" + HINT,
    ),
    "a root as a power": (
        lambda x: (x + 1) ** 0.5,
        "the model: aten.pow.Tensor_Scalar has no bound here: sqrt of a value that may reach 0 has no finite slope; "
        "its entries are known to lie in [-2.22e-16, 2.00]" + HINT,
    ),
    "an inverse root at 0": (
        lambda x: torch.rsqrt(x.abs()),
        "the model: aten.rsqrt.default has no bound here: rsqrt of a value that may reach 0 has no finite slope; "
        "its entries are known to lie in [0, 1]" + HINT,
    ),
    "a logarithm of what may be negative": (
        torch.log,
        "the model: aten.log.default has no bound here: log of a value that may reach 0 has no finite slope; "
        "its entries are known to lie in [-1, 1]" + HINT,
    ),
    "a reciprocal across 0": (
        torch.reciprocal,
        "the model: aten.reciprocal.default has no bound here: reciprocal of a value that may reach 0 has no finite slope; "
        "its entries are known to lie in [-1, 1]" + HINT,
    ),
    "an exponent that depends on the input": (
        lambda x: (x + 2) ** x,
        (
            "the model: a power whose exponent is not one number of the code has no rule; "
            "write a constant exponent, or exp(y * log(x)) with x bounded away from 0"
        ),
    ),
    "an exponent in between": (
        lambda x: (x + 2) ** 1.5,
        (
            "the model: a power with exponent 1.5 has no rule; covered are -1, -0.5, 0.5 and integers "
            "of absolute value 2 to 64"
        ),
    ),
    "a softplus turned round": (
        lambda x: F.softplus(x, beta=-1.0),
        "the model: aten.softplus.default has no bound here: softplus needs beta > 0 and a threshold between 0 and 1000",
    ),
    "a clamp to nan": (
        lambda x: x.clamp(min=float("nan")),
        "the model: aten.clamp.default with a bound of nan has no rule",
    ),
    "an elu that turns up": (
        lambda x: F.elu(x, alpha=-1.0),
        "the model: aten.elu.default with a negative factor has no rule",
    ),
    "a prelu of the input": (
        lambda x: F.prelu(x, x.mean(1)),
        "the model: a PReLU whose slope depends on the input has no rule",
    ),
    "a tower of exponentials": (
        lambda x: torch.exp(torch.exp(torch.exp(torch.exp(x + 3)))),
        "",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_function_without_a_finite_slope_is_refused_in_these_words(what: str) -> None:
    f, message = REFUSED[what]
    module, shape = small(f)
    with pytest.raises(Refusal) as caught:
        Interpreter(export(module, shape))("l2", BOX)
    assert str(caught.value) == message or (not message and "is beyond every number" in str(caught.value))


@pytest.mark.parametrize("f", [torch.sign, torch.floor, torch.round, torch.frac], ids=lambda f: f.__name__)
def test_a_function_that_jumps_has_no_rule(f: Callable[[Tensor], Tensor]) -> None:
    module, shape = small(f)
    with pytest.raises(NoRule, match=rf"^the model: no rule for aten\.{f.__name__}\.default; "):
        Interpreter(export(module, shape))("l2", BOX)


def test_a_gain_beyond_float64_is_a_finite_decimal() -> None:
    step = proved(Net(lambda net, x: torch.exp(x)), (2,), box=(0.0, 1000.0)).nodes[-1][1]
    assert Decimal("1.97E+434") < step.bound.within(frozenset()).gain.value < Decimal("1.98E+434")


# --- Branch and bound ------------------------------------------------------------------------------------------------

NUMBERS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "leaky-relu": ((0.2,), (-3.0,)),
    "clamp": ((-0.5, 0.75), (None, 0.5), (0.25, None)),
    "scale": ((-1.7,),),
    "divide": ((-0.3,),),
    "shift": ((0.4,),),
    "power": ((2,), (3,), (4,)),
}
FROM_ZERO = {"log", "sqrt", "rsqrt", "reciprocal"}


@settings(deadline=None, max_examples=60)
@given(a=st.floats(-6, 6), width=st.floats(0, 12), share=st.floats(0, 1))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_balls_of_a_function_hold_its_values_and_derivatives(
    name: str, a: float, width: float, share: float
) -> None:
    low = abs(a) + 0.05 if name in FROM_ZERO else a
    high = low + width
    inside = min(max(low + share * width, low), high)
    for numbers in NUMBERS.get(name, ((),)):
        held = FUNCTIONS[name](arb(low).union(arb(high)), *numbers)
        for x in (low, inside, high):
            for order, (ball, exact) in enumerate(zip(held, FUNCTIONS[name](arb(x), *numbers), strict=True)):
                assert ball.is_nan() or not exact.is_finite() or ball.overlaps(exact), (numbers, order)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_written_derivatives_are_the_limits_of_difference_quotients(name: str) -> None:
    for numbers in NUMBERS.get(name, ((),)):
        for k in range(-29, 30, 3):
            x, step = arb(k) / 10 + (arb(4) if name in FROM_ZERO else arb("0.013")), arb("1e-12")
            left, at, right = (FUNCTIONS[name](p, *numbers) for p in (x - step, x, x + step))
            for order in (0, 1):
                quotient = (right[order] - left[order]) / (2 * step)
                assert abs(quotient - at[order + 1]) < arb("1e-15"), (numbers, k, order)


FUNCTION_OF: dict[str, tuple[Any, Callable[[Any], Any], str, str, str]] = {
    # expression, the function, domain, its largest slope
    "quick gelu": (
        (("scale", 0, 1.0), ("sigmoid", 1), ("product", 0, 2)),
        lambda x: x / (1 + mpmath.exp(-x)),
        "-40",
        "1E+30",
        "1.0998394",
    ),
    "a square": ((("product", 0, 0),), lambda x: x * x, "-3", "2", "6"),
    "a bump": (
        (("power", 0, 2), ("negate", 1), ("exp", 2)),
        lambda x: mpmath.exp(-x * x),
        "-5",
        "7",
        "0.85776389",  # sqrt(2/e)
    ),
    "a kink": ((("abs", 0), ("shift", 1, 1.0), ("quotient", 0, 2)), lambda x: x / (1 + abs(x)), "-4", "9", "1"),
    "no slope": ((("scale", 0, 0.0), ("product", 0, 1)), lambda x: x * 0, "-1", "1", "0"),
    "a root": (
        (("product", 0, 0), ("shift", 1, 0.01), ("sqrt", 2)),
        lambda x: mpmath.sqrt(x * x + 0.01),
        "-1",
        "1",
        "0.99503720",
    ),
}


@pytest.mark.parametrize("name", FUNCTION_OF)
def test_a_proved_slope_is_the_largest_one_to_eight_digits(name: str) -> None:
    expression, _, low, high, largest = FUNCTION_OF[name]
    found = prove(expression, low, high, ROUNDOFF, SMALLEST)
    assert found is not None
    assert Decimal(largest) <= Decimal(found.slope) <= Decimal(largest) * (1 + Decimal("1.1E-7")) + Decimal("1E-25")


@pytest.mark.parametrize("name", FUNCTION_OF)
def test_values_and_difference_quotients_stay_within_what_is_proved(name: str) -> None:
    expression, f, low, high, _ = FUNCTION_OF[name]
    found = prove(expression, low, high, ROUNDOFF, SMALLEST)
    assert found is not None
    a, b = mpmath.mpf(low), min(mpmath.mpf(high), 50)
    with mpmath.workdps(40):
        xs = [a + (b - a) * k / 400 for k in range(401)]
        values = [f(x) for x in xs]
        assert all(mpmath.mpf(found.image[0]) <= v <= mpmath.mpf(found.image[1]) for v in values)
        for x, y, u, v in zip(xs, xs[7:], values, values[7:], strict=False):
            assert abs(v - u) <= mpmath.mpf(found.slope) * (y - x)


def test_floating_point_stays_within_what_is_proved_of_the_execution() -> None:
    for f, expression in (
        (quick_gelu, (("scale", 0, 1.702), ("sigmoid", 1), ("product", 0, 2))),
        (smooth_size, (("product", 0, 0), ("shift", 1, 0.01), ("sqrt", 2))),
    ):
        found = prove(expression, "-4", "4", str(2.0**-24), "3E-45")
        assert found is not None
        x = torch.linspace(-4, 4, 4001)
        off = (f(x).double() - f(x.double())).abs().max()
        assert 1e-9 < float(off) <= float(found.off) + 1e-12 <= 1e-4


@pytest.mark.parametrize(
    ("expression", "low"),
    [
        ((("sqrt", 0), ("product", 0, 1)), "0"),
        ((("sqrt", 0),), "0"),
        ((("log", 0), ("product", 0, 1)), "-1"),
        ((("reciprocal", 0), ("product", 0, 1)), "-1"),
        ((("exp", 0), ("exp", 1), ("product", 1, 2)), "0"),
    ],
    ids=str,
)
def test_what_has_no_finite_slope_is_not_proved(expression: Any, low: str) -> None:
    assert prove(expression, low, "100", ROUNDOFF, SMALLEST) is None


def test_the_budget_ends_the_search_with_a_bound_that_still_holds() -> None:
    # sin(x) sin(sin(1000 x)...) has very many peaks: the bound is rough, but above every slope.
    line: list[tuple[Any, ...]] = [("scale", 0, 1000.0), ("sin", 1), ("product", 0, 2)]
    for k in range(3, 37):
        line.append(("sin" if k % 2 else "cos", k) if k % 3 else ("product", k, 0))
    started = time.monotonic()
    found = prove(tuple(line), "-3", "3", ROUNDOFF, SMALLEST)
    assert time.monotonic() - started < 30
    assert found is not None
    steepest = max(abs(run(tuple(line), arb(k) / 97)[-1][1]).lower() for k in range(-290, 290))
    assert arb(found.slope) >= steepest > 0


def test_a_long_chain_of_joined_operators_is_bounded_in_time() -> None:
    def forward(x: Tensor) -> Tensor:
        for _ in range(60):
            x = x * torch.sigmoid(x) + torch.sin(x)
        return x

    started = time.monotonic()
    module, shape = small(forward)
    with contextlib.suppress(Refusal):
        Interpreter(export(module, shape))("l2", BOX)
    assert time.monotonic() - started < 60


# --- Together in the ledger ------------------------------------------------------------------------------------------


def test_the_ledger_shows_the_function_that_was_proved() -> None:
    proof = proved(Net(lambda net, x: quick_gelu(x)), (2,), box=(-9.0, 9.0))
    _, step = proof.nodes[-1]
    assert step.rule == "curve"
    assert step.attributes["expression"] == ["v1 = v0 * 1.702", "v2 = sigmoid(v1)", "v3 = v0 * v2"]
    assert str(step.evidence["slope"]) == "1.0998394"
    assert step.inputs[0] == proof.program.input.name


def test_a_curve_proved_on_a_smaller_range_is_refused() -> None:
    step = proved(Net(lambda net, x: quick_gelu(x)), (2,), box=(-9.0, 9.0)).nodes[-1][1]
    wider = Bound((1, 2), {frozenset(): Reach(Up.of(10), ONE, ZERO)})
    with pytest.raises(RecordError, match=r"^curve: its slope was proved on a smaller range than this graph reaches$"):
        derive("curve", [wider], facts_for("float64", step.attributes, step.evidence))


def test_gelu_written_out_has_the_slope_of_gelu() -> None:
    proof = proved(Net(lambda net, x: gelu_new(x)), (2,), box=(-9.0, 9.0))
    assert str(proof.nodes[-1][1].evidence["slope"]) == "1.1289931"


def test_a_prelu_with_a_slope_per_channel_moves_by_the_steepest() -> None:
    # Not among the cases: torch cannot differentiate it under vmap.
    w = torch.tensor([0.25, -3.0, 0.5])
    proof = proved(Net(lambda net, x: F.prelu(x, w)), (3,))
    node, step = proof.nodes[-1]
    assert step.bound.within(step.bound.axes).gain == Up.of(3)
    xs = torch.linspace(-1, 1, 30, dtype=torch.float64).view(10, 3)
    assert torch.equal(proof.values(node, xs)[:, 0], torch.where(xs > 0, xs, w.double() * xs))


CLAMPED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "between": lambda net, x: x.clamp(0.25 * net.w - 0.5, 0.25 + net.w.abs()),
    "from below": lambda net, x: torch.clamp_min(x, net.w),
    "from above": lambda net, x: torch.clamp_max(x, net.w),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", CLAMPED)
def test_a_clamp_to_a_bound_per_entry_obeys_the_laws(name: str, norm: str) -> None:
    case = Case(name, (3,), of(CLAMPED[name], w=(3,)), box=(-2.0, 2.0))
    proof = proof_of(case, 0, norm)
    contained(proof, norm, case.shape, case.box)
    climbed(proof, norm, case.shape, case.box)
    assert proof.nodes[-1][1].bound.within(frozenset()).gain == ONE


def test_where_operators_alone_have_no_bound_the_function_may_have_one() -> None:
    # x * x is bounded by x's size on both sides of 0 operator by operator, so that the root of x * x + 0.01 is not.
    proof = proved(Net(lambda net, x: smooth_size(x)), (2,))
    gain = proof.nodes[-1][1].bound.within(frozenset()).gain.value
    assert Decimal("0.995037") < gain < Decimal("0.9950373")


@pytest.mark.parametrize(
    ("name", "function", "box"),
    [
        ("elu", F.elu, (-2.0, -1.0)),
        ("elu alpha 3", lambda x: F.elu(x, alpha=3.0), (-4.0, -1.0)),
        ("selu", F.selu, (-2.0, -0.5)),
        ("celu", lambda x: F.celu(x, alpha=0.5), (-2.0, -1.0)),
    ],
)
def test_the_image_of_an_elu_of_negative_numbers_holds_its_values(
    name: str, function: Callable[[Tensor], Tensor], box: tuple[float, float]
) -> None:
    step = proved(Net(lambda net, x: function(x)), (2,), box=box).nodes[-1][1]
    ends = function(torch.tensor(box, dtype=torch.float64))
    assert step.bound.range is not None
    assert float(step.bound.range.low) <= float(ends.min())
    assert float(step.bound.range.high) >= float(ends.max())


def test_a_gelu_of_its_own_is_not_read_as_part_of_a_written_function() -> None:
    # x (1 + erf) / 2 cancels far below 0: its rounding is relative to x, which only its own rule charges for.
    proof = proved(Net(lambda net, x: F.gelu(x) + F.gelu(x) * F.gelu(x)), (1,), box=(-8.0, -6.0))
    assert proof.ledger.pairs.error.to_float() > 1e-16
