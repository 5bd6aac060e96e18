"""Normalisation layers, softmax and products where single rules do not show it: slopes, refusals, rounding, transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.number import Up
from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError, NoRule, Refusal
from tests.laws import NORMS, climbed, contained
from tests.modules import BOX, MASK, Net, Proof, attends, of, points, prove, slopes, small, weights

REMEDY = "replace it by covered operators, or add a rule: docs/rules.md"


def gain_of(proof: Proof) -> float:
    """The gain in l2 of the last operator."""
    step = proof.nodes[-1][1]
    return step.bound.within(step.bound.axes).gain.to_float()


def obeys(module: nn.Module, shape: tuple[int, ...], box: tuple[float, float] = BOX) -> Proof:
    """The laws in both norms; the proof in l2."""
    for norm in NORMS:
        proof = prove(module, shape, box=box, norm=norm)
        contained(proof, norm, shape, box)
        climbed(proof, norm, shape, box)
    return prove(module, shape, box=box)


# --- Layer norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-4, 1e-3])
def test_layer_norm_at_a_near_constant_token_is_as_steep_as_316_and_the_bound_knows(spread: float) -> None:
    # Acceptance case 6: other tools say 1.
    module = nn.LayerNorm(8).eval()
    proof = prove(module, (8,))
    node, step = proof.nodes[-1]
    x = 0.5 + spread * torch.linspace(-1, 1, 8, dtype=torch.float64)
    steepest = float(slopes(proof.jacobians(node, x[None]), step.bound.shape, step.bound.axes, "l2")[0])
    deviation = math.sqrt(float(x.var(correction=0)) + 1e-5)
    assert steepest == pytest.approx(1 / deviation, rel=1e-6)
    assert steepest <= gain_of(proof)
    if spread == 0.0:
        assert steepest > 316.2
        assert gain_of(proof) <= 316.2278


def test_layer_norm_bounds_the_next_layer_whatever_comes_in() -> None:
    for scale in (1.0, 1e6):
        proof = prove(Net(lambda net, x, s=scale: F.layer_norm(s * x, (4,))), (4,))
        size = proof.nodes[-1][1].bound.within(frozenset({1})).size
        assert size <= Up.of("2.000000001")


def two_pass(x: Any, eps: float) -> Any:
    one = x.dtype.type
    mean = x.sum() / one(len(x))
    return (x - mean) * (one(1) / np.sqrt(((x - mean) ** 2).sum() / one(len(x)) + one(eps)))


def welford(x: Any, eps: float) -> Any:
    one = x.dtype.type
    mean, squares = one(0), one(0)
    for count, entry in enumerate(x, start=1):
        delta = entry - mean
        mean = mean + delta * (one(1) / one(count))
        squares = squares + delta * (entry - mean)
    scale = one(1) / np.sqrt(squares / one(len(x)) + one(eps))
    return x * scale + -mean * scale


def blocks(x: Any, eps: float) -> Any:
    """Chan's joining of halves, with the constants folded."""
    one = x.dtype.type

    def joined(part: Any) -> tuple[int, Any, Any]:
        if len(part) == 1:
            return 1, part[0], one(0)
        (n, mean, squares), (m, other, more) = joined(part[: len(part) // 2]), joined(part[len(part) // 2 :])
        delta = other - mean
        return n + m, mean + delta * one(m / (n + m)), squares + more + delta * delta * one(n * m / (n + m))

    _, mean, squares = joined(x)
    scale = one(1) / np.sqrt(squares / one(len(x)) + one(eps))
    return x * scale - mean * scale


def kernel(x: Any, eps: float) -> Any:
    return F.layer_norm(torch.from_numpy(x), x.shape, eps=eps).numpy()


@pytest.mark.parametrize("algorithm", [two_pass, welford, blocks, kernel])
@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
@pytest.mark.parametrize("width", [4, 37])
def test_layer_norm_errs_from_fifty_digits_by_no_more_than_stated(
    algorithm: Callable[..., Any], arithmetic: str, width: int
) -> None:
    # Entries near 1000 that differ little lose most of their digits.
    eps, box = 1e-5, (-1000.0, 1000.0)
    proof = prove(Net(lambda net, x: F.layer_norm(x, (width,), eps=eps)), (width,), box=box, arithmetic=arithmetic)
    stated = proof.nodes[-1][1].bound.within(frozenset()).error.to_float()
    generator = np.random.default_rng(0)
    worst = 0.0
    for spread in (0.0, 1e-4, 1e-2, 1.0, 500.0):
        x = (1000.0 - abs(spread * generator.standard_normal(width)).clip(0, 1500)).astype(arithmetic)
        computed = algorithm(x, eps)
        with mpmath.workdps(50):
            entries = [mpmath.mpf(float(v)) for v in x]
            mean = mpmath.fsum(entries) / width
            root = mpmath.sqrt(mpmath.fsum((v - mean) ** 2 for v in entries) / width + mpmath.mpf(eps))
            off = [abs(mpmath.mpf(float(c)) - (v - mean) / root) for c, v in zip(computed, entries, strict=True)]
            worst = max(worst, float(max(off)))
    assert worst <= stated
    assert stated <= (2e5 if arithmetic == "float32" else 1e-3)


def test_layer_norm_keeps_the_stated_share_of_a_known_deviation() -> None:
    # What a local pass feeds: on inputs whose variance is at least 1, the slope is at most 1/sqrt(1 + eps).
    from certkit.bounds.ledger import facts_for
    from certkit.bounds.rules import derive

    program = export(nn.LayerNorm(4, eps=1e-5).eval(), (4,))
    first, step = Interpreter(program)("l2", BOX).steps
    known = {**step.evidence, "inverse_deviation": Up.of(1.0)}
    local = derive("layer-norm", [first.bound], facts_for("float64", step.attributes, known))
    assert local.within(frozenset({1})).gain == Up.of(1)
    assert local.within(frozenset({1})).error == step.bound.within(frozenset({1})).error


# --- Softmax and masks ------------------------------------------------------------------------------------------------


def masked_in(way: str) -> Callable[[Tensor], Tensor]:
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "added": lambda s: s + torch.where(MASK, 0.0, -math.inf),
        "added before": lambda s: torch.where(MASK, 0.0, torch.finfo(torch.float32).min) + s,
        "filled": lambda s: s.masked_fill(~MASK, -math.inf),
        "chosen": lambda s: torch.where(MASK, s, torch.tensor(-math.inf)),
        "twice": lambda s: (s + torch.where(MASK, 0.0, -math.inf)).masked_fill(~MASK, -math.inf),
    }
    return ways[way]


@pytest.mark.parametrize("way", ["added", "added before", "filled", "chosen", "twice"])
def test_masked_entries_get_no_weight_and_masked_scores_no_bound(way: str) -> None:
    mask = masked_in(way)
    proof = obeys(Net(lambda net, x: torch.softmax(mask(x), -1).flatten(1)), (3, 3))
    values = proof.values(proof.nodes[-2][0], points((3, 3), BOX, 8, 0))
    assert bool((values[..., ~MASK] == 0).all())
    if way != "added before":
        stepped = {step.node for step in proof.ledger.steps}
        assert not any(name.startswith(("masked_fill", "add", "where")) for name in stepped)
    assert gain_of(proof) <= 0.5


def test_masked_scores_that_something_else_reads_are_refused() -> None:
    def both(x: Tensor) -> Tensor:
        s = x + torch.where(MASK, 0.0, -math.inf)
        return (torch.softmax(s, -1) + s.exp()).flatten(1)

    with pytest.raises(Refusal, match=r"^the model: aten\.add\.Tensor of an infinite constant has no bound where "):
        prove(*small(both, (3, 3)))


@pytest.mark.parametrize("way", ["added", "filled", "chosen"])
@pytest.mark.parametrize("scaled", ["before", "after", "divided"])
def test_attention_that_is_written_out_has_the_bound_of_attention(way: str, scaled: str) -> None:
    mask = masked_in(way)

    def written(x: Tensor) -> Tensor:
        if scaled == "before":
            scores = (x * 0.5) @ x.transpose(-1, -2)
        else:
            scores = x @ x.mT * 0.5 if scaled == "after" else x @ x.mT / 2.0
        return (F.dropout(torch.softmax(mask(scores), -1), training=False) @ x).flatten(1)

    proof = obeys(Net(lambda net, x: written(x)), (3, 4))
    assert proof.ledger.steps[-2].rule == "attention"
    composite = prove(*small(attends(attn_mask=MASK, scale=0.5), (3, 4)))
    assert gain_of(proof) == pytest.approx(gain_of(composite), rel=1e-9)


def test_a_mask_of_minus_a_billion_costs_no_digits() -> None:
    def written(net: Any, x: Tensor) -> Tensor:
        return (torch.softmax((x @ x.mT).masked_fill(~MASK, -1e9), -1) @ x).flatten(1)

    proof = obeys(Net(written), (3, 4))
    assert proof.ledger.pairs.error <= Up.of(1e-12)
    assert prove(Net(written), (3, 4), arithmetic="float32").ledger.pairs.error <= Up.of(1e-3)


# --- Linear maps in other words ---------------------------------------------------------------------------------------


MAPS: dict[str, tuple[tuple[int, ...], Callable[[Any, Tensor], Tensor], dict[str, tuple[int, ...]]]] = {
    "from the right": ((3, 4), lambda net, x: x @ net.w, {"w": (4, 2)}),
    "a vector": ((3, 4), lambda net, x: x @ net.w, {"w": (4,)}),
    "per head": ((2, 3, 4), lambda net, x: x @ net.w, {"w": (2, 4, 2)}),
    "from the left": ((3, 4), lambda net, x: net.w @ x, {"w": (5, 3)}),
    "from the left per head": ((2, 3, 4), lambda net, x: net.w @ x, {"w": (2, 5, 3)}),
    "of a vector": ((4,), lambda net, x: torch.mm(x, net.w), {"w": (4, 3)}),
    "with a bias": ((4,), lambda net, x: torch.addmm(net.b, x, net.w), {"w": (4, 3), "b": (3,)}),
}


@pytest.mark.parametrize("name", MAPS)
def test_products_with_a_constant_matrix_are_linear_maps(name: str) -> None:
    shape, forward, sizes = MAPS[name]
    module = of(forward, **sizes)(weights(1))
    proof = obeys(module, shape)
    node, step = proof.nodes[-1]
    found = slopes(
        proof.jacobians(node, torch.zeros(1, *shape, dtype=torch.float64)), step.bound.shape, step.bound.axes, "l2"
    )
    assert float(found[0]) == pytest.approx(gain_of(proof), rel=1e-9)  # met: the singular value is the slope


# --- Whole networks ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-LN encoder layer; attention by torch's operator, or written out with a causal mask."""

    def __init__(self, width: int, heads: int, *, written: bool, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads, self.written = heads, written
        self.first, self.second = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1)
        )
        if self.written:
            tokens = x.shape[1]
            scores = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(q.shape[-1]))
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
            y = torch.softmax(scores, dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        hidden: Tensor = F.gelu(self.up(self.second(x)))
        return x + self.down(hidden)


class Transformer(nn.Module):
    def __init__(self, *, written: bool, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Block(6, 2, written=written, norm=norm) for _ in range(2)))
        self.norm, self.head = norm(6), nn.Linear(6, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width)


