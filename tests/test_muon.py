"""Muon moves each weight as far as it says, as one batch or alone, and like torch's where both are the same rule."""

from __future__ import annotations

import copy
import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certkit.bounds.spectral import spectral_norm
from certkit.models.geometry import Entries, Geometry, Rows, Spectral, norm_over_cap, scaled
from certkit.training import newton_schulz
from certkit.training.muon import SCALES, Muon
from certkit.training.newton_schulz import SETS, Triples, orthogonalised, polar

JORDAN = SETS["jordan"].triples
shapes = st.sampled_from([(1, 1), (1, 7), (6, 6), (3, 12), (12, 3), (2, 5, 5), (2, 3, 4, 9), (20, 90)])
seeds = st.integers(0, 2**32 - 1)
every_set = pytest.mark.parametrize("name", SETS)


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spectrum(shape: tuple[int, int], seed: int, decades: float) -> torch.Tensor:
    """Singular values from 1 down to 10^-decades, evenly in their logarithm."""
    u, _, v = torch.linalg.svd(normal(shape, seed, torch.float64), full_matrices=False)
    values = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    return (u * values @ v).float()


def largest(weight: torch.Tensor) -> float:
    stack = weight.detach().double().reshape(-1, *weight.shape[-2:]).numpy()
    return max(spectral_norm(matrix) for matrix in stack)


