"""A provable cap holds after every step, whatever the gradient; approximate ones fail somewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certkit.bounds.spectral import spectral_norm
from certkit.errors import ConfigError
from certkit.models.geometry import Entries, Geometry, Rows, Spectral, norm_over_cap
from certkit.training.constraints import (
    CONSTRAINTS,
    HARD_CAP,
    HIGHEST,
    OPTIMIZERS,
    SAFETY,
    WIDEST,
    Step,
    clip_rows,
    constrain_,
    coupling,
    power_iteration,
    promise,
    reason,
    refuse,
    soft_cap,
    start_,
    svd_clip,
)
from certkit.training.muon import Muon

PAIRS = [(name, optimizer) for name in CONSTRAINTS for optimizer in OPTIMIZERS]
PROVABLE = [pair for pair in PAIRS if promise(*pair) == "provable"]
shapes = st.sampled_from([(1, 1), (1, 7), (6, 6), (3, 12), (12, 3), (2, 5, 5), (2, 4, 7)])
seeds = st.integers(0, 2**32 - 1)


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest(weight: torch.Tensor) -> float:
    stack = weight.detach().double().reshape(-1, *weight.shape[-2:]).numpy()
    return max(spectral_norm(matrix) for matrix in stack)


def optimizer_of(
    name: str, weight: torch.nn.Parameter, kind: Geometry, lr: float, decay: float
) -> tuple[torch.optim.Optimizer, Callable[[], float | None]]:
    """The optimiser, and what it says of its latest step."""
    if name == "muon":
        muon = Muon([(weight, kind)], lr=lr, momentum=0.9, weight_decay=decay)
        return muon, lambda: muon.moved(weight)
    if name == "adamw":
        return torch.optim.AdamW([weight], lr=lr, weight_decay=decay), lambda: None
    return torch.optim.SGD([weight], lr=lr, momentum=0.9, weight_decay=decay), lambda: None


def trained(
    pair: tuple[str, str], weight: torch.nn.Parameter, kind: Geometry, lr: float, decay: float,
    gradient: Callable[[int], torch.Tensor], steps: int,
) -> list[float]:  # fmt: skip
    """The proved norm over cap after the start and after every step, as the loop makes them."""
    constraint = CONSTRAINTS[pair[0]]
    start_(pair[0], weight, kind)
    found = [norm_over_cap(weight, kind)]
    optimizer, moved = optimizer_of(pair[1], weight, kind, lr, 0.0 if constraint.replaces_decay else decay)
    for step in range(steps):
        rate = lr * min(1.0, 1.5 * (1 - step / steps))
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient(step)
        optimizer.step()
        constrain_(constraint, [(weight, kind, Step(moved(), rate * decay))])
        found.append(norm_over_cap(weight, kind))
    return found


# --- promises


def test_every_entry_has_a_promise_and_a_reason_for_every_optimiser() -> None:
    table = {pair: promise(*pair) for pair in PAIRS}
    assert {pair for pair, label in table.items() if label == "provable"} == {
        ("weight-decay", "muon"), ("spectral-soft-cap", "muon"),
        *((name, every) for name in ("spectral-normalize-proved", "stiefel", "svd-clip") for every in OPTIMIZERS),
    }  # fmt: skip
    assert {pair for pair, label in table.items() if label == "refused"} == {
        (name, optimizer) for name in ("spectral-soft-cap", "spectral-hard-cap") for optimizer in ("adamw", "sgd")
    }
    assert {name for (name, _), label in table.items() if label == "none"} == {"none"}
    assert all(reason(*pair) for pair in PAIRS)


@pytest.mark.parametrize(("name", "optimizer"), PROVABLE)
@settings(max_examples=6)
@given(data=st.data(), shape=shapes, seed=seeds, units=st.sampled_from(["l2", "rms"]))
def test_a_provable_cap_holds_after_every_step(
    name: str, optimizer: str, data: st.DataObject, shape: tuple[int, ...], seed: int, units: str
) -> None:
    cap = data.draw(st.sampled_from([0.01, 0.5, 1.0, 8.0]), label="cap")
    lr = cap * data.draw(st.sampled_from([0.001, 0.05, 0.3, 0.7, 1.2]), label="lr over cap")
    times = st.sampled_from([1.0, 1.5] if name == "weight-decay" else [0.0, 0.1, 1.0, 1.5])
    decay = data.draw(times.filter(lambda t: lr * t <= cap), label="decay times cap") / cap
    refuse(name, optimizer, learning_rate=lr, weight_decay=decay, cap=cap)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    outward = data.draw(st.booleans(), label="gradients push the weight outward")

    def gradient(step: int) -> torch.Tensor:
        size = 10 ** float(torch.randint(-6, 6, (), generator=generator))
        return (-weight.detach() if outward else torch.randn(shape, generator=generator)) * size

    found = trained((name, optimizer), weight, Spectral(cap, units), lr, decay, gradient, 200)  # type: ignore[arg-type]
    assert max(found) <= 1 + 1e-6


@pytest.mark.parametrize("name", [name for name in CONSTRAINTS if name not in ("none", "weight-decay")])
@given(seed=seeds, scale=st.sampled_from([1e-20, 1.0, 1e20]))
def test_rows_stay_under_their_cap_under_every_constraint(name: str, seed: int, scale: float) -> None:
    table = normal((2, 5, 8), seed) * scale
    short = table.square().mean(-1) < 0.4
    before = table.clone()
    constrain_(CONSTRAINTS[name], [(table, Rows(0.7), Step())])
    assert norm_over_cap(table, Rows(0.7)) <= 1
    assert torch.equal(table[short], before[short])


def test_rows_decay_under_muon_without_being_clipped() -> None:
    table = torch.nn.Parameter(normal((4, 9)))
    found = trained(("weight-decay", "muon"), table, Rows(0.5), 0.05, 2.0, lambda step: -table.detach(), 200)
    assert 0.99 < max(found) <= 1 + 1e-6


@pytest.mark.parametrize("lr", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("name", ["weight-decay", "spectral-soft-cap", "stiefel"])
def test_a_cap_holds_where_steps_are_as_small_as_rounding(name: str, lr: float) -> None:
    weight = torch.nn.Parameter(normal((48, 48)) * 100)
    decay = 1.0 if name == "weight-decay" else 0.0
    found = trained((name, "muon"), weight, Spectral(), lr, decay, lambda _: -weight.detach(), 400)
    assert max(found) <= 1 + 1e-6


def test_decay_alone_does_not_hold_where_steps_are_as_small_as_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTRAINTS, "weight-decay", CONSTRAINTS["none"])
    weight = torch.nn.Parameter(normal((64, 64)) * 100)
    svd_start = svd_clip(weight.detach(), 1.0, Step())
    weight.data.copy_(svd_start)
    found = trained(("weight-decay", "muon"), weight, Spectral(), 1e-6, 1.0, lambda _: -weight.detach(), 400)
    assert max(found) > 1 + 1e-6


# --- approximate: each fails somewhere


def exceeds(name: str, optimizer: str, lr: float, decay: float, steps: int = 60) -> float:
    """How far gradients that push every singular value outward take a weight above its cap."""
    weight = torch.nn.Parameter(normal((20, 20), 3))
    return max(trained((name, optimizer), weight, Spectral(), lr, decay, lambda _: -100 * weight.detach(), steps))


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "decay", "least"),
    [
        ("none", "muon", 0.1, 0.0, 2.0), ("none", "adamw", 0.1, 0.0, 2.0), ("none", "sgd", 0.01, 0.0, 2.0),
        ("weight-decay", "adamw", 0.01, 1.0, 1.5), ("weight-decay", "sgd", 0.01, 1.0, 1.5),
        ("spectral-weight-decay", "muon", 0.1, 1.0, 2.0), ("spectral-weight-decay", "adamw", 0.01, 1.0, 1.5),
        ("spectral-weight-decay", "sgd", 0.01, 1.0, 1.5),
        ("spectral-hammer", "muon", 0.3, 0.0, 1.2), ("spectral-hammer", "adamw", 0.1, 0.0, 1.2),
        ("spectral-hammer", "sgd", 0.01, 0.0, 1.2),
    ],
)  # fmt: skip
def test_what_is_not_provable_does_exceed_its_cap(
    name: str, optimizer: str, lr: float, decay: float, least: float
) -> None:
    assert promise(name, optimizer) in ("approximate", "none")
    assert exceeds(name, optimizer, lr, decay) > least


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_spectral_normalisation_by_power_iteration_exceeds_its_cap(optimizer: str) -> None:
    weight = torch.nn.Parameter(normal((200, 200), 0))
    gradients = [normal((200, 200), step) for step in range(5)]
    found = trained(("spectral-normalize", optimizer), weight, Spectral(), 0.5, 0.0, lambda step: gradients[step], 5)
    assert max(found) > 1 + 1e-3


def test_power_iteration_is_never_above_the_norm_and_up_to_5_percent_below() -> None:
    shares = []
    for seed in range(10):
        weight = normal((200, 200), seed)
        s, u, v = power_iteration(weight[None])
        shares.append(float(s) / largest(weight))
        assert torch.allclose(weight @ v[0], s[0] * u[0], atol=1e-4)
    assert max(shares) <= 1 + 1e-6
    assert 0.9 < min(shares) < 0.99


def test_the_hard_cap_reaches_1_01088_at_1_185_and_is_worth_no_promise() -> None:
    x = np.linspace(0, 3.5, 350_001)
    y = x.copy()
    for a, b, c in HARD_CAP:
        y = y * (a + y**2 * (b + y**2 * c))
    assert float(y.max()) == pytest.approx(1.01088, abs=1e-5)
    assert x[y.argmax()] == pytest.approx(1.185, abs=2e-3)
    assert float(np.abs(y - np.minimum(x, 1)).max()) < 0.03394
    found = CONSTRAINTS["spectral-hard-cap"].project(torch.tensor([[[2 * 1.185]]]), 2.0, Step(0.37))
    assert float(found) == pytest.approx(2 * 1.01088, abs=1e-4)


# --- the soft cap


@given(
    cap=st.floats(0.01, 100), moved=st.floats(0, 1.2), decay=st.sampled_from([0.0, 0.01, 0.3, 0.9]),
    share=st.floats(0, 1),
)  # fmt: skip
def test_the_soft_cap_takes_all_that_a_step_can_reach_under_the_cap(
    cap: float, moved: float, decay: float, share: float
) -> None:
    k = cap * (1 - decay) + cap * moved
    alpha = coupling(cap, cap * moved, decay)
    inner = share * k - alpha * (share * k) ** 3
    assert -1e-12 * cap <= inner + alpha * inner**3 <= cap * (1 + 1e-12)


@pytest.mark.parametrize("moved", [1e-4, 0.01, 0.1, 0.3, 0.306452, 0.5, 0.7, 1.0, 1.2628])
def test_the_soft_cap_is_at_the_cap_where_its_polynomial_is_largest(moved: float) -> None:
    alpha = coupling(1.0, moved, 0.0)
    x = np.linspace(0, 1 + moved, 1_000_001)
    inner = x - alpha * x**3
    assert float((inner + alpha * inner**3).max()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("moved", [0.01, 0.1, 0.25])
def test_a_push_outward_ends_at_the_cap(moved: float) -> None:
    weight = torch.eye(3)[None] * 0.2
    for _ in range(400):
        weight = soft_cap(weight + moved * torch.eye(3), 1.0, Step(moved))
    assert largest(weight) == pytest.approx(1.0, abs=1e-4)


def test_below_the_cap_the_coupling_is_0_and_not_1() -> None:
    # The reference code takes α = 1 where its quartic has no admissible root: here its polynomial gives -4.9e6.
    assert coupling(6.0, 0.2, 0.2 * 0.5) == 0.0
    weight = normal((3, 3))
    assert torch.equal(soft_cap(weight, 6.0, Step(0.2, 0.1)), weight * (1 - SAFETY))


def test_the_length_of_a_step_is_not_divided_by_the_scale_of_the_weight() -> None:
    # The reference code divides, and a layer twice as large (in units of RMS) settles at 1.148 times its cap.
    kind = Spectral(units="rms")
    weight = torch.nn.Parameter(torch.zeros(12, 3))
    with torch.no_grad():
        weight[:3] = torch.eye(3)
    found = trained(("spectral-soft-cap", "muon"), weight, kind, 0.05, 0.0, lambda _: -weight.detach(), 200)
    assert 0.99 < max(found) <= 1 + 1e-6
    wrong = coupling(2.0, 0.05, 0.0)
    x = 2.0
    for _ in range(400):
        x = x + 0.1
        x = x - wrong * x**3
        x = x + wrong * x**3
    assert x > 1.05 * 2.0


def test_beyond_its_range_the_published_coupling_exceeds_the_cap() -> None:
    # Theorem 3.1 as implemented: the smallest root at k = 1.7 puts k at 1, but the peak inside [0, k] is above.
    k = 1.7
    roots = np.roots([-(k**9), 3 * k**7, -3 * k**5, 0, k - 1])
    alpha = min(float(r.real) for r in roots if abs(r.imag) < 1e-9 and r.real >= 0)
    inner = np.linspace(0, k, 100_001)
    inner = inner - alpha * inner**3
    assert float((inner + alpha * inner**3).max()) == pytest.approx(1.085, abs=1e-3)
    assert coupling(1.0, 0.7, 0.0) == pytest.approx(0.195296, abs=1e-6)
    assert pytest.approx(0.306452, abs=1e-6) == 1 / HIGHEST - 1
    assert pytest.approx(2.2628, abs=1e-4) == WIDEST


def test_a_step_that_no_soft_cap_undoes_is_refused_when_it_is_taken() -> None:
    message = (
        "training.constraint: spectral-soft-cap at 2 cannot undo a step of 3; expected at most 2.52568; "
        "lower training.learning_rate"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        coupling(2.0, 3.0, 0.0)
    message = "training.constraint: spectral-soft-cap must know how far a step moved; use training.optimizer muon"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        soft_cap(normal((3, 3)), 1.0, Step())


# --- batches, starts


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_batch_is_projected_as_its_matrices_one_by_one(name: str) -> None:
    together = [normal((3, 5), 0), normal((2, 3, 5), 1), normal((5, 3), 2), normal((3, 5), 3)]
    for weight in together:
        weight.mul_(1.1 / largest(weight))
    alone = [weight.clone() for weight in together]
    kinds = [Spectral(), Spectral(), Spectral(units="rms"), Spectral(1.05)]
    constrain_(CONSTRAINTS[name], [(w, kind, Step(0.2, 0.01)) for w, kind in zip(together, kinds, strict=True)])
    for weight, kind in zip(alone, kinds, strict=True):
        for matrix in weight.reshape(-1, *weight.shape[-2:]):
            constrain_(CONSTRAINTS[name], [(matrix, kind, Step(0.2, 0.01))])
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONSTRAINTS if name != "none"])
@given(shape=shapes, seed=seeds, scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]), cap=st.sampled_from([0.1, 3.0]))
def test_every_run_starts_inside(name: str, shape: tuple[int, ...], seed: int, scale: float, cap: float) -> None:
    for kind in (Spectral(cap), Spectral(cap, "rms"), Rows(cap)):
        weight = normal(shape, seed) * scale
        start_(name, weight, kind)
        assert norm_over_cap(weight, kind) <= 1
        if name == "stiefel" and not isinstance(kind, Rows):
            values = torch.linalg.svdvals(weight.double())
            assert float((values / kind.limit(shape) - 1).abs().max()) < 3e-6


def test_entries_are_left_alone() -> None:
    bias = normal((7,)) * 100
    before = bias.clone()
    for name, constraint in CONSTRAINTS.items():
        start_(name, bias, Entries())
        constrain_(constraint, [(bias, Entries(), Step(0.1))])
    assert torch.equal(bias, before)


def test_what_is_inside_is_not_touched() -> None:
    weight, table = normal((4, 4)), normal((4, 4))
    weight *= 0.9 / largest(weight)
    assert torch.equal(svd_clip(weight, 1.0, Step()), weight)
    assert torch.equal(CONSTRAINTS["spectral-normalize-proved"].project(weight, 1.0, Step()), weight)
    assert torch.equal(clip_rows(table, 100.0, Step()), table)
    values = torch.linalg.svdvals(svd_clip(weight * 2, 1.0, Step()).double())
    assert float(values.max()) == pytest.approx(1 - SAFETY, abs=2e-7)
    assert torch.allclose(values, torch.linalg.svdvals(weight.double() * 2).clamp(max=1), atol=2e-6)


# --- refusals


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "decay", "cap", "message"),
    [
        ("spectral-softcap", "muon", 0.1, 0.0, 1.0,
         "training.constraint: unknown 'spectral-softcap'; did you mean 'spectral-soft-cap'?"),
        ("spectral-soft-cap", "adamw", 0.1, 0.0, 1.0,
         ("training.constraint: spectral-soft-cap needs training.optimizer muon, not adamw: "
          "it undoes steps of a bounded length, and this optimiser's are not bounded")),
        ("spectral-hard-cap", "sgd", 0.1, 0.0, 1.0,
         ("training.constraint: spectral-hard-cap needs training.optimizer muon, not sgd: "
          "it diverges beyond 4 caps, and the steps of this optimiser are not bounded")),
        ("spectral-soft-cap", "muon", 1.3, 0.0, 1.0,
         "training.learning_rate 1.3 is beyond the range of spectral-soft-cap at cap 1: at most 1.26284"),
        ("spectral-soft-cap", "muon", 1.5, 0.1, 1.0,
         "training.learning_rate 1.5 is beyond the range of spectral-soft-cap at cap 1: at most 1.40315"),
        ("spectral-hard-cap", "muon", 1.1, 0.0, 0.5,
         "training.learning_rate 1.1 is beyond the range of spectral-hard-cap at cap 0.5: at most 1"),
        ("weight-decay", "muon", 0.1, 0.5, 1.0,
         ("training.constraint: weight-decay with weight_decay 0.5 cannot hold cap 1; "
          "expected training.weight_decay >= 1/cap = 1")),
        ("weight-decay", "sgd", 0.1, 0.0, 1.0,
         "training.constraint: weight-decay with weight_decay 0 does nothing; expected training.weight_decay > 0"),
        ("spectral-weight-decay", "muon", 0.1, 0.0, 1.0,
         ("training.constraint: spectral-weight-decay with weight_decay 0 does nothing; "
          "expected training.weight_decay > 0")),
        ("stiefel", "muon", 0.5, 3.0, 1.0,
         ("training: learning_rate 0.5 times weight_decay 3 is above 1, so that every step would turn the weights "
          "round; lower either")),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, optimizer: str, lr: float, decay: float, cap: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        refuse(name, optimizer, learning_rate=lr, weight_decay=decay, cap=cap)


@given(cap=st.floats(0.01, 100), decay=st.sampled_from([0.0, 0.2, 1.0, 1.5]))
def test_what_is_accepted_has_a_coupling(cap: float, decay: float) -> None:
    most = min((WIDEST - 1) * cap / (1 - decay) if decay < 1 else math.inf, cap / decay if decay else math.inf)
    refuse("spectral-soft-cap", "muon", learning_rate=most * (1 - 1e-9), weight_decay=decay / cap, cap=cap)
    assert coupling(cap, most * (1 - 1e-9), most * (1 - 1e-9) * decay / cap) >= 0
    with pytest.raises(ConfigError, match=r"beyond the range|turn the weights round"):
        refuse("spectral-soft-cap", "muon", learning_rate=most * (1 + 1e-6), weight_decay=decay / cap, cap=cap)


def test_decay_under_a_step_of_another_length_is_no_promise() -> None:
    assert promise("weight-decay", "muon", scale="original") == "approximate"
    assert promise("spectral-soft-cap", "muon", scale="original") == "provable"
