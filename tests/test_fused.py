"""Fused rules never loosen a certificate, say what they refuse, and measure the matrices that they speak of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.ledger import Ledger, facts_for
from certkit.bounds.number import Interval, Up
from certkit.bounds.rules import derive
from certkit.bounds.rules.fused import SLOPES
from certkit.config import LanguageModelConfig, MultilayerConfig, VisionTransformerConfig
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.engine.readers import entries, fused
from certkit.errors import RecordError
from certkit.models import create
from certkit.models.attention import Rotary
from certkit.models.gpt import AtEmbeddings, LanguageModel
from tests.laws import NORMS, norms_of, program_of
from tests.modules import BOX, NOISE, Case, MultiHead, Net, points, prove, slopes
from tests.table import CASES

FUSED = [(rule, case) for rule in ("linear-parts", "combination", "expansion") for case in CASES[rule]]


def unfused(program: Program, norm: str, box: tuple[float, float]) -> Ledger:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "PATTERNS", ())
        return Interpreter(program)(norm, box)


def never_looser(program: Program, norm: str, box: tuple[float, float]) -> None:
    with_fused, without = Interpreter(program)(norm, box), unfused(program, norm, box)
    better = {step.node: step.bound for step in with_fused.steps}
    for step in without.steps:
        if "." in step.node:  # constants are numbered by the steps before them
            continue
        for axes, reach in norms_of(step.bound):
            found = better[step.node].within(axes)
            assert (found.size, found.gain) <= (reach.size, found.gain)
            assert found.gain <= reach.gain
            assert found.error <= reach.error
    for row, other in zip(with_fused.pairs.gain, without.pairs.gain, strict=True):
        assert all(a <= b for a, b in zip(row, other, strict=True))


@pytest.mark.parametrize(("rule", "case"), [pytest.param(r, c, id=f"{r}: {c.name}") for r, c in FUSED])
def test_no_value_is_bounded_worse_than_by_one_rule_per_operator(rule: str, case: Case) -> None:
    for norm in NORMS:
        never_looser(program_of(case, 0), norm, case.box)


GPT = LanguageModelConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2)
MODELS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "vit": (create(VisionTransformerConfig(residual=0.5)), (1, 8, 8), "l2"),
    "mlp": (create(MultilayerConfig(hidden=(32, 16), activation="relu")), (1, 8, 8), "linf"),
}


def gpt(config: LanguageModelConfig = GPT) -> nn.Module:
    torch.manual_seed(0)
    model = create(config)
    assert isinstance(model, LanguageModel)
    return AtEmbeddings(model).eval()


@pytest.mark.parametrize("name", MODELS)
def test_no_model_is_certified_worse(name: str) -> None:
    module, shape, norm = MODELS[name]
    never_looser(export(module.eval(), shape), norm, (0.0, 1.0))


def test_a_language_model_with_heads_and_rotations_is_certified_far_better() -> None:
    program = export(gpt(), (8, 16))
    never_looser(program, "token", (-1.5, 1.5))
    better, plain = Interpreter(program)("token", (-1.5, 1.5)), unfused(program, "token", (-1.5, 1.5))
    assert better.pairs.gain[0][1] * 50 <= plain.pairs.gain[0][1]


def test_a_ledger_with_fused_rules_is_derived_again() -> None:
    ledger = Interpreter(export(gpt(), (8, 16)))("token", (-1.5, 1.5))
    assert {"linear-parts", "combination", "expansion"} <= {step.rule for step in ledger.steps}
    ledger.check()


# --- What is measured -------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), heads=st.integers(1, 3), width=st.integers(1, 3), view=st.integers(0, 3))
def test_parts_are_measured_as_their_rows_are(seed: int, heads: int, width: int, view: int) -> None:
    torch.manual_seed(seed)
    third = 3 if view == 2 else 1
    w = torch.randn(third * heads * width, 4)
    rows = w.reshape(third, heads, width, 4)

    def forward(net: Net, x: Tensor) -> Tensor:
        y = F.linear(x, w)
        if view == 0:
            return y.view(1, 2, heads, width).transpose(1, 2).abs().flatten(1)
        if view == 1:
            return y.view(1, 2, width, heads).permute(0, 3, 1, 2).abs().flatten(1)
        if view == 2:
            return y.view(1, 2, 3, heads, width).permute(2, 0, 3, 1, 4)[1].abs().flatten(1)
        return y[..., ::2].abs().flatten(1)

    steps = [s for s in prove(Net(forward), (2, 4)).ledger.steps if s.rule == "linear-parts"]
    if view == 1:
        rows = w.reshape(width, heads, 4).transpose(0, 1)[None]
    elif view == 2:
        rows = rows[1:2]
    elif view == 3:
        rows = w[::2][None, None]
    for step in steps:
        joint = float(torch.linalg.matrix_norm(rows.double().reshape(-1, 4), ord=2))
        one = max(float(torch.linalg.matrix_norm(block.double(), ord=2)) for block in rows.reshape(-1, *rows.shape[2:]))
        assert joint * (1 - NOISE) <= step.evidence["sigma0"].to_float() <= joint * (1 + NOISE)
        if "sigma1" in step.evidence:
            assert one * (1 - NOISE) <= step.evidence["sigma1"].to_float() <= one * (1 + NOISE)
    assert len(steps) >= (heads > 1 and width > 1 and view < 3)


def test_rotations_cost_nothing_and_other_factors_their_pairs_length() -> None:
    rotary = Rotary(5, 6)
    (step,) = [
        s for s in prove(Net(lambda net, x: rotary(x).flatten(1)), (2, 5, 6)).ledger.steps if s.rule == "combination"
    ]
    assert step.attributes["mixed"] == [3]
    assert 1 <= step.evidence["stretch"].to_float() <= 1 + 2e-7  # cos and sin are float32
    c, s = torch.tensor([3.0, 1.0, 3.0, 1.0]), torch.tensor([4.0, 0.0, 4.0, 0.0])
    pairs = Net(lambda net, x: x * c + torch.cat((-x[:, 2:], x[:, :2]), 1) * s)
    (step,) = [step for step in prove(pairs, (4,)).ledger.steps if step.rule == "combination"]
    assert 5 <= step.evidence["stretch"].to_float() <= 5 * (1 + 1e-12)
    assert 7 <= step.evidence["row"].to_float() <= 7 * (1 + 1e-12)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), terms=st.integers(2, 4))
def test_the_matrix_of_a_combination_never_stretches_by_more_than_is_measured(seed: int, terms: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(terms, 6, generator=generator)
    module = Net(lambda net, x: sum((x.roll(k, 1) * factors[k] for k in range(1, terms)), start=x * factors[0]))
    found = prove(module, (6,))
    node, step = found.nodes[-1]
    exact = found.jacobians(node, torch.zeros(1, 6, dtype=torch.float64))[0]
    assert step.rule == "combination"
    assert float(torch.linalg.matrix_norm(exact, ord=2)) <= step.evidence["stretch"].to_float() * (1 + NOISE)
    assert float(exact.abs().sum(1).max()) == pytest.approx(step.evidence["row"].to_float(), rel=1e-9)


def test_a_value_that_all_rows_read_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net(lambda net, x: (x - torch.cat([x[:, :1]] * 16, 1)).flatten(1))
    assert "combination" in rules_of(module, (16, 1))
    monkeypatch.setattr(entries, "MAX_ENTRIES", 64)
    assert "combination" not in rules_of(module, (16, 1))


def test_an_expansion_measures_the_product_of_the_matrices() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(3, 5)
    module = Net(lambda net, x: 0.5 * x + 2 * F.linear(F.gelu(F.linear(x, a)), b))
    step = prove(module, (3,)).ledger.steps[-1]
    # The linear part is 1/2 + 2 * 1/2 * BA, and the remainder's map is 2B.
    joint = np.linalg.norm(0.5 * np.eye(3) + b.double().numpy() @ a.double().numpy(), 2)
    alone = np.linalg.norm(2 * b.double().numpy(), 2)
    assert step.attributes["terms"] == [[[0, "gelu", 0.5], [1, "", 0.0]]]
    assert step.evidence["sigma0.0"].to_float() == pytest.approx(alone, rel=1e-12)
    assert step.evidence["sigma0.1"].to_float() == pytest.approx(joint, rel=1e-12)
    assert step.evidence["sigma0.1"].to_float() >= joint * (1 - 1e-15)


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_of_activations_span_what_they_really_do(name: str) -> None:
    functions = {
        "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
        **{n: getattr(F, n) for n in ("relu", "gelu", "silu", "tanh", "sigmoid", "softplus")},
    }
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functions[name](x).sum(), x)
    low, high = float(SLOPES[name].low), float(SLOPES[name].high)
    assert low <= float(slope.min()) <= low + 1e-3
    assert high - 1e-3 <= float(slope.max()) <= high


TINY, HUGE = 1e-200, 1e200
BEYOND = {
    # The factors of the first term multiply to 1, by way of 1e-400.
    "factors that vanish on the way": (lambda net, x: x * TINY * TINY * HUGE * HUGE + 0.5 * x.roll(1, 1), 1e150),
    "squares of factors": (lambda net, x: x * HUGE - x.roll(1, 1) * HUGE, 1e-150),
    "a product of matrices": (lambda net, x: F.linear(F.linear(x, net.w), net.w), 1e-150),
}


@pytest.mark.parametrize("name", BEYOND)
def test_products_that_leave_the_range_of_numbers_leave_the_bound_to_the_operators(name: str) -> None:
    forward, end = BEYOND[name]
    found = prove(Net(forward, w=1e160 * torch.eye(3, dtype=torch.float64)), (3,), box=(-end, end))
    assert not {"combination", "expansion"} & {step.rule for step in found.ledger.steps}
    node, step = found.nodes[-1]
    moved = found.values(node, torch.full((1, 3), end, dtype=torch.float64)).abs().max()
    assert float(moved) <= step.bound.within(frozenset()).gain.to_float() * end * (1 + NOISE)


# --- What is left alone, and refused ----------------------------------------------------------------------------------


def rules_of(module: nn.Module, shape: tuple[int, ...]) -> set[str]:
    return {step.rule for step in prove(module, shape).ledger.steps}


def test_what_only_looks_like_a_pattern_is_left_to_the_operators() -> None:
    w = torch.randn(4, 4)
    through_softmax = Net(lambda net, x: (F.linear(torch.softmax(F.linear(x, w), -1), w) + x).flatten(1))
    assert "expansion" not in rules_of(through_softmax, (2, 4))
    other_value = Net(lambda net, x: (x * 2 + torch.cat((-x.abs()[..., 2:], x[..., :2]), -1)).flatten(1))
    assert "combination" not in rules_of(other_value, (2, 4))
    pieces = Net(lambda net, x: (x.chunk(2, -1)[0] - x.chunk(2, -1)[1]).flatten(1))
    assert "combination" not in rules_of(pieces, (2, 4))
    joined = Net(lambda net, x: torch.add(*x.chunk(2, -1)).flatten(1))
    assert rules_of(joined, (2, 4)) == {"input", "part", "add", "relabel"}
    merged = Net(lambda net, x: F.linear(x, w).flatten(1).view(1, 4, 2).abs().flatten(1))
    assert "linear-parts" not in rules_of(merged, (2, 4))


def test_a_function_of_several_operators_inside_a_fused_rule_is_derived_again() -> None:
    # relu(z) - z is one function of z, and the same a sum of maps of x.
    w = torch.randn(4, 4)

    def forward(net: Net, x: Tensor) -> Tensor:
        z = F.linear(x, w)
        return F.linear(F.relu(z) - z, w)

    ledger = prove(Net(forward), (4,)).ledger
    names = [step.node for step in ledger.steps if step.node.startswith("sub")]
    assert names == ["sub.minus", "sub.operators", "sub.function", "sub"]


def test_six_equal_heads_of_one_projection_move_as_one() -> None:
    # The projection stretches by sqrt(6), each head by 1.
    w = torch.eye(4).repeat(6, 1)
    module = Net(lambda net, x: F.linear(x, w).view(1, 2, 6, 4).transpose(1, 2).abs().flatten(1))
    step = next(s for s in prove(module, (2, 4)).ledger.steps if s.rule == "linear-parts")
    assert 1 <= step.bound.within(frozenset({3})).gain.to_float() <= 1 + 1e-12
    assert step.bound.within(frozenset({1, 2, 3})).gain.to_float() >= 6**0.5 * (1 - NOISE)


def a_bound(*shape: int) -> Bound:
    one = Up.of(1)
    return Bound(shape, {frozenset(range(1, len(shape))): Reach(one, one, Up.of(0))}, Interval.of(-1, 1))


REFUSED = [
    ("combination", [(1, 2)], {}, r"a fused rule reads values and, last, the operators' bound, got 1 inputs"),
    ("combination", [(1, 2)] * 3, {}, r"the rule reads one value beside the operators' bound, got 2"),
    ("combination", [(1, 3), (1, 2)], {"mixed": [1]}, r"a combination of entries keeps the shape \(1, 3\), but \(1, 2\) is stated"),
    ("combination", [(1, 2), (1, 2)], {"mixed": [2]}, r"\[2\] does not list axes of \(1, 2\)"),
    ("combination", [(1, 2), (1, 2)], {"mixed": [1, 1]}, r"\[1, 1\] names an axis twice"),
    ("linear-parts", [(1, 3, 4), (1, 2)], {"places": [[2, [1]]], "parts": []}, r"axis 2 of \(1, 3, 4\) does not number the places along axes \[1\] of \(1, 2\)"),
    ("linear-parts", [(1, 1, 4), (1, 2)], {"places": [[1, [1]]], "parts": [[1]]}, r"axis 1 of \(1, 1, 4\) does not number the places along axes \[1\] of \(1, 2\)"),
    ("linear-parts", [(1, 3, 4), (1, 3, 2)], {"places": [[1, [1]]], "parts": []}, r"the axes of \(1, 3, 2\) are not each a place or a feature"),
    ("linear-parts", [(1, 3, 4), (1, 3, 2)], {"places": [[1, [1]]], "parts": [[1, 2]]}, r"the axes of \(1, 3, 2\) are not each a place or a feature"),
    ("expansion", [(1, 2), (1, 2)], {"terms": [[]], "bare": False}, r"an expansion has at least one term"),
    ("expansion", [(1, 2), (1, 2)], {"terms": [[[1, "", 0.0]]], "bare": False}, r"an expansion of 1 values has no input 1"),
    ("expansion", [(1, 3, 2), (1, 2, 2)], {"terms": [[[0, "", 0.0]]], "bare": False}, r"a map of the last axis cannot make \(1, 2, 2\) of \(1, 3, 2\)"),
    ("expansion", [(1, 2), (1, 2)], {"terms": [[[0, "sin", 0.0]]], "bare": False}, r"'sin' is no function whose slopes are known: relu, gelu, gelu-tanh, silu, tanh, sigmoid, softplus"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "shapes", "attributes", "message"), REFUSED)
def test_a_forged_step_is_refused(
    rule: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    evidence = dict.fromkeys(("sigma0", "bias0", "stretch", "row", "sigma0.0", "row0.0"), Up.of(1))
    facts = facts_for("float64", {"shape": list(shapes[-1]), **attributes}, evidence)
    with pytest.raises(RecordError, match=f"^{message}$"):
        derive(rule, [a_bound(*shape) for shape in shapes], facts)


# --- How much of the bound is attained --------------------------------------------------------------------------------


def test_attention_bound_on_two_clusters_is_within_a_factor_two_of_attained() -> None:
    best = 0.0
    for scale in (0.25, 1.0, 4.0):
        module = MultiHead(1, scale=scale)
        found = prove(module, (6, 1))
        node, step = found.nodes[-1]
        xs = torch.cat([points((6, 1), BOX, 64, 3), torch.ones(1, 6, 1, dtype=torch.float64)])
        attained = float(slopes(found.jacobians(node, xs), step.bound.shape, step.bound.axes, "l2").max())
        claimed = step.bound.within(step.bound.axes).gain.to_float()
        assert attained <= claimed * (1 + NOISE)
        best = max(best, attained / claimed)
    assert best >= 0.5