def direct(matrix: torch.Tensor, triples: Triples) -> torch.Tensor:
    """The iteration as it is published, without panels, stages or stacks; but divided by 1e-6 more."""
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (torch.linalg.matrix_norm(x) * (1 + 1e-6))
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def stepped(muon: Muon, weights: list[torch.nn.Parameter], steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        muon.step()


# --- the polynomials


def _range(low: np.ndarray, high: np.ndarray, triples: Triples) -> tuple[np.ndarray, np.ndarray]:
    """Intervals that hold the image of [low, high]: by the mean value theorem, widened by more than float64 rounds."""
    for a, b, c in triples:
        middle, radius = (low + high) / 2, (high - low) / 2 * (1 + 1e-12) + 1e-15
        squares = np.maximum(low, 0) ** 2, np.maximum(abs(low), abs(high)) ** 2
        slopes = [a + 3 * b * s + 5 * c * s * s for s in squares]
        turn = -3 * b / (10 * c) if c else math.inf  # where the slope, a parabola in x², has its least value
        inside = (squares[0] <= turn) & (turn <= squares[1])
        least = a - 9 * b * b / (20 * c) if c else a
        steepest = np.maximum.reduce([abs(slopes[0]), abs(slopes[1]), np.where(inside, abs(least), 0.0)])
        centre = middle * (a + middle**2 * (b + middle**2 * c))
        reach = steepest * radius * (1 + 1e-12) + 1e-13
        low, high = centre - reach, centre + reach
    return low, high


@every_set
def test_the_stated_maximum_of_a_set_is_proved_on_0_to_1(name: str) -> None:
    triples, maximum = SETS[name].triples, SETS[name].maximum
    edges = np.linspace(0, 1, 4097)  # divided by 1 + 1e-6 times the norm, no singular value is rounded above 1
    low, high = edges[:-1], edges[1:]
    highest = 0.0
    for _ in range(60):
        bottom, top = _range(low, high, triples)
        open_ = (top > maximum - 4e-6) | (bottom < -1e-3)
        if not open_.any():
            break
        low, high = low[open_], high[open_]
        middle = (low + high) / 2
        highest = max(highest, float(_range(middle, middle, triples)[1].max()))
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    assert not open_.any()
    assert highest > maximum - 3e-5  # the maximum is attained: the number says no more than needed


@every_set
@settings(max_examples=30)
@given(shape=shapes, seed=seeds, scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 1e6, 1e30]))
def test_a_direction_never_exceeds_the_maximum_of_its_set(
    name: str, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    raw = normal(shape, seed) * scale
    assert largest(orthogonalised(raw, SETS[name].triples)) <= SETS[name].maximum


@pytest.mark.parametrize("shape", [(400, 400), (400, 900), (900, 400), (130, 900)])
@pytest.mark.parametrize("decades", [0.0, 2.0, 4.0, 6.0])
def test_panels_and_stages_give_the_direct_iteration_and_stay_below_the_maximum(
    shape: tuple[int, int], decades: float
) -> None:
    raw = spectrum(shape, 1, decades)
    for name in ("six-step", "jordan"):
        found = orthogonalised(raw, SETS[name].triples)
        assert largest(found) <= SETS[name].maximum
        exact = direct(raw.double(), SETS[name].triples)
        # what float32 itself loses in the direct iteration, times 10: slopes are up to 1137
        assert largest(found.double() - exact) <= 10 * largest(direct(raw, SETS[name].triples).double() - exact) + 1e-4


def test_one_gram_matrix_for_all_six_terms_would_exceed_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.cat([spectrum((100, 600), seed, 5.0)[None] for seed in range(8)])
    assert largest(orthogonalised(raw)) <= 0.99934
    monkeypatch.setattr(newton_schulz, "STAGE", 6)
    assert largest(orthogonalised(raw)) > 0.99934


def test_float64_stays_float64() -> None:
    raw = normal((5, 8), 0, torch.float64)
    found = orthogonalised(raw)
    assert found.dtype == torch.float64
    assert largest(found - direct(raw, SETS["six-step"].triples)) < 1e-12


def test_zero_stays_zero() -> None:
    assert not orthogonalised(torch.zeros(3, 4)).any()


@given(shape=shapes, seed=seeds, scale=st.sampled_from([1e-10, 1.0, 1e30]))
def test_a_polar_factor_has_singular_values_1_and_none_above(shape: tuple[int, ...], seed: int, scale: float) -> None:
    raw = normal(shape, seed, torch.float64) * scale
    values = torch.linalg.svdvals(polar(raw))
    ratios = torch.linalg.svdvals(raw)
    assert float(values.max()) <= 1 + 1e-12
    if scale >= 1:  # a small matrix is not enlarged, and 18 steps do not bring 1e-10 to 1
        well = ratios.amin(-1) / ratios.amax(-1) > 1e-3
        assert bool((values.amin(-1)[well] > 1 - 1e-5).all())


@settings(max_examples=40)
@given(shape=shapes, seed=seeds, step=st.sampled_from([0.0, 1e-4, 0.01, 0.05, 0.2, 0.45, 0.6]))
def test_a_known_reach_finds_the_same_polar_factor(shape: tuple[int, ...], seed: int, step: float) -> None:
    start = polar(normal(shape, seed, torch.float64))
    moved = start - step * orthogonalised(normal(shape, seed + 1, torch.float64))
    found = polar(moved, 1 + step)
    assert float(torch.linalg.svdvals(found).max()) <= 1 + 1e-12
    assert float((found - polar(moved)).abs().max()) < 1e-5


@given(value=st.floats(0, 1.5), reach=st.floats(1.0, 1.49))
def test_a_singular_value_below_the_stated_reach_still_ends_below_1(value: float, reach: float) -> None:
    found = polar(torch.tensor([[min(value, reach)]], dtype=torch.float64), reach)
    assert 0 <= float(found) <= 1 + 1e-15


# --- one step


@pytest.mark.parametrize("scale", SCALES)
@every_set
@settings(max_examples=5)
@given(shape=shapes, seed=seeds, units=st.sampled_from(["l2", "rms"]), decay=st.sampled_from([0.0, 0.5]))
def test_a_step_moves_no_further_than_it_says(
    scale: str, name: str, shape: tuple[int, ...], seed: int, units: str, decay: float
) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    kind = Spectral(units=units)  # type: ignore[arg-type]
    muon = Muon([(weight, kind)], lr=0.1, scale=scale, coefficients=name, weight_decay=decay)
    for step in range(3):
        before = weight.detach().clone()
        stepped(muon, [weight], 1, seed + step)
        moved = muon.moved(weight)
        assert moved is not None
        assert largest(weight.detach().double() - before.double() * (1 - 0.1 * decay)) <= moved * (1 + 1e-6)


@pytest.mark.parametrize(
    ("scale", "length"),
    [
        ("geometry", 1.0), ("rms", math.sqrt(1.5)), ("spectral", 1.0), ("original", math.sqrt(1.5)),
        ("match-rms-adamw", 0.2 * math.sqrt(6)),
    ],
)  # fmt: skip
def test_a_step_is_as_long_as_its_rule_says(scale: str, length: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    muon = Muon([(weight, Spectral())], lr=0.1, scale=scale)
    stepped(muon, [weight], 1)
    assert 0.099 * length < largest(weight) <= 0.1 * length
    assert muon.moved(weight) == pytest.approx(0.1 * length * 0.99934)


def test_in_units_of_rms_a_step_is_as_long_as_the_weight_is_tall() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 2))
    stepped(Muon([(weight, Spectral(units="rms"))], lr=0.1), [weight], 1)
    assert 0.199 < largest(weight) <= 0.2


