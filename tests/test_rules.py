"""Every rule, over a table of modules: no pair of inputs, no search and no float ever goes beyond the bound."""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import certkit.bounds.bound
from certkit.bounds.bound import Axes, Bound, Reach
from certkit.bounds.ledger import from_json, to_json
from certkit.bounds.number import Up
from certkit.bounds.rules import RULES, why
from certkit.engine.execute import centres
from certkit.engine.program import export
from tests.laws import NORMS, climbed, contained, module_of, norms_of, program_of, proof_of
from tests.modules import BOX, Case, MultiHead, Net, points, prove, slopes, weights
from tests.table import CASES

SEEDS = (0, 1)
every_case = pytest.mark.parametrize(
    ("rule", "case"), [pytest.param(rule, case, id=f"{rule}: {case.name}") for rule in CASES for case in CASES[rule]]
)
every_norm = pytest.mark.parametrize("norm", NORMS)


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@every_case
def test_every_case_exercises_its_rule_and_no_case_needs_the_sorting_rule_by_accident(rule: str, case: Case) -> None:
    used = {step.rule for step in proof_of(case, 0, "l2").ledger.steps}
    assert rule in used
    assert ("sorted-pairs" in used) == (rule == "sorted-pairs")


@every_norm
@every_case
def test_no_two_inputs_move_a_value_apart_by_more_than_the_gain(rule: str, case: Case, norm: str) -> None:
    for seed in SEEDS:
        contained(proof_of(case, seed, norm), norm, case.shape, case.box)


@every_norm
@every_case
def test_no_search_finds_a_slope_beyond_the_gain(rule: str, case: Case, norm: str) -> None:
    climbed(proof_of(case, 0, norm), norm, case.shape, case.box)


@every_norm
@every_case
def test_a_larger_box_never_has_a_smaller_bound(rule: str, case: Case, norm: str) -> None:
    boxes = [(-0.25, 0.5), (-1.0, 1.0), (-1.5, 4.0)]
    proofs = [proof_of(case, 0, norm, box) for box in boxes]
    for inner, outer in itertools.pairwise(proofs):
        for small, large in zip(inner.ledger.steps, outer.ledger.steps, strict=True):
            for axes, reach in norms_of(small.bound):
                wider = large.bound.within(axes)
                assert (reach.size, reach.gain, reach.error) == tuple(
                    min(a, b) for a, b in zip(numbers(reach), numbers(wider), strict=True)
                )


def numbers(reach: Reach) -> tuple[Up, Up, Up]:
    return reach.size, reach.gain, reach.error


@every_case
def test_the_float32_module_errs_by_no_more_than_its_ledger_says(rule: str, case: Case) -> None:
    if case.fixed is not None:
        pytest.skip("the module itself cannot fix its attention")
    program = program_of(case, 0)
    single = prove(program, case.shape, box=case.box, arithmetic="float32").ledger.pairs.error.to_float() / 2
    double = prove(program, case.shape, box=case.box).ledger.pairs.error.to_float() / 2
    xs = points(case.shape, case.box, 64, 5).float()
    module = module_of(case)
    with torch.no_grad():
        observed = float((torch.cat([module(x[None]) for x in xs]).double() - centres(program, xs)).abs().max())
    assert observed <= single + double
    assert single <= 1e-2


def test_a_number_of_the_code_is_rounded_in_float32_and_charged_for() -> None:
    # x - 0.1 near 0.1: all that is left is that 0.1 is no float32.
    module, box = Net(lambda net, x: x - 0.1), (0.1, 0.1 + 2.0**-20)
    single = prove(module, (2,), box=box, arithmetic="float32").ledger.pairs.error.to_float() / 2
    double = prove(module, (2,), box=box).ledger.pairs.error.to_float() / 2
    x = torch.full((1, 2), 0.1 + 2.0**-21)
    observed = float((module(x).double() - centres(export(module, (2,)), x)).abs().max())
    assert 1e-9 < observed <= single + double <= 2e-8
    assert double <= 1e-16


