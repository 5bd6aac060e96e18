"""Local certificates: what is proved of a ball around a sample holds on that ball, and is never worse than the box's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Never

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.ledger import Ledger
from certkit.bounds.number import Up
from certkit.certified import radii
from certkit.engine.certify import certify
from certkit.engine.execute import centres, run
from certkit.engine.interpret import Interpreter
from certkit.engine.local import LocalRadii, local_bounds, local_radii
from certkit.engine.local import evidence as evidence_module
from certkit.engine.local.centre import measure
from certkit.engine.local.numbers import Ups
from certkit.engine.local.walk import ready, walk
from certkit.engine.program import Program, export
from certkit.errors import Refusal
from tests.networks import linear, samples

SAMPLES = 6
BOX = (-1.0, 1.0)


class Net(nn.Module):
    """A function of weights that are drawn here, in float64 so that torch's own value is the centre's to rounding."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], scale: float = 1.0, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(shapes) + sum(map(sum, shapes.values())))
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator, dtype=torch.float64) * (scale / math.sqrt(shape[-1]))
            self.register_parameter(name, nn.Parameter(weight))
        self.map = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self, x)


def heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)


def block(
    net: Net, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor], norm: Callable[[Tensor], Tensor]
) -> Tensor:
    y = norm(x)
    q, k, v = (heads(F.linear(y, w)) for w in (net.q, net.k, net.v))
    x = x + F.linear(attend(q, k, v).transpose(1, 2).flatten(2), net.o)
    x = x + F.linear(F.gelu(F.linear(norm(x), net.up)), net.down)
    return F.linear(norm(x).mean(1), net.head)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def rms_written(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4)


def attention_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1) @ v


def squashed_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.tanh(q @ k.transpose(-2, -1)), dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


WIDE = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "up": (12, 8), "down": (8, 12), "head": (3, 8)}
TOKENS = (5, 8)
NETS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "layer norm and attention": (TOKENS, lambda: Net(lambda n, x: block(n, x, F.scaled_dot_product_attention, layer_norm), 2.0, **WIDE)),
    "causal attention, rms norm": (TOKENS, lambda: Net(lambda n, x: block(n, x, causal, lambda y: F.rms_norm(y, (8,), eps=1e-4)), **WIDE)),
    "no norm, written-out attention": (TOKENS, lambda: Net(lambda n, x: block(n, x, attention_written, lambda y: y), 2.0, **WIDE)),
    "rms norm and mixture, written out": (TOKENS, lambda: Net(lambda n, x: block(n, x, squashed_scores, rms_written), **WIDE)),
    "unit vectors": (TOKENS, lambda: Net(lambda n, x: block(n, x, causal, lambda y: F.normalize(y, dim=-1, eps=1e-3)), **WIDE)),
    "tanh, sigmoid, softplus": (
        (6,),
        lambda: Net(
            lambda n, x: F.linear(F.softplus(F.linear(torch.sigmoid(F.linear(torch.tanh(F.linear(x, n.a)), n.b)), n.c)), n.d),
            2.0, a=(9, 6), b=(9, 9), c=(9, 9), d=(3, 9),
        ),
    ),
    "convolution, group norm": (
        (2, 4, 4),
        lambda: Net(lambda n, x: F.linear(F.silu(F.group_norm(F.conv2d(x, n.a, padding=1), 2)).flatten(1), n.b), a=(4, 2, 3, 3), b=(3, 64)),
    ),
    "softmax of features, a quotient": (
        (6,),
        lambda: Net(lambda n, x: F.linear(torch.softmax(3 * F.linear(x, n.a), -1) / (1.1 + torch.tanh(F.linear(x, n.b))), n.c), a=(5, 6), b=(5, 6), c=(3, 5)),
    ),
}  # fmt: skip


class Subject:
    """A network with its box ledger, some samples and what is proved of them."""

    def __init__(self, name: str, norm: str) -> None:
        shape, made = NETS[name]
        self.module = made().eval().double()
        self.norm = norm
        self.program: Program = export(self.module, shape)
        self.interpret = Interpreter(self.program)
        self.ledger: Ledger = self.interpret(norm, BOX)
        generator = torch.Generator().manual_seed(7)
        self.images = (torch.rand(SAMPLES, *shape, generator=generator, dtype=torch.float64) * 2 - 1) * 0.9
        self.logits = centres(self.program, self.images).numpy()
        self.found: LocalRadii = local_radii(self.program, self.ledger, self.images, self.logits)
        gain = np.array([[number.to_float() for number in row] for row in self.ledger.pairs.gain])
        self.box = radii(self.logits, gain, self.ledger.pairs.error.to_float())

    def inside(self, radius: np.ndarray, direction: Tensor) -> Tensor:
        """Points of the balls, on their surface where the box does not cut it off."""
        flat = direction.flatten(1)
        length = flat.norm(dim=1) if self.norm == "l2" else flat.abs().amax(1)
        shape = (-1, *(1,) * (self.images.ndim - 1))
        step = direction * (torch.from_numpy(radius) * (1 - 1e-12) / length.clamp_min(1e-300)).reshape(shape)
        return (self.images + step).clamp(*BOX)

    def distance(self, x: Tensor, y: Tensor) -> np.ndarray:
        flat = (x - y).flatten(1)
        return (flat.norm(dim=1) if self.norm == "l2" else flat.abs().amax(1)).numpy()


