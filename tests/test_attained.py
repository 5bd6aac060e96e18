"""Cases by hand in which a bound is not only safe but met, and mutants of the rules: whatever claims less is caught."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.bound import Axes, Bound
from certkit.bounds.number import Interval, Up
from certkit.bounds.rules import RULES, attention, linear, pointwise, shape
from certkit.bounds.rules.registry import Facts
from certkit.engine.program import Program, export
from tests.attained import Attained, flat, mapped, matrix
from tests.laws import NORMS, contained, norms_of, proof_of
from tests.modules import BOX, Net, maxmin, prove
from tests.table import CASES, FAMILIES


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


def one_key_seen_a_little(rest: int, *, axes: Axes | None = None, tight: float) -> Attained:
    """Sixteen queries, each at a key of its own with value 2, and all with weight r = 1/rest at key 0 with value -2.

    Moving key 0 moves every output by 2 r (1 - r) |q| |v|, together sqrt(16) times that.
    """
    mask = torch.full((16, 17), -math.inf).diagonal_scatter(torch.zeros(16), 1)
    mask[:, 0] = math.log(1 / (rest - 1))

    def forward(net: Any, k: Tensor) -> Tensor:
        query = F.linear(k[:, 1:], torch.zeros(1, 1)) + 3.0
        values = F.linear(k, torch.zeros(1, 1)) + torch.tensor([[-2.0], *[[2.0]] * 16])
        return F.scaled_dot_product_attention(query, k, values, scale=1.0, attn_mask=mask).flatten(1)

    return Attained("attention", Net(forward), [[0.0]] * 17, box=(-1e-6, 1e-6), axes=axes, tight=tight)


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
        one_key_seen_a_little(16, tight=0.4),
        # Seen rarely, no column holds much of a share that could still change.
        one_key_seen_a_little(160, tight=0.35),
        # Per token all keys may move at once, and twice as far apart.
        one_key_seen_a_little(16, axes=frozenset({2}), tight=0.51),
        one_value_for_all(),
    ),
    "fixed-attention": (
        # All weight on the first of two keys: sqrt(2) in l2.
        Attained("fixed-attention", flat(self_attention), [[0.0]] * 2, largest=[[1.0]] * 2, fixed=FIRST_KEY),
        Attained("fixed-attention", flat(self_attention), [[0.0]] * 2, norm="linf", fixed=FIRST_KEY),
    ),
}

for _family in FAMILIES:
    ATTAINED |= _family.ATTAINED


def test_every_rule_has_an_attained_case() -> None:
    assert ATTAINED.keys() == RULES.keys()


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
    (attention, "attention", "sk * dq + ", ""),
    (attention, "attention", " + deviation * rq.size * dk", ""),
    (attention, "attention", "share * x.size", "variance * x.size"),
    (attention, "attention", "deviation * rq.size * dk", "deviation * rq.size * dk * 0.5"),
    (attention, "attention", ".largest * 4", ".largest"),
    (attention, "attention", "gain(token, ONE, share)", "gain(token, ONE, variance)"),
    (attention, "attention", " + Up.of(rows)))", "))"),
    (attention, "attention", "spread.sqrt()), whole.error)", "spread), whole.error)"),
    (attention, "attention", "scale * sv * (sk", "sv * (sk"),
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
    (shape, "join", "_root_of_squares(c) if axis in axes else most(*c)", "most(*c)"),
    (shape, "part", "after = frozenset(new for new, old in enumerate(origin) if old in axes)", "after = frozenset(range(1, len(shape)))"),
    (shape, "relabel", "norms[after] = x.within(before)", "norms[frozenset(range(1, len(shape)))] = x.within(frozenset())"),
    *(mutant for family in FAMILIES for mutant in family.MUTANTS),
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
