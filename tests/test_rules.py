"""Every rule, over a table of modules: no pair of inputs, no search and no float ever goes beyond the bound."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certkit.bounds.bound
from certkit.bounds.bound import Axes, Bound, Reach
from certkit.bounds.ledger import from_json, to_json
from certkit.bounds.number import Interval, Up
from certkit.bounds.rules import RULES, attention, linear, pointwise, shape, why
from certkit.bounds.rules.registry import Facts
from certkit.engine.execute import centres
from certkit.engine.program import Program, export
from tests.modules import BOX, CASES, NOISE, Case, MultiHead, Net, Proof, maxmin, points, prove, size, slopes, weights

SEEDS = (0, 1, 2)
NORMS = ("l2", "linf")
every_case = pytest.mark.parametrize(
    ("rule", "case"), [pytest.param(rule, case, id=f"{rule}: {case.name}") for rule in CASES for case in CASES[rule]]
)
every_norm = pytest.mark.parametrize("norm", NORMS)


@functools.cache
def module_of(case: Case) -> nn.Module:
    return case.build(weights(0))


@functools.cache
def program_of(case: Case, seed: int) -> Program:
    """The case's program; a seed other than 0 draws the constants again, which is faster than to export again."""
    if seed == 0:
        return export(module_of(case), case.shape)
    program, draw = program_of(case, 0), weights(seed)
    drawn = {
        node: draw(*value.shape).double() if value.is_floating_point() and bool(value.isfinite().all()) else value
        for node, value in program.constants.items()
    }
    return replace(program, constants=drawn)


def proof_of(case: Case, seed: int, norm: str, box: tuple[float, float] | None = None) -> Proof:
    fixed = None if case.fixed is None else case.fixed()
    return prove(program_of(case, seed), case.shape, box=box or case.box, norm=norm, fixed=fixed)


def norms_of(bound: Bound) -> Iterator[tuple[Axes, Reach]]:
    """Every norm that the bound states, and those that it implies."""
    last = {frozenset({len(bound.shape) - 1})} if len(bound.shape) > 1 else set[Axes]()
    for axes in {*bound.norms, bound.axes, frozenset[int](), *last}:
        yield axes, bound.within(axes)


def contained(proof: Proof, norm: str, shape: tuple[int, ...], box: tuple[float, float]) -> None:
    """The laws: values lie in the stated size and range, and pairs of inputs, far or near, stay within the gain."""
    xs, ys = points(shape, box, 32, 1), points(shape, box, 32, 2)
    near = xs + 1e-4 * (ys - xs)
    for node, step in proof.nodes:
        at_x, at_y, at_near = (proof.values(node, inputs) for inputs in (xs, ys, near))
        for axes, reach in norms_of(step.bound):
            slack = reach.error.to_float()
            assert float(size(at_x, axes).max()) <= reach.size.to_float() + slack, (node, axes)
            for inputs, values in ((ys, at_y), (near, at_near)):
                distance = length(inputs - xs, norm)
                moved = size(values - at_x, axes)
                assert bool((moved <= reach.gain.to_float() * distance * (1 + NOISE) + 2 * slack).all()), (node, axes)
        if step.bound.range is not None:
            slack = step.bound.within(frozenset()).error.to_float()
            low, high = float(step.bound.range.low) - slack, float(step.bound.range.high) + slack
            assert low <= float(at_x.min()) <= float(at_x.max()) <= high, node


def climbed(proof: Proof, norm: str, shape: tuple[int, ...], box: tuple[float, float]) -> None:
    """The search: the steepest direction at the steepest point that hill climbing finds is within the gain."""
    node, step = proof.nodes[-1]
    axes = step.bound.axes
    generator = torch.Generator().manual_seed(3)
    xs = points(shape, box, 24, 4)
    for spread in (0.3, 0.1, 0.03, 0.0):
        found = slopes(proof.jacobians(node, xs), step.bound.shape, axes, norm)
        best = xs[found.argsort(descending=True)[:4]]
        noise = torch.randn(6, 4, *shape, generator=generator, dtype=torch.float64)
        xs = (best + spread * (box[1] - box[0]) * noise).clamp(*box).flatten(0, 1)
    for node, step in proof.nodes:
        jacobians = proof.jacobians(node, xs[:4])
        for axes, reach in norms_of(step.bound):
            steepest = float(slopes(jacobians, step.bound.shape, axes, norm).max())
            assert steepest <= reach.gain.to_float() * (1 + NOISE), (node, axes)


