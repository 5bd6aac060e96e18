"""A slope that is called attained is attained: it is never above the quotient of its own pair, and comes near what is known."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.bound import Axes
from certkit.config import preset
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.engine.slopes import Slope, attained_slope, step_slopes
from certkit.errors import RecordError
from certkit.training.train import made
from tests.modules import MultiHead, points, prove
from tests.table import CASES

TALL = torch.tensor([[3.0, 4.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("function", "at", "norm", "axes", "slope"),
    [
        # Singular values of [[3, 4], [0, 1]]: their squares add up to 26 and multiply to 9.
        (lambda x: F.linear(x, TALL.double()), [[0.1, 0.2]], "l2", None, math.sqrt(13 + math.sqrt(160))),
        (lambda x: F.linear(x, TALL.double()), [[0.1, 0.2]], "l2", frozenset(), 5.0),
        (lambda x: F.linear(x, TALL.double()), [[0.1, 0.2]], "linf", frozenset(), 7.0),
        (lambda x: F.linear(x, TALL.double()), [[0.1, 0.2]], "linf", None, math.hypot(7.0, 1.0)),
        (lambda x: 2 * x, [[[0.0, 0.0]] * 3], "l2", frozenset({2}), 2.0),
        (lambda x: 2 * x, [[[0.0, 0.0]] * 3], "linf", frozenset({2}), 2 * math.sqrt(2)),
        (lambda x: 2 * x, [[[0.0, 0.0]] * 3], "token", None, 2 * math.sqrt(3)),
        (lambda x: 2 * x, [[[0.0, 0.0]] * 3], "token", frozenset(), 2.0),
        (F.gelu, [[0.9]], "l2", None, 1.128904145),
        (lambda x: x.square(), [[0.3]], "l2", None, 2.0),
        (lambda x: x.square(), [[0.3, -0.2]], "linf", frozenset(), 2.0),
    ],
)
def test_known_slopes_are_found(
    function: object, at: list[list[float]], norm: str, axes: Axes | None, slope: float
) -> None:
    box = (-2.0, 2.0) if function is F.gelu else (-1.0, 1.0)
    found = attained_slope(function, torch.tensor(at), norm, axes=axes, box=box, error=1e-14)  # type: ignore[arg-type]
    assert slope * (1 - 1e-3) <= found.value <= slope


@settings(max_examples=40)
@given(st.data())
def test_no_slope_exceeds_the_quotient_of_its_pair_in_exact_fractions(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    power = data.draw(st.sampled_from([-100, -8, 0, 8, 100]))
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator).double() * 2.0**power
    x = torch.randn(3, columns, generator=generator)
    # A map of small integers is exact in float64, so that nothing but the quotient itself is rounded.
    w = (w / w.abs().max() * 8).round() * 2.0**power
    found = attained_slope(lambda v: F.linear(v, w), x, "l2", rounds=2, error=0.0)
    moved = [Fraction(0)] * rows
    for i, row in enumerate(w.tolist()):
        moved[i] = sum((Fraction(a) * (Fraction(p) - Fraction(q)) for a, p, q in zip(row, found.x.tolist(), found.y.tolist(), strict=True)), Fraction(0))  # fmt: skip
    apart = sum((Fraction(p) - Fraction(q)) ** 2 for p, q in zip(found.x.tolist(), found.y.tolist(), strict=True))
    rounding = Fraction(1 + 1e-9)  # of F.linear at two points 1e-4 apart, which ``error`` would be for
    assert Fraction(found.value) ** 2 * apart <= sum(m**2 for m in moved) * rounding
    largest = float(torch.linalg.matrix_norm(w, ord=2))
    assert found.value >= 0.5 * largest


def test_what_the_function_is_off_by_is_taken_off_twice() -> None:
    x = torch.zeros(1, 2)
    full, less, none = (attained_slope(lambda v: 3 * v, x, "l2", rounds=1, error=e).value for e in (0.0, 1e-5, 1.0))
    assert less == pytest.approx(full - 2e-5 / 1e-4, rel=1e-6)
    assert none == 0.0


def test_a_function_that_moves_nothing_has_slope_0() -> None:
    found = attained_slope(lambda v: 0 * v, torch.zeros(2, 3), "l2", rounds=2)
    assert found.value == 0.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pairs_stay_in_the_box_and_corners_are_no_dead_end(norm: str) -> None:
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    found = attained_slope(lambda v: 2 * v, corners, norm, axes=frozenset(), box=(-1.0, 1.0))
    assert 1.999 < found.value <= 2
    for point in (found.x, found.y):
        assert -1 <= float(point.min()) <= float(point.max()) <= 1


def test_tokens_stay_as_short_as_the_domain_says() -> None:
    # x² per entry is steepest where tokens are longest.
    starts = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    found = attained_slope(lambda v: v.square(), starts, "token", axes=frozenset(), box=(-9.0, 9.0), longest=0.5)
    assert 0.99 < found.value <= 1
    assert float(torch.stack([found.x, found.y]).norm(dim=-1).max()) <= 0.5


@pytest.mark.parametrize(
    ("norm", "box", "message"),
    [
        ("l1", (-1.0, 1.0), "the threat's norm must be one of l2, linf, token, got 'l1'"),
        ("token", (0.5, 1.0), "tokens can be shortened in a box that holds 0 only, got [0.5, 1.0]"),
    ],
)
def test_another_norm_and_another_domain_are_refused(norm: str, box: tuple[float, float], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        attained_slope(lambda v: v, torch.zeros(1, 2, 2), norm, box=box, longest=1.0)
    assert str(caught.value) == message


@pytest.mark.parametrize("rule", sorted(CASES))
def test_the_search_reads_every_rule_and_stays_within_its_gain(rule: str) -> None:
    case = CASES[rule][0]
    proof = prove(case.build(lambda *size: torch.randn(*size, generator=torch.Generator().manual_seed(1))), case.shape, box=case.box, fixed=case.fixed and case.fixed())  # fmt: skip
    node, step = proof.nodes[-1]
    reach = step.bound.within(step.bound.axes)
    starts = points(case.shape, case.box, 8, 0)
    found = attained_slope(
        lambda x: proof.value(node, x), starts, "l2", box=case.box, error=reach.error.to_float(), rounds=3
    )
    assert found.value <= reach.gain.to_float()


def test_every_operator_of_a_transformer_gets_a_slope_below_its_gain() -> None:
    torch.manual_seed(0)
    model = made(preset("digits-vit"), "cpu").eval()
    program = export(model, (1, 8, 8))
    ledger = Interpreter(program)("l2", (0.0, 1.0))
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found: dict[str, Slope] = step_slopes(program, ledger, images, rounds=1)
    gains = {step.node: step.bound.within(step.bound.axes).gain.to_float() for step in ledger.steps}
    assert len(found) >= 40
    assert all(0 < slope.value <= gains[name] for name, slope in found.items())
    assert {"linear", "scaled_dot_product_attention", program.output.name} <= found.keys()
    assert found["linear"].value == pytest.approx(1, abs=1e-3)
    assert found[program.output.name].value > 0.5


def test_attention_is_measured_across_its_heads() -> None:
    # A bound that forgot the heads would claim 1: arXiv 2507.13338.
    module: nn.Module = MultiHead(6, scale=1.0)
    program = export(module, (4, 12))
    ledger = Interpreter(program)("l2", (-2.0, 2.0))
    starts: Tensor = points((4, 12), (-2.0, 2.0), 32, 1)
    assert step_slopes(program, ledger, starts)["scaled_dot_product_attention"].value > 1.4