_subjects: dict[tuple[str, str], Subject] = {}


def subject(name: str, norm: str) -> Subject:
    if (name, norm) not in _subjects:
        _subjects[name, norm] = Subject(name, norm)
    return _subjects[name, norm]


def directions(at: Subject, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    found = [torch.randn(at.images.shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [d.sign() if at.norm == "linf" else d for d in found]


def steepest(at: Subject, radius: np.ndarray, steps: int = 15) -> list[Tensor]:
    """Points of the balls where the lead of the predicted class is small: ascent against each other class."""
    top = torch.from_numpy(at.logits.argmax(1))
    found = []
    for other in range(at.logits.shape[1]):
        x = at.images
        for _ in range(steps):
            x = x.detach().requires_grad_()
            logits = at.module(x)
            rows = torch.arange(len(x))
            (gradient,) = torch.autograd.grad((logits[rows, other] - logits[rows, top]).sum(), x)
            direction = gradient.sign() if at.norm == "linf" else gradient + 1e-30
            x = at.inside(radius, (x.detach() - at.images) + 0.3 * float(radius.max()) * direction)
        found.append(x.detach())
    return found


CASES = [pytest.param(name, norm, id=f"{name}-{norm}") for name in NETS for norm in ("l2", "linf")]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_point_of_the_ball_changes_the_class(name: str, norm: str) -> None:
    at = subject(name, norm)
    assert (at.found.radius >= at.box).all()
    assert (at.found.radius > 0).any()
    top = at.logits.argmax(1)
    points = [at.inside(at.found.radius, d) for d in directions(at, 20)] + steepest(at, at.found.radius)
    for x in points:
        with torch.no_grad():
            kept = (at.module(x).argmax(1).numpy() == top) | (at.found.radius == 0)
        assert kept.all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_pair_of_the_ball_moves_a_difference_of_logits_by_more_than_the_gain(name: str, norm: str) -> None:
    at = subject(name, norm)
    top, rows = at.logits.argmax(1), np.arange(SAMPLES)
    points = [at.inside(at.found.radius, d) for d in directions(at, 8)] + steepest(at, at.found.radius, 8)
    points += [
        x + 1e-4 * (at.inside(at.found.radius, d) - x)
        for x, d in zip(points, reversed(directions(at, 11)), strict=True)
    ]
    with torch.no_grad():
        values = [at.module(x).numpy() for x in points]
    leads = [value[rows, top][:, None] - value for value in values]
    for i, x in enumerate(points):
        for j, y in enumerate(points[:i]):
            moved = np.abs(leads[i] - leads[j])
            assert (moved <= at.found.gain * at.distance(x, y)[:, None] * (1 + 1e-9) + 1e-11).all()


def value_of(number: object, sample: int) -> float:
    array = np.asarray(getattr(number, "value", number), dtype=float)
    return float(array if array.ndim == 0 else array[sample])


@pytest.mark.parametrize("factor", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_value_leaves_its_size_its_range_or_its_gain(name: str, norm: str, factor: float) -> None:
    at = subject(name, norm)
    radius = np.minimum(factor * np.maximum(at.found.radius, 1e-6), 0.5)
    bounds = local_bounds(at.program, at.ledger, at.images, radius)
    points = [at.inside(radius, d) for d in directions(at, 3)] + steepest(at, np.maximum(radius, 1e-300), 4)[:2]
    seen = [values_of(at.program, x) for x in [at.images, *(points if factor else [])]]
    apart = [at.distance(x, at.images) for x in [at.images, *(points if factor else [])]]
    checked = 0
    for step in at.ledger.steps:
        if step.node not in seen[0] or step.rule == "constant":
            continue
        bound = bounds[step.node]
        for axes in bound.norms:
            reach = bound.within(axes)
            for values_, distance in zip(seen, apart, strict=True):
                size, moved = (
                    norm_over(v, axes) for v in (values_[step.node], values_[step.node] - seen[0][step.node])
                )
                for n in range(SAMPLES):
                    slack = 2 * value_of(reach.error, n) + 1e-13
                    assert size[n] <= value_of(reach.size, n) + slack
                    assert moved[n] <= value_of(reach.gain, n) * distance[n] * (1 + 1e-9) + slack
                    checked += 1
        if bound.range is not None:
            for values_ in seen:
                for n, entries in enumerate(values_[step.node]):
                    slack = value_of(bound.within(frozenset()).error, n) + 1e-13
                    assert value_of(bound.range.low, n) - slack <= float(entries.min())
                    assert float(entries.max()) <= value_of(bound.range.high, n) + slack
    assert checked > 20


def values_of(program: Program, x: Tensor) -> dict[str, Tensor]:
    """Every value of the graph, by node, for a batch of inputs run one by one."""
    values: dict[str, list[Tensor]] = {}
    for sample in x:
        run(program, sample.unsqueeze(0), see=lambda n, v: values.setdefault(n.name, []).append(v))
    return {node: torch.cat(rows) for node, rows in values.items()}


def norm_over(value: Tensor, axes: frozenset[int]) -> np.ndarray:
    squares = value.square()
    if axes:
        squares = squares.sum(sorted(axes), keepdim=True)
    return squares.flatten(1).amax(1).sqrt().numpy()


@pytest.mark.parametrize("name", ["layer norm and attention", "convolution, group norm", "tanh, sigmoid, softplus"])
def test_a_sample_has_the_same_radius_in_any_company(name: str) -> None:
    at = subject(name, "l2")
    order = [4, 0, 2]
    some = local_radii(at.program, at.ledger, at.images[order], at.logits[order])
    assert (some.radius == at.found.radius[order]).all()
    assert np.allclose(some.gain, at.found.gain[order], rtol=1e-9)


def test_facts_of_the_ball_certify_where_those_of_the_box_do_not() -> None:
    at = subject("layer norm and attention", "l2")
    assert (at.found.radius > 20 * at.box).all()


def test_a_sample_outside_the_box_is_refused() -> None:
    at = subject("tanh, sigmoid, softplus", "l2")
    with pytest.raises(
        Refusal, match=r"^a sample has entries in \[0, 1.5\], outside the box \[-1, 1\] of the certificate$"
    ):
        local_bounds(at.program, at.ledger, torch.tensor([[1.5, 0, 0, 0, 0, 0]]), 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_no_point_is_refused(bad: float) -> None:
    at = subject("tanh, sigmoid, softplus", "l2")
    with pytest.raises(Refusal, match=r"^a sample holds NaN or infinity; there is no ball around it$"):
        local_radii(at.program, at.ledger, torch.tensor([[bad, 0, 0, 0, 0, 0]]), at.logits[:1])


def test_a_token_that_is_longer_than_those_of_the_domain_is_refused() -> None:
    net = Net(lambda n, x: F.linear(x, n.a).mean(1), a=(3, 4)).eval()
    program = export(net, (2, 4))
    ledger = Interpreter(program)("token", (-1.0, 1.0), token_size=1.0)
    local_bounds(program, ledger, torch.full((1, 2, 4), 0.49), 0.1)
    with pytest.raises(Refusal, match=r"^a sample has a token of length 1.02, longer than the 1 of the certificate$"):
        local_bounds(program, ledger, torch.full((1, 2, 4), 0.51), 0.1)


@pytest.mark.parametrize("radius", [-1.0, math.nan])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    at = subject("tanh, sigmoid, softplus", "l2")
    with pytest.raises(Refusal, match=rf"^a ball has a radius of at least 0, got {radius}$"):
        local_bounds(at.program, at.ledger, at.images, radius)


def test_of_no_samples_there_are_no_radii() -> None:
    at = subject("layer norm and attention", "l2")
    found = local_radii(at.program, at.ledger, at.images[:0], at.logits[:0])
    assert found.radius.shape == found.error.shape == (0,)
    assert found.gain.shape == (0, 3)


def test_what_was_measured_of_the_samples_serves_both_kinds_of_radii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = subject("layer norm and attention", "l2")
    given = at.program, at.ledger, at.images, at.logits
    deployed = at.interpret("l2", BOX, arithmetic="float32")
    centre = measure(*given[:3])
    own = [local_radii(*given, deployed=ledger).radius for ledger in (None, deployed)]
    model, data = linear(), samples()

    def twice(*_: object) -> Never:
        raise AssertionError("the samples were measured a second time")

    monkeypatch.setattr("certkit.engine.local.radii.measure", twice)
    for ledger, radius in zip((None, deployed), own, strict=True):
        assert (local_radii(*given, deployed=ledger, centre=centre).radius == radius).all()
    assert certify(model, data, eps=["0.1"], out=tmp_path).execution.pair_error is not None


def test_more_passes_never_prove_less() -> None:
    at = subject("layer norm and attention", "l2")
    few, many = (local_radii(at.program, at.ledger, at.images, at.logits, passes=n).radius for n in (6, 14))
    assert (few <= many).all()
    assert (few < many).any()


def test_the_error_of_float32_on_the_ball_is_taken_off() -> None:
    at = subject("causal attention, rms norm", "l2")
    deployed = at.interpret("l2", BOX, arithmetic="float32")
    found = local_radii(at.program, at.ledger, at.images, at.logits, deployed=deployed)
    assert (found.radius <= at.found.radius).all()
    assert (found.radius > 0).any()
    single = NETS["causal attention, rms norm"][1]().eval().float()
    single.load_state_dict({name: weight.float() for name, weight in at.module.state_dict().items()})
    same = NETS["causal attention, rms norm"][1]().eval().double()
    same.load_state_dict({name: weight.double() for name, weight in single.state_dict().items()})
    program = export(same, NETS["causal attention, rms norm"][0])
    interpret = Interpreter(program)
    ledgers = [interpret("l2", BOX, arithmetic=a) for a in ("float64", "float32")]
    bounds = local_bounds(program, ledgers[0], at.images, found.radius, deployed=ledgers[1])
    error = np.asarray(bounds[ledgers[0].output].within(frozenset()).error.value)
    for direction in directions(at, 5):
        x = at.inside(found.radius, direction).float()
        with torch.no_grad():
            off = (single(x).double() - same(x.double())).abs().amax(1).numpy()
        assert (off <= error).all()
    assert (error < deployed.pairs.error.to_float()).all()


def refused_in_float32(name: str) -> bool:
    """Divisors that float32 may round to 0 have no bound in it."""
    return name in ("rms norm and mixture, written out",)


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if not refused_in_float32(case.values[0])])
def test_float32_is_charged_its_errors(name: str, norm: str) -> None:
    """Also where its ledger states other norms than that of float64, as that of written-out attention does in linf."""
    at = subject(name, norm)
    deployed = at.interpret(norm, BOX, arithmetic="float32")
    found = local_radii(at.program, at.ledger, at.images, at.logits, deployed=deployed)
    assert (found.error > at.found.error).all()
    assert (found.radius <= 1.01 * at.found.radius).all()  # a search that starts elsewhere stops elsewhere


def test_a_ledger_of_other_steps_lends_the_errors_of_its_box() -> None:
    """Names of steps may then stand for other values: none is taken for its namesake."""
    at = subject("layer norm and attention", "l2")
    deployed = at.interpret("l2", BOX, arithmetic="float32")
    (step,) = (s for s in deployed.steps if s.node == deployed.output)
    shuffled = replace(deployed, steps=(*deployed.steps[:-1], replace(step, node="other")), output="other")
    same, other = (
        local_bounds(at.program, at.ledger, at.images, 1e-3, deployed=ledger) for ledger in (deployed, shuffled)
    )
    assert (
        np.asarray(same[deployed.output].within(frozenset()).error.value)
        < step.bound.within(frozenset()).error.to_float()
    ).all()
    assert other["other"] == step.bound
    found = local_radii(at.program, at.ledger, at.images, at.logits, deployed=shuffled)
    assert (found.error >= deployed.pairs.error.to_float()).all()
    assert (found.radius <= at.found.radius).all()


# --- Evidence that is met, and mutants of it --------------------------------------------------------------------------


def test_a_vector_that_shrinks_reaches_the_inverse_deviation() -> None:
    """A layer norm of the input itself: moved by r against its own centred direction, |Pz| is |Pz0| - r."""
    net = Net(lambda n, x: F.linear(F.layer_norm(x, (4,), eps=1e-3), n.a), a=(3, 4)).eval()
    program = export(net, (4,))
    x = torch.tensor([[0.5, -0.3, 0.4, -0.6]], dtype=torch.float64)
    ledger = Interpreter(program)("l2", BOX)
    (step,) = (s for s in ledger.steps if s.rule == "layer-norm")
    length = float((x - x.mean()).norm())
    slopes = {}
    for r in (0.0, 0.2):
        read = local_bounds(program, ledger, x, r)[step.node]
        slopes[r] = value_of(read.within(read.axes).gain, 0)
        shortest = 1 / math.sqrt((length - r) ** 2 / 4 + 1e-3)
        assert shortest <= slopes[r] <= shortest * (1 + 1e-9)
    assert slopes[0.2] > slopes[0.0]


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "half the change of scores": lambda m: m.setattr(
        evidence_module, "grown", lambda share, change, real=evidence_module.grown: real(share, Ups.of(change) * 0.5)
    ),
    "weights that stay": lambda m: m.setattr(
        evidence_module, "deviation", lambda square, longest, x, moved, error, change: square.sqrt()
    ),
    "a length that stays": lambda m: m.setattr(
        evidence_module, "_shortest", lambda place, executed: place.length
    ),
}  # fmt: skip


def evidence_holds() -> bool:
    """Whether what is said of softmax weights and of lengths holds at the points of a ball that move them most."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    net = Net(
        lambda n, x: F.linear(
            F.layer_norm(F.scaled_dot_product_attention(*(F.linear(x, w) for w in weight)), (4,), eps=1e-3).mean(1), n.a
        ),
        a=(3, 4),
    ).eval()
    program = export(net, (3, 4))
    ledger = Interpreter(program)("l2", BOX)
    x = (torch.rand(1, 3, 4, dtype=torch.float64) * 2 - 1) * 0.5
    with np.errstate(all="ignore"):
        balls = walk(ready(ledger), measure(program, ledger, x), Ups(np.array([0.05])))
    found = {name: value_of(number, 0) for numbers in balls.evidence.values() for name, number in numbers.items()}

    def numbers(x: Tensor) -> dict[str, Tensor]:
        q, k, v = (F.linear(x, w) for w in weight)
        p = torch.softmax(q @ k.mT / 2, -1)
        y = p @ v
        centred = y - y.mean(-1, keepdim=True)
        return {
            "column_sum": p.sum(-2).max(), "rest": (1 - p.amax(-1)).max(),
            "value_deviation": torch.linalg.eigvalsh(torch.einsum("bij,bja,bjc->biac", p, v, v) - torch.einsum("bia,bic->biac", y, y)).max().sqrt(),
            "inverse_deviation": 1 / (centred.square().mean(-1).min() + 1e-3).sqrt(),
        }  # fmt: skip

    for name in ("column_sum", "rest", "value_deviation", "inverse_deviation"):
        y = x
        for _ in range(40):
            y = y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(numbers(y)[name], y)
            y = y.detach() + 0.02 * gradient / gradient.norm()
            y = x + (y - x) * min(1.0, 0.05 / float((y - x).norm()))
        if float(numbers(y)[name]) > found[name]:
            return False
    return True


def test_evidence_holds_where_the_ball_moves_it_most() -> None:
    assert evidence_holds()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_evidence_that_forgets_the_ball_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[mutant](monkeypatch)
    assert not (evidence_holds() and deviations_hold() and grown_weights_hold())


def grown_weights_hold() -> bool:
    """Scores 0 and s, moved by -D and +D: the weight is e^(s + 2D) / (1 + e^(s + 2D)) exactly."""
    held = []
    for s, d in ((0.0, 0.1), (-2.0, 0.5), (1.0, 3.0)):
        reached = 1 / (1 + math.exp(-s - 2 * d))
        found = float(evidence_module.grown(Ups(np.array([1 / (1 + math.exp(-s))])), Ups(np.array([d]))).value[0])
        assert found <= reached * (1 + 1e-12)
        held.append(reached <= found)
    return all(held)


def deviations_hold() -> bool:
    """Weights 1/2 on -1 and 1 that move apart by d; and a weight of 1e-9 that grows by e^(2D): both are met."""
    none, half = (Reach(Up.of(n), Up.of(0), Up.of(0)) for n in (0, 0.5))
    still, moved = (Bound((1, 2, 1), {frozenset({2}): reach}) for reach in (none, half))
    zero, one = Ups(np.array([0.0])), Ups(np.array([1.0]))
    apart = evidence_module.deviation(one, one, still, moved, zero, zero).value[0]
    rare = 4e-9 * (1 - 1e-9)
    larger = evidence_module.deviation(Ups(np.array([rare])), one, still, still, zero, one).value[0]
    p = 1e-9 * math.e**2
    p = p / (1 - 1e-9 + p)
    assert apart <= 1.5 * (1 + 1e-12)
    assert larger <= math.sqrt(4 * p * (1 - p)) * (1 + 1e-6)
    return bool(apart >= 1.5 and larger >= math.sqrt(4 * p * (1 - p)))


def test_evidence_is_met() -> None:
    assert grown_weights_hold()
    assert deviations_hold()