def test_what_is_not_proved_is_not_stated() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    for muon in (
        Muon([(weight, Spectral())], lr=0.1, coefficients=((1.5, -0.5, 0.0),) * 9),
        Muon([(weight, Spectral())], lr=0.1, dtype=torch.bfloat16),
    ):
        stepped(muon, [weight], 1)
        assert muon.moved(weight) is None


def test_a_weight_without_a_gradient_stays() -> None:
    weight, other = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    muon = Muon([(weight, Spectral()), (other, Spectral())], lr=0.1, weight_decay=0.5)
    stepped(muon, [weight], 2)
    assert muon.moved(other) == 0.0
    assert torch.equal(other, torch.ones(2, 3))
    assert not torch.equal(weight, torch.ones(2, 3))


def test_weights_together_step_as_each_alone() -> None:
    geometries: list[tuple[tuple[int, ...], Geometry]] = [
        ((6, 4), Spectral()), ((6, 4), Spectral(2.0, "rms")), ((4, 6), Spectral()), ((3, 6, 4), Spectral()),
        ((6, 4), Rows()),
    ]  # fmt: skip
    together = [torch.nn.Parameter(normal(shape, i)) for i, (shape, _) in enumerate(geometries)]
    alone = copy.deepcopy(together)
    kinds = [kind for _, kind in geometries]
    all_at_once = Muon(zip(together, kinds, strict=True), lr=0.1, weight_decay=0.1)
    one_by_one = [Muon([pair], lr=0.1, weight_decay=0.1) for pair in zip(alone, kinds, strict=True)]
    for step in range(5):
        for i, (a, b) in enumerate(zip(together, alone, strict=True)):
            a.grad = normal(a.shape, 100 * step + i)
            b.grad = a.grad.clone()
        all_at_once.step()
        for muon in one_by_one:
            muon.step()
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_gradients_are_not_changed() -> None:
    for nesterov in (True, False):
        weight = torch.nn.Parameter(torch.zeros(6, 4))
        muon = Muon([(weight, Spectral())], lr=0.1, nesterov=nesterov, dtype=torch.bfloat16)
        weight.grad = normal((6, 4), 0)
        before, version = weight.grad.clone(), weight.grad._version
        muon.step()
        muon.step()
        assert torch.equal(weight.grad, before)
        assert weight.grad._version == version
        assert torch.allclose(muon.state[weight]["momentum"], before * (1 - 0.95**2))


def test_work_on_a_stack_can_be_shared() -> None:
    seen: list[tuple[int, ...]] = []

    def halves(function, stack):  # type: ignore[no-untyped-def]
        seen.append(tuple(stack.shape))
        return torch.cat([function(half) for half in stack.split(2)])

    weights = [torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(4)]
    others = copy.deepcopy(weights)
    stepped(Muon([(w, Spectral()) for w in weights], lr=0.1, mapped=halves), weights, 2)
    stepped(Muon([(w, Spectral()) for w in others], lr=0.1), others, 2)
    assert seen == [(4, 6, 4)] * 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, others, strict=True))