def length(difference: Tensor, norm: str) -> Tensor:
    flat = difference.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def test_every_rule_has_a_case_and_an_attained_case() -> None:
    assert CASES.keys() == RULES.keys() == ATTAINED.keys()


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


# --- Attained cases, by hand: here the bound is not only safe but met. -----------------------------------------------


@dataclass(frozen=True, eq=False)
class Attained:
    """At ``x`` the slope of the rule's value meets its gain, and at ``largest`` its norm meets its size."""

    rule: str
    module: nn.Module
    x: Any
    norm: str = "l2"
    box: tuple[float, float] = BOX
    axes: Axes | None = None
    largest: Any = None
    fixed: Tensor | None = None
    tight: float = 1e-9

    @functools.cached_property
    def program(self) -> Program:
        return export(self.module, tuple(torch.as_tensor(self.x).shape))

    def check(self) -> None:
        at = torch.as_tensor(self.x, dtype=torch.float64)
        proof = prove(self.program, tuple(at.shape), box=self.box, norm=self.norm, fixed=self.fixed)
        node, step = proof.last(self.rule)
        axes = step.bound.axes if self.axes is None else self.axes
        reach = step.bound.within(axes)
        found = [(slopes(proof.jacobians(node, at[None]), step.bound.shape, axes, self.norm), reach.gain)]
        if self.largest is not None:
            value = proof.values(node, torch.as_tensor(self.largest, dtype=torch.float64)[None])
            found.append((size(value, axes), reach.size))
        for measured, stated in found:
            assert float(measured[0]) <= stated.to_float() * (1 + NOISE)
            assert float(measured[0]) >= stated.to_float() * (1 - self.tight) - 1e-150  # the last for underflow alone


def flat(forward: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda net, x: forward(x).flatten(1))


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def mapped(w: Tensor, b: Tensor | None = None) -> Net:
    return Net(lambda net, x: F.linear(x, w, b).flatten(1))


@dataclass(frozen=True, eq=False)
class HeldConstant:
    """|(3, -4)| is 5 in l2 and 4 in linf, and a constant never moves."""

    @functools.cached_property
    def program(self) -> Program:
        return export(flat(lambda x: x + torch.tensor([3.0, -4.0])), (2,))

    def check(self) -> None:
        (held,) = [step.bound for step in prove(self.program, (2,)).ledger.steps if step.rule == "constant"]
        assert 5 <= held.within(frozenset({1})).size.value <= Decimal("5.000000001")
        assert 4 <= held.within(frozenset()).size.value <= Decimal("4.000000001")
        assert {reach.gain for _, reach in norms_of(held)} == {Up.of(0)}


def one_query(box: tuple[float, float], *, tight: float = 1e-9, **options: Any) -> Attained:
    """One query x near 0 against keys (3, -3) with values (2, -2) that do not move: the slope is scale * Cov(v, k)."""

    def forward(net: Any, q: Tensor) -> Tensor:
        still = F.linear(q, torch.zeros(2, 1)).view(1, 2, 1)
        keys, values = (still + torch.tensor([[n], [-n]]) for n in (3.0, 2.0))
        return F.scaled_dot_product_attention(q, keys, values, **options).flatten(1)

    return Attained("attention", Net(forward), [[0.0]], box=box, tight=tight)


def one_moving_key() -> Attained:
    """A query 3 against keys near 0 with values (2, -2): the weights are 1/2, and so are the column sums.

    The slope is scale * |q| |v| / sqrt(2), where the keys part.
    """

    def forward(net: Any, k: Tensor) -> Tensor:
        query = F.linear(k[:, :1], torch.zeros(1, 1)) + 3.0
        values = F.linear(k, torch.zeros(1, 1)) + torch.tensor([[2.0], [-2.0]])
        return F.scaled_dot_product_attention(query, k, values, scale=0.5).flatten(1)

    return Attained("attention", Net(forward), [[0.0], [0.0]], box=(-1e-10, 1e-10))