def test_the_float64_centre_of_linear_rules_errs_from_exact_fractions_by_no_more_than_stated() -> None:
    w, b = weights(6)(3, 4).double(), weights(7)(3).double()
    module = Net(lambda net, x: (F.linear(x, net.w, net.b) * 0.1 - x[:, :3]).mean(1, keepdim=True) / 3, w=w, b=b)
    module.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    proof = prove(module, (4,))
    stated = Fraction(proof.ledger.pairs.error.to_float()) / 2
    for x in points((4,), BOX, 32, 8):
        entries = [Fraction(v) for v in x.tolist()]
        rows = [
            sum(Fraction(a) * v for a, v in zip(row, entries, strict=True)) + Fraction(c)
            for row, c in zip(w.tolist(), b.tolist(), strict=True)
        ]
        exact = sum(r * Fraction(0.1) - v for r, v in zip(rows, entries, strict=False)) / 9
        assert abs(Fraction(float(proof.value(proof.program.output, x[None]))) - exact) <= stated
    assert stated <= Fraction(1, 10**14)


def test_the_float64_centre_of_attention_and_gelu_errs_from_fifty_digits_by_no_more_than_stated() -> None:
    proof = prove(
        Net(lambda net, x: F.gelu(F.scaled_dot_product_attention(x, 2 * x, x, scale=0.7, is_causal=True)).flatten(1)),
        (3, 2),
        box=(-3.0, 3.0),
    )
    stated = mpmath.mpf(proof.ledger.pairs.error.to_float()) / 2
    with mpmath.workdps(50):
        for x in points((3, 2), (-3.0, 3.0), 16, 9):
            tokens = [[mpmath.mpf(v) for v in row] for row in x.tolist()]
            computed = proof.value(proof.program.output, x[None])[0].tolist()
            for i, query in enumerate(tokens):
                keys = tokens[: i + 1]
                powers = [mpmath.exp(mpmath.mpf(0.7) * 2 * mpmath.fdot(query, key)) for key in keys]
                for e in range(2):
                    y = mpmath.fdot(powers, [key[e] for key in keys]) / mpmath.fsum(powers)
                    exact = y * (1 + mpmath.erf(y / mpmath.sqrt(2))) / 2
                    assert abs(computed[2 * i + e] - exact) <= stated
    assert stated <= 1e-12


@pytest.mark.parametrize("box", [(-0.5, 0.5), (-2.0, 2.0)])
def test_six_heads_never_move_more_than_their_bound_on_random_and_two_cluster_inputs(box: tuple[float, float]) -> None:
    # Newhouse et al. 2025 ignore the heads: slope 1.66 at a claimed 1.0.
    module = MultiHead(6, scale=1.0)
    proof = prove(module, (4, 12), box=box)
    node, step = proof.nodes[-1]
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randn(16, 2, 12, generator=generator, dtype=torch.float64).sign() * box[1]
    side = torch.randint(0, 2, (16, 4), generator=generator)
    two = torch.take_along_dim(clusters, side[:, :, None].expand(-1, -1, 12), dim=1)
    xs = torch.cat([points((4, 12), box, 32, 1), two])
    found = slopes(proof.jacobians(node, xs), step.bound.shape, step.bound.axes, "l2")
    assert 1.0 < float(found.max()) <= step.bound.within(step.bound.axes).gain.to_float()


def test_a_bound_that_ignores_the_heads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES["attention"] if case.name == "six heads, identity")
    contained(proof_of(case, 0, "l2"), "l2", case.shape, case.box)
    within = Bound.within

    def ignoring(bound: Bound, axes: Axes) -> Reach:
        known = [reach for held, reach in bound.norms.items() if held & axes]
        return functools.reduce(Reach.best, known, within(bound, axes))

    monkeypatch.setattr(certkit.bounds.bound.Bound, "within", ignoring)
    with pytest.raises(AssertionError):
        contained(proof_of(case, 0, "l2"), "l2", case.shape, case.box)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_says_why_and_survives_json(rule: str) -> None:
    assert why(rule).endswith(".")
    ledger = proof_of(CASES[rule][0], 0, "l2").ledger
    assert from_json(to_json(ledger)) == ledger