def test_going_on_from_a_saved_state_gives_the_same_bytes() -> None:
    def made() -> tuple[list[torch.nn.Parameter], Muon]:
        weights = [torch.nn.Parameter(normal((6, 4), 0)), torch.nn.Parameter(normal((9, 5), 1))]
        return weights, Muon(zip(weights, (Spectral(), Rows()), strict=True), lr=0.1, weight_decay=0.1)

    whole, muon = made()
    stepped(muon, whole, 3)
    file = io.BytesIO()
    torch.save((muon.state_dict(), whole), file)
    stepped(muon, whole, 3, seed=1)
    again, resumed = made()
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    for weight, value in zip(again, values, strict=True):
        weight.data.copy_(value)
    stepped(resumed, again, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


# --- tables


@given(seed=seeds, scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_every_row_of_a_table_moves_by_the_learning_rate_in_rms(seed: int, scale: float) -> None:
    table = torch.nn.Parameter(torch.zeros(5, 8))
    muon = Muon([(table, Rows())], lr=0.1)
    table.grad = normal((5, 8), seed) * scale
    muon.step()
    assert torch.allclose(table.square().mean(-1).sqrt(), torch.full((5,), 0.1))
    moved = muon.moved(table)
    assert moved is not None
    assert norm_over_cap(table, Rows(moved / math.sqrt(8))) <= 1


def test_short_rows_are_inflated_16_times_at_most_and_rows_without_a_gradient_stay() -> None:
    table = torch.nn.Parameter(torch.zeros(4, 2))
    table.grad = torch.tensor([[1.0, 1.0], [0.1, 0.1], [0.01, 0.01], [0.0, 0.0]])
    Muon([(table, Rows())], lr=1.0).step()
    assert torch.allclose(-table[:, 0], torch.tensor([1.0, 1.0, 0.16, 0.0]))


# --- torch's


@pytest.mark.parametrize(("ours", "torchs"), [("original", "original"), ("match-rms-adamw", "match_rms_adamw")])
@pytest.mark.parametrize("shape", [(24, 24), (32, 12), (12, 40)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_with_torchs_settings_it_steps_as_torchs(
    ours: str, torchs: str, shape: tuple[int, int], nesterov: bool
) -> None:
    mine, its = (torch.nn.Parameter(normal(shape, 0)) for _ in range(2))
    muon = Muon([(mine, Spectral())], lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1, scale=ours,
                coefficients=JORDAN, dtype=torch.bfloat16)  # fmt: skip
    other = torch.optim.Muon([its], lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1, adjust_lr_fn=torchs)
    for step in range(6):
        mine.grad = normal(shape, step + 1)
        its.grad = mine.grad.clone()
        muon.step()
        other.step()
        # entries of an update are below 1 and bfloat16 keeps 8 bits of them; here the updates agree to the bit
        length = 0.02 * SCALES[ours](Spectral(), shape)
        assert float((mine - its).detach().abs().max()) <= (step + 1) * length * 2**-8


# --- geometry


def test_limits_follow_units_and_shape() -> None:
    assert Spectral(2.0).limit((8, 2)) == 2.0
    assert Spectral(2.0, "rms").limit((8, 2)) == 4.0
    assert Rows(0.5).limit((100, 16)) == 2.0
    assert scaled(Spectral(2.0, "rms"), 3.0) == Spectral(6.0, "rms")
    assert scaled(Rows(), 3.0) == Rows(3.0)


@given(shape=shapes, seed=seeds)
def test_a_norm_over_its_cap_is_not_below_the_truth(shape: tuple[int, ...], seed: int) -> None:
    weight = normal(shape, seed)
    sigma = float(torch.linalg.matrix_norm(weight.double(), 2).max())
    rms = float(weight.double().square().mean(-1).sqrt().max())
    unit = math.sqrt(shape[-1] / shape[-2])
    for kind, true in ((Spectral(0.7), sigma), (Spectral(0.7, "rms"), sigma * unit), (Rows(0.7), rms)):
        assert true / 0.7 * (1 - 1e-14) <= norm_over_cap(weight, kind) <= true / 0.7 * (1 + 1e-9)
    assert norm_over_cap(weight, Entries()) == 0.0


# --- messages


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"lr": 0.0}, "Muon needs lr > 0 and 0 <= momentum < 1, got 0.0 and 0.95"),
        ({"momentum": 1.0}, "Muon needs lr > 0 and 0 <= momentum < 1, got 0.1 and 1.0"),
        ({"weight_decay": -1.0}, "Muon needs weight_decay >= 0, got -1.0"),
        ({"dtype": torch.float16}, "Muon computes in float32, float64 or bfloat16, not torch.float16"),
        (
            {"scale": "geometri"},
            (
                "Muon knows no scale 'geometri'; expected one of geometry, rms, original, match-rms-adamw, spectral; "
                "did you mean 'geometry'?"
            ),
        ),
        (
            {"coefficients": "six"},
            "Muon knows no coefficients 'six'; expected one of six-step, five-step, jordan, polar-express-8, cubic",
        ),
    ],
)  # fmt: skip
def test_what_muon_refuses(made: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        Muon([(torch.nn.Parameter(torch.zeros(2, 2)), Spectral())], **{"lr": 0.1, **made})  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "kind"), [((3,), Spectral()), ((3, 3), Entries())])
def test_muon_refuses_what_lives_in_no_norm_it_can_step_in(shape: tuple[int, ...], kind: Geometry) -> None:
    message = f"a weight of shape {shape} with geometry {kind} belongs to another optimiser"
    with pytest.raises(ValueError, match=re.escape("Muon steps matrices and tables of rows; " + message) + "$"):
        Muon([(torch.zeros(shape), kind)], lr=0.1)