def one_key_for_all(heads: int) -> Attained:
    """Every query may look at the first key only: its value moves all outputs at once, sqrt(tokens) in l2."""
    only = torch.zeros(3, 3, dtype=torch.bool)
    only[:, 0] = True

    def forward(net: Any, x: Tensor) -> Tensor:
        q = x.unflatten(2, (heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=only).flatten(1)

    return Attained("attention", Net(forward), torch.zeros(3, 4), largest=torch.ones(3, 4))


def one_key_seen_a_little() -> Attained:
    """Sixteen queries, each at a key of its own with value 2, and all with weight r = 1/16 at key 0 with value -2.

    Moving key 0 moves every output by 2 r (1 - r) |q| |v|, together sqrt(16) times that.
    """
    mask = torch.full((16, 17), -math.inf).diagonal_scatter(torch.zeros(16), 1)
    mask[:, 0] = math.log(1 / 15)

    def forward(net: Any, k: Tensor) -> Tensor:
        query = F.linear(k[:, 1:], torch.zeros(1, 1)) + 3.0
        values = F.linear(k, torch.zeros(1, 1)) + torch.tensor([[-2.0], *[[2.0]] * 16])
        return F.scaled_dot_product_attention(query, k, values, scale=1.0, attn_mask=mask).flatten(1)

    return Attained("attention", Net(forward), [[0.0]] * 17, box=(-1e-6, 1e-6), tight=0.4)


def one_value_for_all() -> Attained:
    """Every query looks at the first key only, the one whose value, 5, is not 0: sqrt(3) * 5 in l2."""
    only = torch.tensor([[True, False, False]] * 3)

    def forward(net: Any, x: Tensor) -> Tensor:
        values = F.linear(x, torch.zeros(1, 1)) + torch.tensor([[5.0], [0.0], [0.0]])
        return F.scaled_dot_product_attention(x, x, values, attn_mask=only).flatten(1)

    return Attained("attention", Net(forward), [[0.0]] * 3, largest=[[0.0]] * 3)


def larger_of_two() -> Attained:
    """max((x, 0), (0, x)) = (x, x) for x > 0: both operands move by 1, the outcome by sqrt(2)."""
    a, b = matrix((1.0,), (0.0,)), matrix((0.0,), (1.0,))
    module = Net(lambda net, x: torch.maximum(F.linear(x, a), F.linear(x, b)))
    return Attained("larger-or-smaller", module, [0.5], box=(0.0, 1.0), largest=[1.0])


def self_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


FIRST_KEY = matrix((1.0, 0.0), (1.0, 0.0))
TANH_STEEPEST = 1.41850400879

ATTAINED: dict[str, tuple[Attained | HeldConstant, ...]] = {
    "input": (
        Attained("input", flat(lambda x: x * 1), [0.3, 0.1], largest=[1.0, -1.0]),
        # Moving all n entries by 1 in linf moves them by sqrt(n) in l2.
        Attained("input", flat(lambda x: x * 1), [0.3, 0.1], norm="linf"),
    ),
    "constant": (HeldConstant(),),
    "linear": (
        # The largest singular value of diag(3, 1) is 3; the row (3, 4) is 5 long; the row (1, -2) sums to 3 in l1.
        Attained("linear", mapped(matrix((3.0, 0.0), (0.0, 1.0))), [0.0, 0.0]),
        Attained("linear", mapped(matrix((3.0, 4.0), (0.0, 1.0))), [0.0, 0.0], axes=frozenset()),
        Attained("linear", mapped(matrix((1.0, -2.0))), [0.0, 0.0], norm="linf", axes=frozenset()),
        # Two tokens 2x + 1, each 3 at x = 1.
        Attained("linear", mapped(matrix((2.0,)), torch.tensor([1.0])), [[0.0], [0.0]], largest=[[1.0], [1.0]]),
    ),
    "scale": (
        Attained("scale", flat(lambda x: x * -2), [0.0, 0.0], largest=[1.0, 1.0]),
        Attained("scale", flat(lambda x: x * torch.tensor([1.0, -5.0])), [0.0, 0.0]),
        Attained("scale", flat(lambda x: x / 0.25), [0.0, 0.0], largest=[1.0, 1.0]),
    ),
    "add": (Attained("add", flat(lambda x: x + 2 * x), [0.0, 0.0], largest=[1.0, 1.0]),),
    "negate": (Attained("negate", flat(torch.neg), [0.0, 0.0], largest=[1.0, 1.0]),),
    "mean": (
        # The mean of four entries moves by |d| / 2 when all move alike; in linf by as much as each.
        Attained("mean", flat(lambda x: x.mean(1)), [[0.0]] * 4, largest=[[1.0]] * 4),
        Attained("mean", flat(lambda x: x.mean(1)), [[0.0]] * 4, norm="linf"),
        Attained("mean", flat(lambda x: x.mean((1, 2), keepdim=True)), [[0.0, 0.0]] * 2, largest=[[1.0, 1.0]] * 2),
        Attained("mean", flat(lambda x: x.mean(1)), [[0.0, 0.0]] * 4, largest=[[1.0, 1.0]] * 4),
    ),
    "abs": (Attained("abs", flat(torch.abs), [-0.5, 0.5], largest=[-1.0, 1.0]),),
    "relu": (Attained("relu", flat(F.relu), [0.5, 0.5], largest=[1.0, 1.0]),),
    "gelu": (
        Attained("gelu", flat(F.gelu), [math.sqrt(2)], box=(0.0, 30.0), largest=[30.0], tight=1e-7),
        Attained(
            "gelu", flat(functools.partial(F.gelu, approximate="tanh")), [TANH_STEEPEST], box=(0.0, 2.0), tight=1e-7
        ),
    ),
    "larger-or-smaller": (
        larger_of_two(),
        Attained(
            "larger-or-smaller",
            flat(lambda x: torch.minimum(x, torch.tensor([2.0, 2.0]))),
            [0.0, 0.0],
            norm="linf",
            axes=frozenset(),
        ),
    ),
    "sorted-pairs": (Attained("sorted-pairs", flat(maxmin), [0.5, -0.5], largest=[1.0, -1.0]),),
    "relabel": (
        Attained("relabel", flat(torch.clone), [[0.0, 0.0]] * 2, largest=[[1.0, 1.0]] * 2),
        Attained("relabel", flat(torch.clone), [[0.0, 0.0]] * 2, norm="linf"),
    ),
    "part": (
        Attained("part", flat(lambda x: x[:, 1:]), [0.0, 0.0, 0.0], largest=[1.0, 1.0, 1.0]),
        Attained("part", flat(lambda x: x[:, 1]), [[0.0, 0.0]] * 2, norm="linf"),
    ),
    "join": (Attained("join", flat(lambda x: torch.cat([x, 2 * x], 1)), [0.0, 0.0], largest=[1.0, 1.0]),),
    "attention": (
        one_key_for_all(1),
        one_key_for_all(2),
        # Equal weights: the values spread as far as an interval allows, and the slope is scale * |k| |v|.
        one_query(BOX, scale=0.5),
        one_query(BOX, scale=-0.5),
        # Weights (1 - r, r), r = e^-15: the variance is 4 r (1 - r) |v|^2, and the queries are too small to change it.
        one_query((-1e-11, 1e-11), scale=0.5, attn_mask=torch.tensor([[0.0, -15.0]]), tight=1e-6),
        one_moving_key(),
        one_key_seen_a_little(),
        one_value_for_all(),
    ),
    "fixed-attention": (
        # All weight on the first of two keys: sqrt(2) in l2.
        Attained("fixed-attention", flat(self_attention), [[0.0]] * 2, largest=[[1.0]] * 2, fixed=FIRST_KEY),
        Attained("fixed-attention", flat(self_attention), [[0.0]] * 2, norm="linf", fixed=FIRST_KEY),
    ),
}


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, number) for rule in ATTAINED for number in range(len(ATTAINED[rule]))]
)
def test_the_bound_is_met(rule: str, number: int) -> None:
    ATTAINED[rule][number].check()