def rms_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-5)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_a_small_transformer_with_normalisation_has_a_finite_bound_that_no_search_beats(
    norm: Callable[[int], nn.Module],
) -> None:
    gains = []
    for written in (False, True):
        module = Transformer(written=written, norm=norm)
        proof = prove(module, (3, 6))
        contained(proof, "l2", (3, 6), BOX)
        climbed(proof, "l2", (3, 6), BOX)
        assert math.isfinite(gain_of(proof))
        gains.append(gain_of(proof))
        xs = points((3, 6), BOX, 8, 2).float()
        with torch.no_grad():
            own = module(xs).double()
        single = prove(module, (3, 6), arithmetic="float32").ledger.pairs.error.to_float()
        assert float((own - centres(proof.program, xs)).abs().max()) <= single
        assert math.isfinite(proof.ledger.pairs.error.to_float())
    assert gains[0] == pytest.approx(gains[1], rel=1e-6)


def test_a_batch_norm_network_moves_by_its_affine_maps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        net(3 * torch.randn(64, 4))  # statistics of its own
    proof = obeys(net.eval(), (4,))
    (step,) = [step for step in proof.ledger.steps if step.rule == "batch-norm"]
    norm: Any = net[1]
    expected = float((norm.weight.double().abs() / (norm.running_var.double() + norm.eps).sqrt()).max())
    assert step.evidence["largest"].to_float() == pytest.approx(expected, rel=1e-12)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def no_eps(op: str) -> str:
    return (
        f"the model: aten.{op}.default with eps = 0.0 has no finite global bound: its slope grows without limit where all "
        "normalised entries are equal; give it a positive eps"
    )


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, Sequence[int]]], str]] = {
    "layer norm without eps": (lambda: (nn.LayerNorm(2, eps=0.0).eval(), (2,)), no_eps("layer_norm")),
    "group norm without eps": (
        lambda: small(lambda x: F.group_norm(x, 1, eps=0.0).flatten(1), (2, 2)),
        no_eps("group_norm"),
    ),
    "rms norm with the eps of the precision": (
        lambda: (nn.RMSNorm(2).eval(), (2,)),
        (
            "the model: aten.rms_norm.default without eps takes that of the precision in which it happens to run; "
            "state it, as by nn.RMSNorm(width, eps=1e-6)"
        ),
    ),
    "layer norm with a weight from the input": (
        lambda: small(lambda x: F.layer_norm(x, (2,), x[0])),
        "the model: a selection along the batch axis has no rule",
    ),
    "batch norm in training": (
        lambda: small(lambda x: F.batch_norm(x, None, None, training=True).flatten(1), (2, 3)),
        (
            "the model: aten._native_batch_norm_legit.no_stats normalises by the statistics of the batch, so that one "
            "sample changes the logits of another; keep running statistics and call model.eval()"
        ),
    ),
    "batch norm of a negative variance": (
        lambda: small(lambda x: F.batch_norm(x, torch.zeros(2), torch.tensor([1.0, -1.0]))),
        "the model: aten._native_batch_norm_legit_no_training.default divides by a variance + eps that is not positive",
    ),
    "softmax over the batch": (
        lambda: small(lambda x: torch.softmax(x, 0)),
        "the model: a softmax over the batch axis has no rule",
    ),
    "softmax in another precision": (
        lambda: small(lambda x: torch.softmax(x, 1, dtype=torch.float64)),
        "the model: aten.softmax.int with another precision (torch.float64) has no rule; leave dtype out",
    ),
    "softmax of nothing": (
        lambda: small(lambda x: torch.softmax(x.masked_fill(torch.tensor([True, True]), -math.inf), 1)),
        "attention with a query that may look at no key has no defined output",
    ),
    "log softmax": (
        lambda: small(lambda x: F.log_softmax(x, 1)),
        f"the model: no rule for aten.log_softmax.int; certkit refuses what it cannot bound. To certify this model, {REMEDY}",
    ),
    "einsum": (
        lambda: small(lambda x: torch.einsum("bij,bkj->bik", x, x).flatten(1), (2, 2)),
        f"the model: no rule for aten.einsum.default; certkit refuses what it cannot bound. To certify this model, {REMEDY}",
    ),
    "a norm other than the Euclidean": (
        lambda: small(lambda x: torch.linalg.vector_norm(x, 1, dim=1, keepdim=True)),
        "the model: aten.linalg_vector_norm.default with ord = 1 has no rule; expected 2",
    ),
    "a norm over the batch": (
        lambda: small(lambda x: x * x.norm()),
        "the model: aten.linalg_vector_norm.default over the batch axis has no rule; name the axes of one sample",
    ),
    "a sum over the batch": (
        lambda: small(lambda x: x * x.sum(0, keepdim=True)),
        "the model: a sum over the batch axis has no rule; name the axes of one sample",
    ),
    "a division by what may be 0": (
        lambda: small(lambda x: x / x.norm(dim=1, keepdim=True)),
        (
            "the model: aten.div.Tensor has no bound here: a division by a value in [-9.42e-16, 1.41], which holds 0, "
            "has no bound; keep it away from 0, as by clamp_min"
        ),
    ),
    "a product of vectors with matrices": (
        lambda: small(lambda x: (x @ x.unsqueeze(2).expand(-1, -1, 2)).flatten(1)),
        f"the model: no rule for aten.matmul.default of (1, 2) and (1, 2, 2) where both depend on the input; to certify this model, {REMEDY}",
    ),
    "a choice by the input": (
        lambda: small(lambda x: torch.where(torch.tensor([True, False]), x, 2 * x)),
        (
            "the model: no rule for aten.where.self where the choice, or both values, depend on the input; "
            f"to certify this model, {REMEDY}"
        ),
    ),
    "addmm with alpha": (
        lambda: (Net(lambda net, x: torch.addmm(net.b, x, net.w, alpha=2), b=torch.ones(2), w=torch.eye(2)), (2,)),
        "the model: aten.addmm.default with alpha or beta has no rule; multiply first",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_bound_is_refused_in_these_words(what: str) -> None:
    make, message = REFUSED[what]
    module, shape = make()
    with pytest.raises(CertkitError) as caught:
        Interpreter(export(module, tuple(shape)))("l2", BOX)
    assert str(caught.value) == message
    assert isinstance(caught.value, NoRule if "no rule for" in message else Refusal)


def test_an_embedding_of_the_input_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^torch\.export cannot capture this model on an input of shape \(1, 3\) \("):
        export(nn.Embedding(5, 2).eval(), (3,))


# Found by review


@pytest.mark.parametrize("first", ["filled", "added"])
def test_a_mask_that_refills_another_mask_is_refused(first: str) -> None:
    # The outer mask puts a score of 0 where the inner one left the key out: the inner one is gone there.
    late = torch.tensor([False, True])

    def forward(net: Any, x: Tensor) -> Tensor:
        inner = x.masked_fill(late, -math.inf) if first == "filled" else x + torch.tensor([0.0, 50.0])
        return torch.softmax(inner.masked_fill(late, 0.0), -1)

    with pytest.raises(Refusal, match=r": a mask that refills another mask has no rule; make them one mask$"):
        prove(Net(forward), (2,))


def test_group_norm_of_a_permuted_value_is_computed_in_two_passes() -> None:
    module = Net(lambda net, x: F.group_norm(x.permute(0, 3, 1, 2), 1, eps=1e-3).flatten(1))
    proof = prove(module, (4, 4, 2), box=(1e4, 1e4 + 0.01))
    x = 1e4 + 0.01 * torch.rand(1, 4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    offset = (x - 1e4).permute(0, 3, 1, 2)  # exact: the same group norm, without the large common part
    exact = F.group_norm(offset.contiguous(), 1, eps=1e-3).flatten(1)
    error = float((proof.value(proof.program.output, x) - exact).abs().max())
    assert error <= proof.ledger.pairs.error.to_float() / 2


def test_an_overflow_on_the_way_is_not_a_finite_logit() -> None:
    # exp overflows inside softplus; the clamp after it hides that.
    module = Net(lambda net, x: F.softplus(x, threshold=1000.0).clamp(max=790.0))
    program = export(module, (2,))
    found = centres(program, torch.tensor([[710.0, 1.0], [1.0, 2.0]]))
    assert found.isnan().any(1).tolist() == [True, False]