# --- Mutants: a rule that claims less than it may is caught. ----------------------------------------------------------


def killed(rule: str) -> bool:
    """Whether the attained cases or the laws catch the rule as it now stands in the table."""
    try:
        for case in ATTAINED[rule]:
            case.check()
        for example in CASES[rule]:
            for norm in NORMS:
                contained(proof_of(example, 0, norm), norm, example.shape, example.box)
    except AssertionError:
        return True
    return False


def shrunk(rule: str, field: str) -> Callable[..., Bound]:
    """The rule with one of its numbers multiplied by 0.9 in every norm."""
    original = RULES[rule]

    def mutant(inputs: Any, facts: Facts) -> Bound:
        found = original(inputs, facts)
        norms = {axes: replace(reach, **{field: getattr(reach, field) * 0.9}) for axes, reach in found.norms.items()}
        interval = found.range
        if interval is not None and field == "size":
            interval = interval * Interval.of("0.9", "0.9")
        return Bound(found.shape, norms, interval)

    return mutant


@pytest.mark.parametrize("field", ["gain", "size"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_that_claims_a_tenth_less_is_caught(rule: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (rule, field) == ("constant", "gain"):
        pytest.skip("a constant's gain is 0, and so is a tenth less")
    monkeypatch.setitem(RULES, rule, shrunk(rule, field))
    assert killed(rule)


MUTANTS = [
    (attention, "attention", "return mixing * dv + scale", "return dv + scale"),
    (attention, "attention", "variance * rk.size * dq + ", ""),
    (attention, "attention", " + variance.sqrt() * mixing * rq.size * dk", ""),
    (attention, "attention", "variance.sqrt() * mixing * rq.size * dk", "variance * mixing * rq.size * dk"),
    (attention, "attention", "variance.sqrt() * mixing * rq.size * dk", "variance.sqrt() * rq.size * dk * 0.5"),
    (attention, "attention", 'min(facts.measured("rest") * 4, ONE)', 'min(facts.measured("rest"), ONE)'),
    (attention, "attention", "scale * rv.size * moved", "rv.size * moved"),
    (attention, "attention", "Reach(columns * v.within(everything).size,", "Reach(v.within(everything).size,"),
    (attention, "fixed-attention", "mixing = columns * rows.sqrt()", "mixing = rows.sqrt()"),
    (linear, "linear", "gain=stretch * reach.gain", "gain=reach.gain"),
    (linear, "linear", "size=stretch * reach.size + bias * spread", "size=stretch * reach.size"),
    (linear, "linear", "size=stretch * reach.size + bias * spread", "size=stretch * reach.size + bias"),
    (linear, "linear", 'routes = {axes: ("row_l1", "row_l1"', 'routes = {axes: ("row_l2", "row_l2"'),
    (linear, "add", "x.gain + y.gain", "max(x.gain, y.gain)"),
    (linear, "add", "x.size + y.size", "max(x.size, y.size)"),
    (linear, "mean", "joint = x.within(axes | averaged)", "joint = x.within(averaged)"),
    (linear, "mean", "Up.of(entries).sqrt() * n / entries", "n / entries"),
    (pointwise, "larger-or-smaller", "(p * p + q * q).sqrt()", "max(p, q)"),
    (shape, "join", "_root_of_squares(c) if axis in axes else max(c)", "max(c)"),
    (shape, "part", "after = frozenset(new for new, old in enumerate(origin) if old in axes)", "after = frozenset(range(1, len(shape)))"),
    (shape, "relabel", "norms[after] = x.within(before)", "norms[frozenset(range(1, len(shape)))] = x.within(frozenset())"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "rule", "old", "new"), [pytest.param(*m, id=f"{m[1]}: {m[3]}") for m in MUTANTS])
def test_a_rule_with_a_term_missing_is_caught(
    module: Any, rule: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(module)
    assert source.count(old) == 1, "the mutant names a text that the rule no longer has"
    for name in [name for name, function in RULES.items() if inspect.getmodule(function) is module]:
        monkeypatch.delitem(RULES, name)
    exec(  # noqa: S102 - the mutant is the rule's own source
        compile(source.replace(old, new), module.__file__, "exec"), {"__name__": "mutant"}
    )
    assert killed(rule)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_says_why_and_survives_json(rule: str) -> None:
    assert why(rule).endswith(".")
    ledger = proof_of(CASES[rule][0], 0, "l2").ledger
    assert from_json(to_json(ledger)) == ledger
